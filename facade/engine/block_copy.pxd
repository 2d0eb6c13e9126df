# The job that copies a range from one volume to another and keeps its holes.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from facade.engine.block_job cimport BlockJob, Worker

cdef enum:
    KNOWN_ZERO_SHIFT = 12          # into zeroes: each 4 KiB of zeroes is left out
    ZERO_RUN_SHIFT = 16            # else 64 KiB: for less, zeroing costs more than writing


cdef class CopyJob(BlockJob):
    cdef readonly bint target_is_zero
    cdef readonly bint durable
    cdef int shift                 # of the granule in which zeroes are looked for, in the target
    cdef int64_t written_count     # atomic, as the others; bytes
    cdef int64_t zeroed_count
    cdef int64_t skipped_count

    cdef int write_piece(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil
    cdef int make_zero(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil
