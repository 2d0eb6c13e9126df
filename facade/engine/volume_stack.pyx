"""The top of a volume's stack, and the gate at which requests wait while layers change."""

from errno import EBUSY as PY_EBUSY
from errno import ESHUTDOWN as PY_ESHUTDOWN

from libc.errno cimport EAGAIN, EINVAL, ENOMEM, ENOSPC, EPERM, ESHUTDOWN
from libc.stdlib cimport free, malloc

from facade.engine.io_pool cimport LOOKUP_THREADS_MAX, READ_THREADS_MAX, IoPool, PoolItem
from facade.engine.syscalls cimport (
    CLOCK_MONOTONIC,
    atomic_add,
    atomic_and,
    atomic_load,
    atomic_or,
    atomic_store,
    clock_gettime,
    pthread_cond_broadcast,
    pthread_cond_clockwait,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    timespec,
)
from facade.engine.volume cimport IO_FLUSH, IO_NOWAIT, IO_PENDING, IO_READ, IO_WRITE, IO_ZERO

# How long a change waits for the requests in flight before it gives up and changes nothing.
SHUT_TIMEOUT_S = 30.0

cdef enum:
    NANOSECONDS_PER_S = 1000000000

    WHOLE = 2                # what a request adds to the gate's state, and gives back
    HALF = 1

cdef int64_t GATE_SHUT = <int64_t> 1 << 62


# A request on its way through the stack. A copy, so that stacks nest and layers never see fields
# that are not theirs.
cdef struct Passage:
    Io io
    Io *outer
    Gate *gate
    void *top_volume         # Volume, borrowed, for a request that has to wait
    PoolItem item            # its place in the pool's queue


cdef void enter_gate(Gate *gate) noexcept nogil:
    while atomic_add(&gate.state, WHOLE) & GATE_SHUT:
        leave_gate(gate, WHOLE)
        pthread_mutex_lock(&gate.mutex)
        while atomic_load(&gate.state) & GATE_SHUT:
            pthread_cond_wait(&gate.changed, &gate.mutex)
        pthread_mutex_unlock(&gate.mutex)


cdef void leave_gate(Gate *gate, int share) noexcept nogil:
    if atomic_add(&gate.state, -share) == GATE_SHUT:
        pthread_mutex_lock(&gate.mutex)
        pthread_cond_broadcast(&gate.changed)
        pthread_mutex_unlock(&gate.mutex)


cdef void passage_ended(Io *io, int error) noexcept nogil:
    cdef Passage *passage = <Passage *> io.owner
    cdef Io *outer = passage.outer
    # The gate first: once the submitter knows, it may let go of the stack that holds the gate.
    leave_gate(passage.gate, HALF)
    free(passage)
    outer.complete(outer, error)


# On a thread of the pool, which outlives the gate's last user. The gate keeps the top where it is
# until the request has ended and submit() has returned.
cdef void run_passage(void *owner) noexcept nogil:
    cdef Passage *passage = <Passage *> owner
    cdef Gate *gate = passage.gate
    cdef int error = (<Volume> passage.top_volume).submit(&passage.io)
    leave_gate(gate, HALF)
    if error != IO_PENDING:
        passage_ended(&passage.io, error)


