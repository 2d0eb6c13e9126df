# One bit per block of a volume, in memory: what Bitmap keeps on a device and ChangeMap gives rules.
#
# Whoever changes many bits does it page by page and gives the lock up in between: a writer that
# wants the lock waits for one page (4096 bytes of bits), whatever the size of the volume.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from facade.engine.syscalls cimport pthread_mutex_t

cdef enum:
    PAGE_BYTES = 4096            # of bits: what is locked, copied and written at a time
    PAGE_WORDS = 512
    PAGE_BITS = 32768

cdef enum PageState:
    PAGE_SAME = 0        # the device has it
    PAGE_CLEARED = 1     # the device has bits too many: written when there is time
    PAGE_SET = 2         # the device lacks bits: the next commit writes it

cdef class BlockMap:
    cdef readonly uint64_t size_bytes     # of the data volume
    cdef readonly uint32_t block_bytes
    cdef uint32_t block_shift
    cdef readonly uint64_t blocks
    cdef uint64_t words                   # whole pages; bits past the last block are 0
    cdef uint64_t pages
    cdef uint64_t *bits                   # anonymous mapping: pages never touched take no memory
    cdef pthread_mutex_t lock
    # The four below change under lock.
    cdef uint64_t count                   # bits set
    cdef uint8_t *page_state              # PageState of each page
    cdef uint64_t bulk                    # number of the last change of many bits at once
    cdef uint64_t want                    # last ticket given: stable once Bitmap.done >= it
    cdef uint64_t bulk_ticket             # of the last change that set many bits; 0: none

    # Under lock: the device lacks the bits of `page` that were just set.
    cdef void note_set_locked(self, uint64_t page) noexcept nogil
    # Without lock: runs of set bits from `start` into `runs` as pairs (first, blocks), at most
    # `most`; returns how many, and where to go on in next_block.
    cdef uint64_t next_runs(self, uint64_t start, uint64_t *runs, uint64_t most,
                            uint64_t *next_block) noexcept nogil

    cdef uint64_t merge_page(self, uint64_t word, uint64_t end, const uint8_t *data) noexcept nogil
    cdef uint64_t recount(self) noexcept nogil

# A map of zeroes that takes no memory until it is written; munmap() ends it.
cdef uint64_t *new_map(uint64_t words) except NULL
