"""Comparing ranges, finding what is zero, digesting. Guarantees: docs/blocks.md."""

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from facade.engine.block_job cimport (
    CHUNK_BYTES,
    LEFT,
    PIECE_BYTES,
    RIGHT,
    STEP_DIGEST,
    STOPPED,
    BlockJob,
    Worker,
)
from facade.engine.block_kernels cimport (
    alike_bytes,
    count_blocks,
    has_block,
    mark_differing,
    next_block,
)
from facade.engine.keyed_digest cimport (
    DIGEST_BYTES,
    SEED_BYTES,
    Digester,
    close_digester,
    digest_piece,
    open_digester,
)
from facade.engine.syscalls cimport atomic_load
from facade.engine.volume cimport Volume

from facade.engine.keyed_digest import check_seed

MAP_BLOCK_BYTES_MIN = 4096
PIECE_BYTES_MIN = 512
RUNS_LIMIT = 1 << 20


cdef class BlockMapJob(BlockJob):
    """A job that leaves one bit per block; what a set bit means its subclass says."""

    def __dealloc__(self) -> None:
        free(self.map)

    cdef object set_blocks(self, object block_bytes):
        check_power("block_bytes", block_bytes, MAP_BLOCK_BYTES_MIN, CHUNK_BYTES)
        self.block_bytes = block_bytes
        self.shift = block_bytes.bit_length() - 1
        self.blocks = (self.total_bytes + self.block_bytes - 1) >> self.shift
        self.words = (self.blocks + 63) // 64
        self.map = <uint64_t *> calloc(self.words + 1, sizeof(uint64_t))
        if self.map == NULL:
            raise MemoryError

    # Where the block at `at` is marked already, the rest of it needs no look: cuts that off.
    cdef bint skip_marked(self, uint64_t at, uint64_t end, uint64_t *length) noexcept nogil:
        cdef uint64_t block_end
        if not has_block(self.map, at >> self.shift):
            return False
        block_end = ((at >> self.shift) + 1) << self.shift
        length[0] = min(block_end, end) - at
        return True

    def list_runs(self, bint value, uint64_t start, Py_ssize_t limit) -> list[tuple[int, int]]:
        """Runs of blocks whose bit is `value`; `runs` of the subclasses says more."""
        found: list[tuple[int, int]] = []
        cdef uint64_t at = start
        cdef uint64_t end
        while len(found) < limit:
            with nogil:
                at = next_block(self.map, at, self.blocks, value)
                end = next_block(self.map, at, self.blocks, not value)
            if at >= self.blocks:
                break
            found.append((at, end - at))
            at = end
        return found


cdef class CompareJob(BlockMapJob):
    """Finds the blocks in which two ranges differ.

    The ranges begin at `left_offset` and `right_offset` and have `length` bytes (None: to the end
    of `left`). Blocks of `block_bytes` (a power of 2 from 4 KiB to 1 MiB) count from the ranges'
    begin. Holes are not read; a hole equals zeroes. Where nobody writes the result is exact. A
    block written meanwhile is compared as each side is when it is read: mark what is written, or
    look again. Raises ValueError for a range or size that cannot be.
    """

    def __init__(self, left: Volume, right: Volume, left_offset: int = 0, right_offset: int = 0,
                 length: int | None = None, block_bytes: int = 32768,
                 threads: int | None = None) -> None:
        self.set_ranges(left, left_offset, right, right_offset, length, threads)
        self.set_blocks(block_bytes)

    @property
    def differing_blocks(self) -> int:
        """How many blocks differ, of those compared so far."""
        cdef uint64_t count
        with nogil:
            count = count_blocks(self.map, self.words)
        return count

    def runs(self, start: int = 0, limit: int = RUNS_LIMIT) -> list[tuple[int, int]]:
        """Runs of differing blocks as (first block, number), from `start`, at most `limit`."""
        return self.list_runs(True, start, limit)

    def export(self) -> bytes:
        """The map as little-endian words, bit 0 = block 0: what Bitmap.merge takes."""
        copy = bytearray(self.words * sizeof(uint64_t))
        cdef uint64_t *words = <uint64_t *> <char *> copy
        cdef uint64_t word
        with nogil:
            for word in range(self.words):
                words[word] = <uint64_t> atomic_load(<int64_t *> &self.map[word])
        return bytes(copy)

    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint64_t at = start
        cdef uint64_t length = 0
        cdef bint left_hole = False
        cdef bint right_hole = False
        cdef int error
        while at < end:
            if self.should_stop():
                return STOPPED
            if not self.skip_marked(at, end, &length):
                error = self.find_extent(LEFT, at, end - at, &length, &left_hole)
                if error == 0:
                    error = self.find_extent(RIGHT, at, length, &length, &right_hole)
                if error == 0 and not (left_hole and right_hole):
                    length = min(length, <uint64_t> PIECE_BYTES)
                    error = self.compare_piece(worker, at, length, left_hole, right_hole)
                if error:
                    return error
            self.advance(length)
            at += length
        return 0

    cdef int compare_piece(self, Worker *worker, uint64_t at, uint64_t length, bint left_hole,
                           bint right_hole) noexcept nogil:
        cdef int error = 0
        if not left_hole:
            error = self.read_side(LEFT, at, length, worker.left)
        if error == 0 and not right_hole:
            error = self.read_side(RIGHT, at, length, worker.right)
        if error:
            return error
        if left_hole:
            mark_differing(worker.right, NULL, at, length, self.shift, self.map)
        else:
            mark_differing(worker.left, NULL if right_hole else worker.right, at, length,
                           self.shift, self.map)
        return 0


