"""Which extents are hot: a bit each, and which of them are in use."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from facade.engine.bits cimport bits_all, bits_clear, bits_next, bits_set

cdef enum:
    WORD_BITS = 64


cdef class HotExtents:
    """The hot extents of a bitmap of `blocks` blocks of `block_bytes`; none at first."""

    def __cinit__(self, uint64_t blocks, uint32_t block_bytes):
        cdef uint64_t extent_blocks = max(EXTENT_BYTES // block_bytes, <uint64_t> WORD_BITS)
        self.block_shift = (<object> extent_blocks).bit_length() - 1
        self.extents = (blocks - 1 >> self.block_shift) + 1
        self.limit = max(<uint64_t> HOT_EXTENTS_MAX * EXTENT_BYTES // (extent_blocks * block_bytes),
                         <uint64_t> HOT_EXTENTS_MIN)
        self.words = (self.extents - 1) // WORD_BITS + 1
        self.hot = <uint64_t *> calloc(self.words, 8)
        self.used = <uint64_t *> calloc(self.words, 8)
        if self.hot == NULL or self.used == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.hot)
        free(self.used)

    cdef bint are_hot(self, uint64_t first, uint64_t last) noexcept nogil:
        return bits_all(self.hot, first, last)

    cdef void use(self, uint64_t first, uint64_t last) noexcept nogil:
        bits_set(self.used, first, last)

    cdef void open(self, uint64_t extent) noexcept nogil:
        self.count += bits_set(self.hot, extent, extent)
        bits_set(self.used, extent, extent)

    cdef void close(self, uint64_t extent) noexcept nogil:
        self.count -= bits_clear(self.hot, extent, extent)
        bits_clear(self.used, extent, extent)

    cdef void close_all(self) noexcept nogil:
        memset(self.hot, 0, self.words * 8)
        memset(self.used, 0, self.words * 8)
        self.count = 0

    cdef uint64_t next_hot(self, uint64_t start, uint64_t stop) noexcept nogil:
        return bits_next(self.hot, start, min(stop, self.extents), 1)

    cdef bint was_used(self, uint64_t extent) noexcept nogil:
        return bits_clear(self.used, extent, extent) == 1

    # A hand goes round: who was used since it last came by stays, and counts as unused from now
    # on. The second round at the latest finds one.
    cdef uint64_t next_victim(self) noexcept nogil:
        cdef uint64_t at
        if self.count == 0:
            return self.extents
        while True:
            at = self.next_hot(self.hand, self.extents)
            self.hand = at + 1 if at < self.extents else 0
            if at < self.extents and not self.was_used(at):
                return at
