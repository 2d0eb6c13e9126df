# The bottom of every stack: a backing file or block device through the page cache.
from libc.stdint cimport int64_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io, Volume

# Flushes run one at a time and are shared: the kernel reports a failed write-back once per open
# file, so of two at once one could come back clean although its data was lost.
cdef struct FlushTurn:
    pthread_mutex_t mutex
    pthread_cond_t ended
    bint running
    uint64_t begun           # number of the last fdatasync begun
    uint64_t done            # number of the last one that ended


cdef class FileVolume(Volume):
    cdef int fd              # -1 when closed
    cdef readonly str path
    cdef readonly bint read_only
    cdef readonly bint is_device
    cdef readonly bint can_punch      # a hole can be punched: trim is worth advertising
    cdef bint can_zero_range          # fallocate(ZERO_RANGE) works here
    cdef int64_t failed_state         # atomic; 1 for good once a flush has failed
    cdef FlushTurn turn
    cdef bint turn_ready              # turn's mutex and condition exist

    cdef int read_all(self, Io *io) noexcept nogil
    cdef int write_all(self, const void *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int zero_range(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil
    cdef int zero_fast(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil
    cdef int write_zeroes(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int make_durable(self) noexcept nogil