cdef class ZeroScanJob(BlockMapJob):
    """Finds the blocks of a range that are all zeroes; holes count as zeroes and are not read.

    Blocks of `block_bytes` (a power of 2 from 4 KiB to 1 MiB) count from `offset`, `length` bytes
    are looked at (None: to the end). A block written meanwhile is found as it was when it was read.
    Raises ValueError for a range or size that cannot be.
    """

    def __init__(self, volume: Volume, offset: int = 0, length: int | None = None,
                 block_bytes: int = 4096, threads: int | None = None) -> None:
        self.set_ranges(volume, offset, None, 0, length, threads)
        self.set_blocks(block_bytes)

    @property
    def zero_blocks(self) -> int:
        """How many blocks are zero. Raises ValueError before `run` has ended well."""
        check_complete(self)
        cdef uint64_t count
        with nogil:
            count = self.blocks - count_blocks(self.map, self.words)
        return count

    def runs(self, start: int = 0, limit: int = RUNS_LIMIT) -> list[tuple[int, int]]:
        """Runs of zero blocks as (first block, number), from `start`, at most `limit`.

        Raises ValueError before `run` has ended well.
        """
        check_complete(self)
        return self.list_runs(False, start, limit)

    # Here a set bit means: not zero.
    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint64_t at = start
        cdef uint64_t length = 0
        cdef bint is_hole = False
        cdef int error
        while at < end:
            if self.should_stop():
                return STOPPED
            if not self.skip_marked(at, end, &length):
                error = self.find_extent(LEFT, at, end - at, &length, &is_hole)
                if error == 0 and not is_hole:
                    length = min(length, <uint64_t> PIECE_BYTES)
                    error = self.read_side(LEFT, at, length, worker.left)
                    if error == 0:
                        mark_differing(worker.left, NULL, at, length, self.shift, self.map)
                if error:
                    return error
            self.advance(length)
            at += length
        return 0


# A worker's own in a DigestJob.
cdef struct DigestState:
    Digester digester
    uint8_t[DIGEST_BYTES] of_zeroes     # of a whole piece


