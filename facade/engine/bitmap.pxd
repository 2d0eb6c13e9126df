# The change bitmap of one set on one side: one bit per block, in memory and on its volume.
#
# Guarantee: a bit that mark() has reported stable is on the device. The disk map is always a
# superset of what must be copied: sets are written through (group commit), clears are lazy.
#
# Lock order: while `lock` is held only the link sender's lock is taken, and stripes are tried. The
# layer reads and changes its own state (session, epoch, touched) under this same lock, so that a
# mark and the state it saw are one.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Volume

cdef enum:
    UNSTABLE_LIMIT = 256     # ranges set in memory and on their way to disk; more wait

cdef struct UnstableRange:
    uint64_t first           # blocks
    uint64_t last
    uint64_t ticket          # stable once Bitmap.done >= ticket

cdef class Bitmap:
    cdef readonly uint64_t size_bytes     # of the data volume
    cdef readonly uint32_t block_bytes
    cdef uint32_t block_shift
    cdef readonly uint64_t blocks
    cdef uint64_t words
    cdef uint64_t *bits                   # anonymous mapping, `words` long
    cdef uint64_t count                   # bits set; under lock
    cdef readonly Volume volume           # what holds it; its owner closes it
    cdef int failed                       # errno of the first failed write; under lock
    cdef bint memory_only                 # failure is on record elsewhere: marks need no disk
    cdef pthread_mutex_t lock
    cdef pthread_cond_t changed           # done, committing or unstable_count changed
    cdef uint64_t want                    # last ticket given
    cdef uint64_t done                    # every ticket <= done is on disk
    cdef bint committing
    cdef uint8_t *page_dirty              # a byte per 4096-byte page of bits: differs from disk
    cdef uint64_t pages
    cdef UnstableRange unstable[UNSTABLE_LIMIT]
    cdef int unstable_count
    cdef readonly uint64_t commits        # durable commits so far
    cdef public object header             # BitmapHeader last written or read, None before

    # Under lock. Sets the bits; 0 when all were stable already, else the ticket to wait for.
    cdef uint64_t mark_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Under lock. Whether mark_locked() would return 0 without waiting.
    cdef bint is_stable_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Without lock. 0 when the ticket is on disk (or memory_only), else errno.
    cdef int wait_stable(self, uint64_t ticket) noexcept nogil
    # Under lock. Clears bits; the disk follows with the next commit.
    cdef void clear_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Without lock. Every page that differs is on disk when it returns 0.
    cdef int commit(self) noexcept nogil
    cdef int _commit_locked(self) noexcept nogil
