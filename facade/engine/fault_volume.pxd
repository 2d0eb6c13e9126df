# A layer that makes trouble to order: requests fail, wait, or end on another thread.
from libc.stdint cimport int64_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io, Volume

cdef enum:
    FAULTS_MAX = 16          # orders to fail that may be open at a time

# An order: of the requests of kind `op` (any, when negative), let `skip` pass, fail `times`.
cdef struct Fault:
    int op
    uint64_t skip
    uint64_t times           # 0: this order is free to be used
    int error

cdef struct Held:
    Io *io
    int error                # what it ends with instead of being run, or 0
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

    cdef int pick_fault(self, Io *io) noexcept nogil
    cdef int hold_back(self, Io *io, int error) noexcept nogil
    cdef void serve_held(self) noexcept nogil
