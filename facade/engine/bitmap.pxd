# The change bitmap of one set on one side: one bit per block, in memory and on its volume.
#
# Guarantee: a bit that mark() has reported stable is on the device. The disk map is always a
# superset of what must be copied: sets are written through (group commit), clears are lazy, and of
# hot extents (hot_extents.pxd) the device has every bit set.
#
# Lock order: while `lock` is held only the link sender's lock is taken, and stripes are tried. The
# layer reads and changes its own state (session, epoch, touched) under this same lock, so that a
# mark and the state it saw are one.

from libc.stdint cimport uint8_t, uint64_t

from facade.engine.block_map cimport BlockMap
from facade.engine.hot_extents cimport HotExtents
from facade.engine.syscalls cimport pthread_cond_t
from facade.engine.volume cimport Io, Volume

cdef enum:
    UNSTABLE_LIMIT = 256     # ranges set in memory and on their way to disk; more wait
    COMMIT_PAGES = 16        # neighbouring pages that are written in one request

cdef struct UnstableRange:
    uint64_t first           # blocks
    uint64_t last
    uint64_t ticket          # stable once Bitmap.done >= ticket

cdef class Bitmap(BlockMap):
    cdef readonly Volume volume           # what holds it; its owner closes it
    cdef HotExtents hot
    cdef uint64_t *scratch                # COMMIT_PAGES pages; the committer's
    cdef pthread_cond_t changed           # done, committing or unstable_count changed
    # All below change under lock.
    cdef int failed                       # errno of the first failed write
    cdef bint closed                      # no I/O any more
    cdef bint memory_only                 # failure is on record elsewhere: marks need no disk
    cdef uint64_t done                    # every ticket <= done is on disk
    cdef bint committing                  # by one thread at a time, which gives up the lock
    cdef UnstableRange[UNSTABLE_LIMIT] unstable
    cdef int unstable_count
    cdef uint64_t commit_count            # durable commits so far
    cdef public object header             # BitmapHeader last written or read, None before

    # Under lock. Sets the bits; 0 when all were stable already, else the ticket to wait for.
    cdef uint64_t mark_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Under lock. Whether mark_locked() would return 0 without waiting.
    cdef bint is_stable_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Without lock. 0 when the ticket is on disk (or memory_only), else errno.
    cdef int wait_stable(self, uint64_t ticket) noexcept nogil
    # Under lock. Clears bits; the disk follows with the next full commit.
    cdef void clear_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Under lock. Bits of these blocks (of one extent) were cleared: the disk may have too many.
    cdef void note_cleared_locked(self, uint64_t block) noexcept nogil
    # Without lock. Every page that differs is on disk when it returns 0; else errno.
    cdef int commit(self) noexcept nogil

    cdef uint64_t ticket_of(self, uint64_t first, uint64_t last) noexcept nogil
    cdef bint open_locked(self, uint64_t first, uint64_t last,
                          uint64_t *opened_last) noexcept nogil
    cdef uint64_t open_extent(self, uint64_t extent) noexcept nogil
    cdef void close_extent(self, uint64_t extent, uint8_t state) noexcept nogil
    cdef int commit_locked(self, uint8_t least) noexcept nogil
    cdef int write_pages(self, uint8_t least) noexcept nogil
    cdef uint64_t copy_pages(self, uint64_t page, uint8_t least) noexcept nogil
    cdef int run_io(self, uint8_t op, uint64_t offset, uint64_t length) noexcept nogil
    cdef void forget_stable(self) noexcept nogil
