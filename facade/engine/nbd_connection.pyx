"""Requests in flight, buffers and socket of one NBD connection."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from facade.engine.nbd_buffers cimport (
    CHUNK_BYTES,
    chunk_forget,
    pool_drop,
    pool_release,
    pool_take,
    pool_wait,
)
from facade.engine.nbd_outbox cimport (
    REQUESTS_MAX,
    SEND_TICK_S,
    outbox_await_input,
    outbox_destroy,
    outbox_has_unsent,
    outbox_init,
    outbox_returned,
    outbox_send,
    outbox_wait,
    pace_kept,
    request_completed,
)
from facade.engine.nbd_transport cimport transport_has_part, transport_release, wire_receive
from facade.engine.nbd_wire cimport (
    NBD_CHUNK_BYTES,
    NBD_DATA_PREFIX_BYTES,
    NBD_EXTENDED_CHUNK_BYTES,
    NBD_EXTENDED_REQUEST_BYTES,
    NBD_REQUEST_BYTES,
    NBD_SIMPLE_REPLY_BYTES,
)
from facade.engine.syscalls cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MSG_DONTWAIT,
    MSG_WAITALL,
    PROT_READ,
    PROT_WRITE,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    SOL_SOCKET,
    CLOCK_MONOTONIC,
    atomic_load,
    clock_gettime,
    madvise,
    mmap,
    munmap,
    setsockopt,
    timespec,
    timeval,
)

cdef enum:
    SPIN_NS = 30000               # how long the next request is asked for before sleeping
    SPIN_MISSES_MAX = 4           # so often in vain, and ...
    SPIN_REST = 32                # ... so many waits sleep at once before it is tried again
    NANOSECONDS_PER_S = 1000000000
    # Room that receiving always has: a header and the largest write without a chunk of its own.
    INPUT_ROOM_BYTES = INLINE_BYTES_MAX + NBD_EXTENDED_REQUEST_BYTES


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * NANOSECONDS_PER_S + now.tv_nsec


cdef class Connection:
    """What every NBD connection has; `Transmission` gives the requests their meaning.

    Memory is there only while it is used: nothing before the first request, nothing but the kept
    mappings after IDLE_RELEASE_S of silence.
    """

    def __cinit__(self) -> None:
        memset(&self.pool, 0, sizeof(self.pool))
        memset(&self.batch, 0, sizeof(self.batch))
        memset(&self.pace, 0, sizeof(self.pace))
        self.requests_at = NULL
        self.free_requests = NULL
        self.input = NULL
        self.output = NULL

    def __init__(self, fd: int, leftover: bytes, is_structured: bool = False,
                 is_extended: bool = False, session: TlsSession | None = None) -> None:
        cdef size_t length = len(leftover)
        cdef const uint8_t *data = leftover
        cdef timeval limit
        if length > INLINE_BYTES_MAX:
            raise ValueError(f"{length} bytes left over from the handshake; "
                             f"at most {INLINE_BYTES_MAX}")
        self.fd = fd
        self.is_structured = is_structured or is_extended
        self.is_extended = is_extended
        self.request_bytes = NBD_EXTENDED_REQUEST_BYTES if is_extended else NBD_REQUEST_BYTES
        if is_extended:
            self.read_head_bytes = NBD_EXTENDED_CHUNK_BYTES + NBD_DATA_PREFIX_BYTES
        elif is_structured:
            self.read_head_bytes = NBD_CHUNK_BYTES + NBD_DATA_PREFIX_BYTES
        else:
            self.read_head_bytes = NBD_SIMPLE_REPLY_BYTES
        self.session = session
        self.transport = NULL if session is None else &self.session.transport
        outbox_init(&self.outbox, fd, self.transport)
        self.outbox_ready = True
        limit.tv_sec = SEND_TICK_S
        limit.tv_usec = 0
        setsockopt(self.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))
        if length:
            self.input = pool_take(&self.pool, CHUNK_BYTES)
            if self.input == NULL:
                raise MemoryError
            memcpy(self.input.data, data, length)
            self.input_end = length

    def __dealloc__(self) -> None:
        pool_drop(&self.pool, self.input)
        pool_drop(&self.pool, self.output)
        pool_release(&self.pool)
        if self.requests_at != NULL:
            munmap(self.requests_at, REQUESTS_MAX * sizeof(Request))
        if self.outbox_ready:
            outbox_destroy(&self.outbox)

    cdef Request *new_request(self) noexcept nogil:
        cdef Request *request
        cdef void *memory
        if self.requests_at == NULL:
            memory = mmap(NULL, REQUESTS_MAX * sizeof(Request), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if memory == MAP_FAILED:
                return NULL
            self.requests_at = <Request *> memory
        while self.free_requests == NULL and self.begun_requests == REQUESTS_MAX:
            if self.wait_for_room(0) != GO_ON:
                return NULL
        if self.free_requests != NULL:
            request = self.free_requests
            self.free_requests = request.next
        else:
            request = &self.requests_at[self.begun_requests]
            self.begun_requests += 1
        self.used_requests += 1
        request.outbox = &self.outbox
        request.io.complete = request_completed
        request.io.owner = request
        request.left_bytes = 0
        request.wants_flush = False
        request.is_structured = self.is_structured
        request.is_extended = self.is_extended
        request.is_read = False
        request.head_room = False
        request.is_laid_out = False
        request.why = NULL
        request.layout = NULL
        request.payload = NULL
        request.reply = NULL
        return request

    cdef Chunk *new_chunk(self, size_t size_bytes) noexcept nogil:
        cdef Chunk *chunk = pool_take(&self.pool, size_bytes)
        while chunk == NULL:
            if self.wait_for_room(size_bytes) != GO_ON:
                return NULL
            chunk = pool_take(&self.pool, size_bytes)
        return chunk

    # Small reads lie side by side, each after room for its head, so that a batch of them is sent
    # as one piece; large ones have their own chunk.
    cdef bint give_read_buffer(self, Request *request) noexcept nogil:
        cdef size_t needed = self.read_head_bytes + request.io.length
        if request.io.length > INLINE_BYTES_MAX:
            request.reply = self.new_chunk(request.io.length)
            if request.reply == NULL:
                return False
            request.io.data = request.reply.data
            return True
        if self.output != NULL and self.output.size_bytes - self.output_end < needed:
            if self.send_batch() != GO_ON:
                return False
            if self.output.size_bytes - self.output_end < needed:
                pool_drop(&self.pool, self.output)
                self.output = NULL
        if self.output == NULL:
            self.output = self.new_chunk(CHUNK_BYTES)
            self.output_end = 0
            if self.output == NULL:
                return False
        request.io.data = self.output.data + self.output_end + self.read_head_bytes
        request.head_room = True
        request.reply = self.output
        self.output.users += 1
        self.output_end += needed
        return True

    # Back-pressure: nothing is read from the client until a request has been answered or, with none
    # in flight, until other connections have given memory back.
    cdef Step wait_for_room(self, size_t wanted_bytes) noexcept nogil:
        cdef int before = self.used_requests
        if self.send_batch() != GO_ON:
            return CONNECTION_LOST
        if self.used_requests == before:
            while outbox_wait(&self.outbox, self.submitted, False):
                self.go_on_with_long()
            self.reclaim()
        if self.used_requests == before and not pool_wait(&self.pool, wanted_bytes):
            return CONNECTION_LOST
        return GO_ON

    cdef Step send_batch(self) noexcept nogil:
        return self.flush_outbox() if self.batch.first != NULL else GO_ON

    cdef Step flush_outbox(self) noexcept nogil:
        cdef int error = outbox_send(&self.outbox, &self.batch)
        self.batch_bytes = 0
        self.reclaim()
        return GO_ON if error == 0 else CONNECTION_LOST

    cdef void reclaim(self) noexcept nogil:
        cdef Request *request = outbox_returned(&self.outbox)
        cdef Request *following
        while request != NULL:
            following = request.next
            pool_drop(&self.pool, request.payload)
            pool_drop(&self.pool, request.reply)
            if request.layout != NULL:
                free(request.layout)
            request.next = self.free_requests
            self.free_requests = request
            self.used_requests -= 1
            request = following
        if self.output != NULL and self.output.users == 1:
            self.output_end = 0

    cdef Step fill_input(self, size_t most) noexcept nogil:
        cdef ssize_t count
        cdef bint is_within
        if not self.make_input_room():
            return CONNECTION_LOST
        is_within = self.input_end > self.input_start
        count = self.receive(self.input.data + self.input_end,
                             min(most, self.input.size_bytes - self.input_end), is_within, False)
        if count > 0:
            self.input_end += count
            return GO_ON
        return CLIENT_LEFT if count == 0 and not is_within else CONNECTION_LOST

    # Room for a header and an inline payload, without moving data that a request still uses.
    cdef bint make_input_room(self) noexcept nogil:
        cdef size_t left = self.input_end - self.input_start
        cdef Chunk *old = self.input
        if self.used_requests:
            self.reclaim()
        if old == NULL:
            self.input = self.new_chunk(CHUNK_BYTES)
            return self.input != NULL
        if left == 0 and old.users == 1:
            self.input_start = self.input_end = 0
        if old.size_bytes - self.input_start >= INPUT_ROOM_BYTES:
            return True
        if old.users == 1:
            memmove(old.data, old.data + self.input_start, left)
        else:
            self.input = self.new_chunk(CHUNK_BYTES)
            if self.input == NULL:
                self.input = old
                return False
            memcpy(self.input.data, old.data + self.input_start, left)
            pool_drop(&self.pool, old)
        self.input_start = 0
        self.input_end = left
        return True

    cdef ssize_t receive(self, uint8_t *data, size_t room, bint is_within,
                         bint is_whole) noexcept nogil:
        cdef ssize_t count
        cdef bint is_busy
        if not self.is_timed:
            self.set_timed(True)
        while True:
            # While replies wait for the client, requests are taken all the same: the volume has
            # something to do meanwhile.
            is_busy = (atomic_load(&self.outbox.completed) != self.submitted
                       or outbox_has_unsent(&self.outbox))
            if is_busy:
                count = wire_receive(self.transport, self.fd, data, room, MSG_DONTWAIT)
            elif is_whole:
                count = wire_receive(self.transport, self.fd, data, room, MSG_WAITALL)
            else:
                count = self.receive_soon(data, room)
                if count < 0 and errno == EAGAIN:
                    count = wire_receive(self.transport, self.fd, data, room, 0)
            if count >= 0:
                return count if not is_within or pace_kept(&self.pace, count) else -1
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                return -1
            if is_busy:
                count = outbox_await_input(&self.outbox, IDLE_RELEASE_S * 1000)
                if count > 0:
                    self.go_on_with_long()
                    continue
                if count < 0:
                    return -1
            if is_within or (self.transport != NULL and transport_has_part(self.transport)):
                if not pace_kept(&self.pace, 0):
                    return -1
                continue
            self.pace.since_ms = 0
            self.pace.bytes = 0
            if not is_busy:
                self.release_idle()
                self.set_timed(False)

    # A client that waits for our answer sends its next request within microseconds: asking again
    # for so long costs less than being put to sleep and woken. Only while it has paid of late.
    cdef ssize_t receive_soon(self, uint8_t *data, size_t room) noexcept nogil:
        cdef ssize_t count = wire_receive(self.transport, self.fd, data, room, MSG_DONTWAIT)
        cdef int64_t until
        if count >= 0 or errno != EAGAIN:
            return count
        if self.spin_rest:
            self.spin_rest -= 1
            return count
        until = now_ns() + SPIN_NS
        while count < 0 and errno == EAGAIN and now_ns() < until:
            count = wire_receive(self.transport, self.fd, data, room, MSG_DONTWAIT)
        if count > 0:
            self.spin_misses = 0
        elif self.spin_misses < SPIN_MISSES_MAX:
            self.spin_misses += 1
        else:
            self.spin_rest = SPIN_REST
        return count

    cdef void set_timed(self, bint is_timed) noexcept nogil:
        cdef timeval limit
        limit.tv_sec = IDLE_RELEASE_S if is_timed else 0
        limit.tv_usec = 0
        setsockopt(self.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
        self.is_timed = is_timed

    # Between two requests, with none in flight: no buffer holds anything. Addresses stay valid.
    cdef void release_idle(self) noexcept nogil:
        self.reclaim()
        pool_drop(&self.pool, self.output)
        self.output = NULL
        pool_release(&self.pool)
        if self.transport != NULL:
            transport_release(self.transport)
        if self.input != NULL:
            chunk_forget(self.input)
        if self.requests_at != NULL and self.used_requests == 0:
            madvise(self.requests_at, REQUESTS_MAX * sizeof(Request), MADV_DONTNEED)
            self.free_requests = NULL
            self.begun_requests = 0

    cdef void drain(self) noexcept nogil:
        self.is_draining = True
        self.send_batch()
        while outbox_wait(&self.outbox, self.submitted, True):
            self.go_on_with_long()
        self.reclaim()

    cdef void go_on_with_long(self) noexcept nogil:
        pass
