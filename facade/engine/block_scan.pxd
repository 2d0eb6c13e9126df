# Jobs that read ranges and tell about their blocks: which differ, which are zero, their digests.

from libc.stdint cimport uint8_t, uint64_t

from facade.engine.block_job cimport BlockJob, Worker
from facade.engine.keyed_digest cimport SEED_BYTES

cdef enum:
    DIGESTS_MAX = 1 << 22          # of one job: 64 MiB of them, 16 GiB of data in 4 KiB pieces


# Leaves one bit per block of the left range; the last block may be short.
cdef class BlockMapJob(BlockJob):
    cdef readonly uint64_t block_bytes
    cdef readonly uint64_t blocks
    cdef int shift
    cdef uint64_t words
    cdef uint64_t *map             # one bit a block; a subclass says what a set one means

    cdef object set_blocks(self, object block_bytes)
    cdef bint skip_marked(self, uint64_t at, uint64_t end, uint64_t *length) noexcept nogil


cdef class CompareJob(BlockMapJob):
    cdef int compare_piece(self, Worker *worker, uint64_t at, uint64_t length, bint left_hole,
                           bint right_hole) noexcept nogil


cdef class ZeroScanJob(BlockMapJob):
    pass


cdef class DigestJob(BlockJob):
    cdef readonly uint64_t piece_bytes
    cdef readonly uint64_t pieces
    cdef uint8_t[SEED_BYTES] seed
    cdef uint8_t *found            # DIGEST_BYTES a piece

    cdef int digest_hole(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil
    cdef int digest_data(self, Worker *worker, const uint8_t *data, uint64_t at,
                         uint64_t length) noexcept nogil