cdef class VolumeStack(Volume):
    """What an export serves: hands each request to the top layer of one volume.

    `set_top` engages or disengages a layer under live I/O: new requests are held back, those in
    flight (pending ones too) are waited for, the top is replaced, the held ones go on. Nothing
    fails and nothing is lost; a request sees the old top or the new one, never both.
    """

    def __cinit__(self) -> None:
        self.gate.state = 0
        pthread_mutex_init(&self.gate.mutex, NULL)
        pthread_cond_init(&self.gate.changed, NULL)
        self.gate_ready = True

    def __init__(self, top: Volume, name: str = "", read_only: bool = False) -> None:
        self.top_volume = top
        self.size_bytes = top.size_bytes
        self.name = name or top.name
        self.refuses_writes = read_only
        self.is_closed = False
        self.pool = IoPool()
        self.read_pool = IoPool(READ_THREADS_MAX)
        self.lookups = IoPool(LOOKUP_THREADS_MAX)

    def __dealloc__(self) -> None:
        if self.gate_ready:
            pthread_cond_destroy(&self.gate.changed)
            pthread_mutex_destroy(&self.gate.mutex)

    @property
    def top(self) -> Volume:
        """The uppermost layer, or the backing volume when no layer is engaged."""
        return self.top_volume

    @property
    def read_only(self) -> bool:
        """Whether writes, zeroes and trims are answered with EPERM."""
        return self.refuses_writes

    @property
    def waiting_threads(self) -> int:
        """How many threads wait for the disk in place of connections, or have just done so."""
        return self.pool.threads + self.read_pool.threads + self.lookups.threads

    def set_top(self, top: Volume, timeout_s: float = SHUT_TIMEOUT_S) -> None:
        """Make `top` the uppermost layer, between two requests.

        Raises ValueError when its size differs, TimeoutError when the requests in flight have not
        ended in `timeout_s`; then nothing has changed. Not to be called by who has a request in
        flight here.
        """
        if top.size_bytes != self.size_bytes:
            raise ValueError(f"{self.name}: the new top has {top.size_bytes} bytes, "
                             f"the volume has {self.size_bytes}")
        self.wait_for_quiet(timeout_s)
        # Kept past the reopening: the old layer's destructor is not run with the gate shut.
        old = self.top_volume
        self.top_volume = top
        self.open_gate()
        del old

    def set_read_only(self, read_only: bool, timeout_s: float = SHUT_TIMEOUT_S) -> None:
        """Refuse or admit writes; when this returns no write let in before is in flight.

        Raises TimeoutError as `set_top` does.
        """
        self.wait_for_quiet(timeout_s)
        self.refuses_writes = read_only
        self.open_gate()

    def resize(self, size_bytes: int | None = None, timeout_s: float = SHUT_TIMEOUT_S) -> None:
        """Make the volume longer or shorter between two requests, its backing file durably so.

        None: as long as what is behind it has become. What lies past a new end is lost; requests
        that reach past it fail from then on. Raises OSError (EBUSY while a layer is engaged,
        EOPNOTSUPP where the backing cannot be resized, else what it says) and TimeoutError as
        `set_top` does; then the size is what it was. But where a flush fails after the end was cut
        off, the size is the new one: the volume has failed, and what was cut off does not return.
        """
        bottom = self.top_volume
        before = self.size_bytes
        found = bottom.lengthen(None)
        # Longer first and shorter last: the backing is never shorter than the volume.
        wanted = bottom.lengthen(found if size_bytes is None else size_bytes)
        try:
            self.set_size(bottom, wanted, timeout_s)
        except BaseException:
            # Only what was added here: what others have added is theirs.
            bottom.shorten(found)
            raise
        try:
            bottom.shorten(wanted)
        except OSError:
            self.set_size(bottom, min(before, max(wanted, bottom.lengthen(None))), timeout_s)
            raise

    def set_size(self, bottom: Volume, size_bytes: int, timeout_s: float) -> None:
        """Let requests reach so far, and no further, from the next one on."""
        self.wait_for_quiet(timeout_s)
        try:
            if self.top_volume is not bottom:
                raise OSError(PY_EBUSY, "a layer has been engaged meanwhile", self.name)
            if self.is_closed:
                raise OSError(PY_ESHUTDOWN, "the volume is closed", self.name)
            atomic_store(<int64_t *> &bottom.size_bytes, size_bytes)
            atomic_store(<int64_t *> &self.size_bytes, size_bytes)
        finally:
            self.open_gate()

    def close(self, timeout_s: float = SHUT_TIMEOUT_S) -> None:
        """Wait for the requests in flight and answer all later ones with ESHUTDOWN.

        After that the layers and the backing volume may be closed. Raises TimeoutError as
        `set_top` does. Closing again does nothing.
        """
        self.wait_for_quiet(timeout_s)
        self.is_closed = True
        self.open_gate()
        self.pool.close()
        self.read_pool.close()
        self.lookups.close()

    def wait_for_quiet(self, timeout_s: float) -> None:
        """Shut the gate; raise TimeoutError, with the gate open, if requests stay in flight."""
        cdef double seconds = timeout_s
        cdef int error
        with nogil:
            error = self.shut_gate(seconds)
        if error:
            raise TimeoutError(f"{self.name}: requests are still in flight after {timeout_s} s; "
                               "nothing was changed")

    cdef int shut_gate(self, double timeout_s) noexcept nogil:
        cdef timespec until
        cdef int64_t nanoseconds
        cdef int error = 0
        clock_gettime(CLOCK_MONOTONIC, &until)
        nanoseconds = until.tv_nsec + <int64_t> (timeout_s * NANOSECONDS_PER_S)
        until.tv_sec += nanoseconds // NANOSECONDS_PER_S
        until.tv_nsec = nanoseconds % NANOSECONDS_PER_S
        pthread_mutex_lock(&self.gate.mutex)
        # One change at a time: another one's shut gate is waited out first.
        while error == 0 and atomic_load(&self.gate.state) & GATE_SHUT:
            error = pthread_cond_clockwait(&self.gate.changed, &self.gate.mutex, CLOCK_MONOTONIC,
                                           &until)
        if error == 0:
            atomic_or(&self.gate.state, GATE_SHUT)
            while error == 0 and atomic_load(&self.gate.state) != GATE_SHUT:
                error = pthread_cond_clockwait(&self.gate.changed, &self.gate.mutex,
                                               CLOCK_MONOTONIC, &until)
            if error:
                atomic_and(&self.gate.state, ~GATE_SHUT)
                pthread_cond_broadcast(&self.gate.changed)
        pthread_mutex_unlock(&self.gate.mutex)
        return error

    cdef void open_gate(self) noexcept nogil:
        pthread_mutex_lock(&self.gate.mutex)
        atomic_and(&self.gate.state, ~GATE_SHUT)
        pthread_cond_broadcast(&self.gate.changed)
        pthread_mutex_unlock(&self.gate.mutex)

    cdef int submit(self, Io *io) noexcept nogil:
        cdef Passage *passage
        cdef int error
        enter_gate(&self.gate)
        if self.is_closed:
            leave_gate(&self.gate, WHOLE)
            return ESHUTDOWN
        if self.refuses_writes and io.op != IO_READ and io.op != IO_FLUSH:
            leave_gate(&self.gate, WHOLE)
            return EPERM
        # Its border checked it before the gate; the size may be another one since.
        if io.offset > self.size_bytes or io.length > self.size_bytes - io.offset:
            leave_gate(&self.gate, WHOLE)
            return ENOSPC if io.op == IO_WRITE or io.op == IO_ZERO else EINVAL
        passage = <Passage *> malloc(sizeof(Passage))
        if passage == NULL:
            leave_gate(&self.gate, WHOLE)
            return ENOMEM
        passage.io = io[0]
        passage.io.complete = passage_ended
        passage.io.owner = passage
        passage.outer = io
        passage.gate = &self.gate
        passage.io.flags |= IO_NOWAIT
        error = self.top_volume.submit(&passage.io)
        if error == EAGAIN:
            passage.io.flags &= ~IO_NOWAIT
            passage.top_volume = <void *> self.top_volume
            passage.item.run = run_passage
            passage.item.owner = passage
            if passage.io.op == IO_READ:
                self.read_pool.push(&passage.item)
            else:
                self.pool.push(&passage.item)
            return IO_PENDING
        if error == IO_PENDING:
            leave_gate(&self.gate, HALF)
        else:
            free(passage)
            leave_gate(&self.gate, WHOLE)
        return error

    cdef bint may_wait(self, const Io *io) noexcept nogil:
        return False

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        cdef int error
        enter_gate(&self.gate)
        if self.is_closed:
            error = ESHUTDOWN
        elif offset > self.size_bytes or length > self.size_bytes - offset:
            error = EINVAL
        else:
            error = self.top_volume.extent(offset, length, run_bytes, is_hole)
        leave_gate(&self.gate, WHOLE)
        return error
