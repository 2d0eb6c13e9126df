# The bottom of every stack: a backing file or block device through the page cache.
#
# With IO_NOWAIT: a read is done when the page cache has all of it. A write goes into the page cache
# at once until one was slow (the kernel makes writers wait when too much is dirty); for SLOW_MS
# after that it would wait. Flush, FUA, zero, trim and what is long always would, but for short ones
# on a file system in memory, where nothing waits.
from libc.stdint cimport int64_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io, Volume

cdef enum:
    INLINE_BYTES_MAX = 262144        # longer requests take long enough to hold up others
    SLOW_WRITE_NS = 1000000          # a write into the page cache that took longer was slow
    SLOW_MS = 100
    # After so many reads in a row that the page cache did not have, only one in COLD_PROBE asks it
    # first: the others would pay for the question, and the disk has work from all threads.
    COLD_READS_MIN = 64
    COLD_PROBE = 16

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
    cdef readonly bint is_in_memory   # tmpfs or ramfs: no request waits for a disk
    cdef int64_t refuses_nowait       # atomic; 1: preadv2(RWF_NOWAIT) does not work here
    cdef int64_t cold_reads           # atomic; in a row, not counting far
    cdef int64_t slow_until_ns        # atomic; monotonic clock: till then a write may wait
    cdef int64_t punch_state          # atomic; 1: a hole can be punched
    cdef int64_t zero_range_state     # atomic; 1: fallocate(ZERO_RANGE) works here
    cdef int64_t failed_state         # atomic; 1 for good once a flush has failed
    cdef FlushTurn turn
    cdef bint turn_ready              # turn's mutex and condition exist

    cdef int read_all(self, Io *io) noexcept nogil
    cdef int read_cached(self, Io *io) noexcept nogil
    cdef int write_timed(self, Io *io) noexcept nogil
    cdef int write_all(self, const void *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int zero_range(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil
    cdef int zero_fast(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil
    cdef int write_zeroes(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int make_durable(self) noexcept nogil
