# A layer that makes trouble to order: requests fail, wait, or end on another thread.
from libc.stdint cimport int64_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io, Volume

cdef enum:
    FAULTS_MAX = 16          # orders that may be open at a time
    TORN_SECTOR_BYTES = 512

cdef enum FaultKind:
    FAULT_FAIL = 0           # answered with `error`, not run
    FAULT_SHORT = 1          # the first `size_bytes` of a write are written, then `error`
    FAULT_TORN = 2           # sectors of a write taken at random are written, then `error`
    FAULT_DELAY = 3          # run `delay_us` later

# An order: of the requests of kind `op` (any, when negative), let `skip` pass, then hit `times`.
# Every order counts every request, whatever the others do with it.
cdef struct Fault:
    int op
    uint64_t skip
    uint64_t times           # 0: this order is free to be used
    FaultKind kind
    int error
    uint64_t size_bytes
    uint64_t delay_us

# What the orders say of one request.
cdef struct Verdict:
    FaultKind kind
    int error                # 0: it is run
    uint64_t size_bytes
    uint64_t delay_us
    uint64_t dice            # for the sectors of a torn one

cdef struct Held:
    Io *io
    Verdict verdict
    Held *next


cdef class FaultVolume(Volume):
    cdef Volume lower
    cdef bint is_async               # requests end on the layer's own thread
    cdef object worker               # that thread, or None
    cdef pthread_mutex_t mutex       # guards what follows
    cdef pthread_cond_t changed
    cdef bint ready                  # mutex and condition exist
    cdef bint is_holding             # the thread touches no request
    cdef bint is_ending
    cdef uint64_t delay_us           # before each request on the layer's thread
    cdef uint64_t held_count
    cdef Held *first
    cdef Held *last
    cdef Fault[FAULTS_MAX] faults
    cdef uint64_t hit_count          # requests that an order has hit
    cdef uint64_t seed               # of torn writes

    cdef Verdict judge(self, Io *io) noexcept nogil
    cdef int hold_back(self, Io *io, Verdict verdict) noexcept nogil
    cdef int carry_out(self, Io *io, Verdict verdict) noexcept nogil
    cdef int write_part(self, Io *io, uint64_t first, uint64_t length) noexcept nogil
    cdef void serve_held(self) noexcept nogil
