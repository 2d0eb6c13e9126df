"""Faults to order, as a layer over the real thing: for tests, and for users' trials."""

import threading

from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from facade.engine.syscalls cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    usleep,
)
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_NOWAIT,
    IO_PENDING,
    IO_READ,
    IO_TRIM,
    IO_WRITE,
    IO_ZERO,
)

from facade.contract.fault_script import FaultOrder

OPERATIONS = {"any": -1, "read": IO_READ, "write": IO_WRITE, "zero": IO_ZERO, "trim": IO_TRIM,
              "flush": IO_FLUSH}
KINDS = {"fail": FAULT_FAIL, "short": FAULT_SHORT, "torn": FAULT_TORN, "delay": FAULT_DELAY}


cdef inline uint64_t next_dice(uint64_t dice) noexcept nogil:
    return dice * <uint64_t> 0x5851F42D4C957F2D + <uint64_t> 0x14057B7EF767814F


cdef class FaultVolume(Volume):
    """Passes requests on to `lower`, but for the faults that were ordered.

    Each order counts the requests of its kind from the moment it was given. With `is_async` every
    request is pending and ends on the layer's own thread, in order, where it
    can be delayed and held. `close` first lets go of what is held.
    """

    def __cinit__(self) -> None:
        memset(&self.faults[0], 0, sizeof(self.faults))
        self.first = NULL
        self.last = NULL
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.changed, NULL)
        self.ready = True

    def __init__(self, lower: Volume, is_async: bool = False, delay_us: int = 0) -> None:
        self.lower = lower
        self.size_bytes = lower.size_bytes
        self.name = lower.name
        self.is_async = is_async
        self.delay_us = delay_us
        if is_async:
            self.worker = threading.Thread(target=self.work, name="fault-volume", daemon=True)
            self.worker.start()

    def __dealloc__(self) -> None:
        if self.ready:
            pthread_cond_destroy(&self.changed)
            pthread_mutex_destroy(&self.mutex)

    @property
    def held(self) -> int:
        """Number of requests that the layer's thread has not begun."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.mutex)
            count = self.held_count
            pthread_mutex_unlock(&self.mutex)
        return count

    @property
    def hits(self) -> int:
        """Number of requests that failed, were cut short or were delayed by order."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.mutex)
            count = self.hit_count
            pthread_mutex_unlock(&self.mutex)
        return count

    def fail(self, operation: str, error: int, skip: int = 0, times: int = 1) -> None:
        """Answer requests with `error` instead of running them.

        `operation` is read, write, zero, trim, flush or any; the first `skip` of them pass, the
        next `times` fail. Raises ValueError when FAULTS_MAX orders are open.
        """
        self.order(FaultOrder(operation, skip + 1, skip + times, "fail", error))

    def order(self, order: FaultOrder) -> None:
        """Take an order; it counts requests from now on.

        Raises ValueError when FAULTS_MAX orders are open.
        """
        cdef Fault wanted
        cdef int index
        cdef bint is_placed = False
        wanted.op = OPERATIONS[order.operation]
        wanted.skip = order.first - 1
        wanted.times = order.last - order.first + 1 if order.last else UINT64_MAX
        wanted.kind = KINDS[order.kind]
        wanted.error = order.error
        wanted.size_bytes = order.size_bytes
        wanted.delay_us = order.delay_us
        pthread_mutex_lock(&self.mutex)
        for index in range(FAULTS_MAX):
            if not is_placed and self.faults[index].times == 0:
                self.faults[index] = wanted
                is_placed = True
        pthread_mutex_unlock(&self.mutex)
        if not is_placed:
            raise ValueError(f"{FAULTS_MAX} faults are ordered already (the limit)")

    def hold(self) -> None:
        """Keep requests pending until `release`. Only for a layer that is async."""
        if not self.is_async:
            raise ValueError("only an async layer can hold requests")
        self.set_holding(True)

    def release(self) -> None:
        """Run what was held, and later requests as they come."""
        self.set_holding(False)

    def close(self) -> None:
        """End the layer's thread once it has run all requests; none may be submitted after."""
        self.set_holding(False)
        pthread_mutex_lock(&self.mutex)
        self.is_ending = True
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)
        if self.worker is not None:
            self.worker.join()
            self.worker = None

    def work(self) -> None:
        """Run held requests until `close`; the layer's own thread does this."""
        with nogil:
            self.serve_held()

    def set_holding(self, is_holding: bool) -> None:
        """Hold or release."""
        pthread_mutex_lock(&self.mutex)
        self.is_holding = is_holding
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)

    cdef int submit(self, Io *io) noexcept nogil:
        cdef Verdict verdict
        cdef int error = 0
        # A fault counts a request once: where it may wait it is not the first of two attempts.
        if io.flags & IO_NOWAIT:
            if not self.is_async:
                return EAGAIN
            io.flags &= ~IO_NOWAIT
        pthread_mutex_lock(&self.mutex)
        verdict = self.judge(io)
        if self.is_async:
            error = self.hold_back(io, verdict)
        pthread_mutex_unlock(&self.mutex)
        return error if self.is_async else self.carry_out(io, verdict)

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        return self.lower.extent(offset, length, run_bytes, is_hole)

    cdef Verdict judge(self, Io *io) noexcept nogil:
        cdef Verdict verdict
        cdef Fault *fault
        cdef int index
        cdef bint is_hit = False
        memset(&verdict, 0, sizeof(verdict))
        for index in range(FAULTS_MAX):
            fault = &self.faults[index]
            if fault.times == 0 or (fault.op >= 0 and fault.op != io.op):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times != UINT64_MAX:
                fault.times -= 1
            is_hit = True
            if fault.kind == FAULT_DELAY:
                verdict.delay_us += fault.delay_us
            elif verdict.error == 0:
                verdict.kind = fault.kind
                verdict.error = fault.error
                verdict.size_bytes = fault.size_bytes
        if is_hit:
            self.hit_count += 1
            self.seed = next_dice(self.seed)
            verdict.dice = self.seed
        return verdict

    cdef int carry_out(self, Io *io, Verdict verdict) noexcept nogil:
        cdef uint64_t at = 0
        cdef uint64_t dice = verdict.dice
        if verdict.delay_us:
            usleep(<unsigned int> verdict.delay_us)
        if verdict.error == 0:
            return self.lower.submit(io)
        if verdict.kind == FAULT_SHORT and verdict.size_bytes:
            self.write_part(io, 0, verdict.size_bytes)
        elif verdict.kind == FAULT_TORN:
            while at < io.length:
                dice = next_dice(dice)
                if dice >> 63:
                    self.write_part(io, at, TORN_SECTOR_BYTES)
                at += TORN_SECTOR_BYTES
        return verdict.error

    # What becomes of it nobody is told: the request fails in any case.
    cdef int write_part(self, Io *io, uint64_t first, uint64_t length) noexcept nogil:
        cdef Io part = io[0]
        part.offset += first
        part.data += first
        part.length = min(length, io.length - first)
        return self.lower.run(&part)

    cdef int hold_back(self, Io *io, Verdict verdict) noexcept nogil:
        cdef Held *held = <Held *> malloc(sizeof(Held))
        if held == NULL:
            return ENOMEM
        held.io = io
        held.verdict = verdict
        held.next = NULL
        if self.first == NULL:
            self.first = held
        else:
            self.last.next = held
        self.last = held
        self.held_count += 1
        pthread_cond_broadcast(&self.changed)
        return IO_PENDING

    cdef void serve_held(self) noexcept nogil:
        cdef Held *held
        cdef int error
        pthread_mutex_lock(&self.mutex)
        while True:
            while self.is_holding or (self.first == NULL and not self.is_ending):
                pthread_cond_wait(&self.changed, &self.mutex)
            if self.first == NULL:
                break
            held = self.first
            self.first = held.next
            self.held_count -= 1
            pthread_mutex_unlock(&self.mutex)
            if self.delay_us:
                usleep(self.delay_us)
            error = self.carry_out(held.io, held.verdict)
            if error != IO_PENDING:
                held.io.complete(held.io, error)
            free(held)
            pthread_mutex_lock(&self.mutex)
        pthread_mutex_unlock(&self.mutex)
