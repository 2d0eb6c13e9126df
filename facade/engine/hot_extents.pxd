# The extents of a bitmap that are hot: the device has every bit of them set, memory the exact ones.
#
# A write inside a hot extent finds its bit on the device already and needs no access to it. All of
# this is state of one Bitmap, read and changed under its lock.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    EXTENT_BYTES = 4 << 20       # of the data volume; at least one word of bits
    HOT_EXTENTS_MAX = 1024       # 4 GiB: what a crash can make dirty without need
    HOT_EXTENTS_MIN = 64         # where blocks are so large that 64 of them are an extent
    EVICT_SHARE = 16             # past the limit, 1/16 of it is closed at once
    AHEAD_EXTENTS = 8            # opened together behind a hot one: a writer comes along

cdef class HotExtents:
    cdef uint64_t extents
    cdef uint64_t limit
    cdef uint32_t block_shift    # an extent is 1 << block_shift blocks: whole words within a page
    cdef uint64_t *hot           # a bit per extent
    cdef uint64_t *used          # the same: marked since the last look for idle ones
    cdef uint64_t words          # of each
    cdef uint64_t count          # hot ones
    cdef uint64_t hand           # where the next eviction begins to look

    cdef bint are_hot(self, uint64_t first, uint64_t last) noexcept nogil
    cdef void use(self, uint64_t first, uint64_t last) noexcept nogil
    cdef void open(self, uint64_t extent) noexcept nogil
    cdef void close(self, uint64_t extent) noexcept nogil
    cdef void close_all(self) noexcept nogil
    # The next hot extent in start..stop-1; `stop` when there is none.
    cdef uint64_t next_hot(self, uint64_t start, uint64_t stop) noexcept nogil
    # The next one to give up, the least used first as far as `used` can tell; `extents` when none
    # is hot.
    cdef uint64_t next_victim(self) noexcept nogil
    # Whether `extent` was used since this was last asked.
    cdef bint was_used(self, uint64_t extent) noexcept nogil
