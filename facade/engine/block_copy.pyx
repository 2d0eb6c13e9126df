"""Copying a range between volumes, holes kept. Guarantees: docs/blocks.md."""

from libc.stdint cimport uint64_t

from facade.engine.block_job cimport (
    CHUNK_BYTES,
    LEFT,
    PIECE_BYTES,
    RIGHT,
    STEP_FLUSH,
    STEP_WRITE,
    STEP_ZERO,
    STOPPED,
    BlockJob,
    Worker,
)
from facade.engine.block_kernels cimport alike_bytes
from facade.engine.syscalls cimport atomic_add, atomic_load
from facade.engine.volume cimport IO_FLUSH, IO_WRITE, IO_ZERO, Volume


cdef class CopyJob(BlockJob):
    """Makes `length` bytes of `target` at `target_offset` equal to those of `source`.

    `length` None: to the end of the source. Holes of the source are not read; what is zero there
    is zeroed in the target (which may punch a hole) or left alone where the target has a hole. With
    `target_is_zero` the caller vouches that the target's range reads as zeroes, and nothing is ever
    zeroed. With `durable` the target is flushed before `run` returns.

    Where nobody writes the ranges are equal afterwards. Of a source written meanwhile each piece is
    as it was when it was read; whoever writes to the target's range meanwhile may lose that write.
    A job that failed or was cancelled has copied some pieces and left the others as they were.
    Raises ValueError for ranges that cannot be, or that overlap in one volume.
    """

    def __init__(self, source: Volume, target: Volume, source_offset: int = 0,
                 target_offset: int = 0, length: int | None = None, target_is_zero: bool = False,
                 durable: bool = True, threads: int | None = None) -> None:
        self.set_ranges(source, source_offset, target, target_offset, length, threads)
        if source is target and abs(source_offset - target_offset) < self.total_bytes:
            raise ValueError(f"source and target overlap in {source.name}; copy less at a time, or "
                             "to another volume first")
        # Chunks and granules end where the target's own blocks do.
        self.skew = target_offset % CHUNK_BYTES
        self.target_is_zero = target_is_zero
        self.durable = durable
        self.shift = KNOWN_ZERO_SHIFT if target_is_zero else ZERO_RUN_SHIFT

    @property
    def written_bytes(self) -> int:
        """How much was written to the target as data."""
        return atomic_load(&self.written_count)

    @property
    def zeroed_bytes(self) -> int:
        """How much of the target was zeroed."""
        return atomic_load(&self.zeroed_count)

    @property
    def skipped_bytes(self) -> int:
        """How much was zero in the source and is so in the target without our doing."""
        return atomic_load(&self.skipped_count)

    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint64_t at = start
        cdef uint64_t length = 0
        cdef bint is_hole = False
        cdef int error
        while at < end:
            if self.should_stop():
                return STOPPED
            error = self.find_extent(LEFT, at, end - at, &length, &is_hole)
            if error == 0:
                if is_hole:
                    error = self.make_zero(worker, at, length)
                else:
                    length = min(length, <uint64_t> PIECE_BYTES)
                    error = self.read_side(LEFT, at, length, worker.left)
                    if error == 0:
                        error = self.write_piece(worker, at, length)
            if error:
                return error
            self.advance(length)
            at += length
        return 0

    cdef int finish(self) noexcept nogil:
        if not self.durable:
            return 0
        return self.run_side(RIGHT, IO_FLUSH, STEP_FLUSH, 0, 0, NULL)

    cdef int write_piece(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil:
        cdef uint64_t done = 0
        cdef uint64_t alike
        cdef bint zero = False
        cdef int error
        while done < length:
            alike = alike_bytes(worker.left + done, self.offsets[RIGHT] + at + done, length - done,
                                self.shift, &zero)
            if zero:
                error = self.make_zero(worker, at + done, alike)
            else:
                error = self.run_side(RIGHT, IO_WRITE, STEP_WRITE, at + done, alike,
                                      worker.left + done)
                if error == 0:
                    atomic_add(&self.written_count, alike)
            if error:
                return error
            done += alike
        return 0

    cdef int make_zero(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil:
        cdef uint64_t done = 0
        cdef uint64_t run = 0
        cdef bint is_hole = False
        cdef int error
        if self.target_is_zero:
            atomic_add(&self.skipped_count, length)
            return 0
        while done < length:
            error = self.find_extent(RIGHT, at + done, length - done, &run, &is_hole)
            if error:
                return error
            if is_hole:
                atomic_add(&self.skipped_count, run)
            else:
                error = self.run_side(RIGHT, IO_ZERO, STEP_ZERO, at + done, run, NULL)
                if error:
                    return error
                atomic_add(&self.zeroed_count, run)
            done += run
        return 0