cdef class DigestJob(BlockJob):
    """Digests a range piece by piece under `seed` (see keyed_digest): 16 bytes a piece.

    Pieces of `piece_bytes` (a power of 2 from 512 to 128 KiB) count from `offset`; the last one may
    be short. Holes are digested as zeroes without being read, but for those that share a piece with
    data. A piece written meanwhile has the digest of what was read. Raises ValueError for a range
    or size that cannot be, or one of more than DIGESTS_MAX pieces.
    """

    def __init__(self, volume: Volume, seed: bytes, offset: int = 0, length: int | None = None,
                 piece_bytes: int = 4096, threads: int | None = None) -> None:
        check_seed(seed)
        check_power("piece_bytes", piece_bytes, PIECE_BYTES_MIN, PIECE_BYTES)
        self.set_ranges(volume, offset, None, 0, length, threads)
        self.piece_bytes = piece_bytes
        self.pieces = (self.total_bytes + self.piece_bytes - 1) // self.piece_bytes
        if self.pieces > DIGESTS_MAX:
            raise ValueError(f"{self.pieces} pieces are more than the {DIGESTS_MAX} of one job: "
                             "digest the range in parts, or in larger pieces")
        cdef const uint8_t[::1] given = seed
        memcpy(&self.seed[0], &given[0], SEED_BYTES)
        self.found = <uint8_t *> calloc(self.pieces + 1, DIGEST_BYTES)
        if self.found == NULL:
            raise MemoryError

    def __dealloc__(self) -> None:
        free(self.found)

    @property
    def digests(self) -> bytes:
        """All digests, one after the other. Raises ValueError before `run` has ended well."""
        check_complete(self)
        return (<const char *> self.found)[:self.pieces * DIGEST_BYTES]

    cdef int open_worker(self, Worker *worker) noexcept nogil:
        cdef DigestState *state = <DigestState *> calloc(1, sizeof(DigestState))
        if state == NULL:
            return ENOMEM
        if open_digester(&state.digester, &self.seed[0]):
            free(state)
            return ENOMEM
        worker.own = state
        # There is no second side here; its buffer is the zeroes of short holes.
        memset(worker.right, 0, PIECE_BYTES)
        return digest_piece(&state.digester, worker.right, self.piece_bytes, &state.of_zeroes[0])

    cdef void close_worker(self, Worker *worker) noexcept nogil:
        cdef DigestState *state = <DigestState *> worker.own
        if state != NULL:
            close_digester(&state.digester)
            free(state)
            worker.own = NULL

    # Reads begin and end at pieces, so a piece that is partly a hole is read whole.
    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint64_t at = start
        cdef uint64_t length = 0
        cdef bint is_hole = False
        cdef int error
        while at < end:
            if self.should_stop():
                return STOPPED
            error = self.find_extent(LEFT, at, end - at, &length, &is_hole)
            if error:
                return error
            if is_hole and at + length < end:
                length -= length % self.piece_bytes
                is_hole = length > 0
            if is_hole:
                error = self.digest_hole(worker, at, length)
            else:
                length = (length + self.piece_bytes - 1) // self.piece_bytes * self.piece_bytes
                length = min(max(length, self.piece_bytes), end - at, <uint64_t> PIECE_BYTES)
                error = self.read_side(LEFT, at, length, worker.left)
                if error == 0:
                    error = self.digest_data(worker, worker.left, at, length)
            if error:
                return error
            self.advance(length)
            at += length
        return 0

    cdef int digest_hole(self, Worker *worker, uint64_t at, uint64_t length) noexcept nogil:
        cdef DigestState *state = <DigestState *> worker.own
        cdef uint64_t number = at // self.piece_bytes
        cdef uint64_t done = 0
        while length - done >= self.piece_bytes:
            memcpy(self.found + number * DIGEST_BYTES, &state.of_zeroes[0], DIGEST_BYTES)
            number += 1
            done += self.piece_bytes
        if done == length:
            return 0
        return self.digest_data(worker, worker.right, at + done, length - done)

    cdef int digest_data(self, Worker *worker, const uint8_t *data, uint64_t at,
                         uint64_t length) noexcept nogil:
        cdef DigestState *state = <DigestState *> worker.own
        cdef uint64_t done = 0
        cdef uint64_t size
        cdef int error
        while done < length:
            size = min(self.piece_bytes, length - done)
            error = digest_piece(&state.digester, data + done, size,
                                 self.found + (at + done) // self.piece_bytes * DIGEST_BYTES)
            if error:
                return self.fail(error, STEP_DIGEST, LEFT, at + done)
            done += size
        return 0


def zero_runs(const uint8_t[::1] data not None, granule_bytes: int = 4096) -> list[
        tuple[int, int]]:
    """Runs of zeroes in memory as (offset, length), in whole granules but for the last one.

    `granule_bytes` is a power of 2 from 1 to 1 MiB. Raises ValueError.
    """
    check_power("granule_bytes", granule_bytes, 1, CHUNK_BYTES)
    cdef int shift = granule_bytes.bit_length() - 1
    cdef uint64_t size = data.shape[0]
    cdef const uint8_t *start = &data[0] if size else NULL
    cdef uint64_t at = 0
    cdef uint64_t length
    cdef bint zero = False
    found: list[tuple[int, int]] = []
    while at < size:
        with nogil:
            length = alike_bytes(start + at, at, size - at, shift, &zero)
        if zero:
            found.append((at, length))
        at += length
    return found


cdef object check_power(str what, object value, object lowest, object highest):
    if not lowest <= value <= highest or value & (value - 1):
        raise ValueError(f"{what} is {value}: a power of 2 from {lowest} to {highest}")


cdef object check_complete(BlockJob job):
    if not job.is_complete:
        raise ValueError("the job has not run to its end: there is no result")
