"""One bit per block, in memory: count, runs, export, merge."""

import array

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from facade.engine.bits cimport bits_clear, bits_count, bits_merge, bits_next, bits_set
from facade.engine.syscalls cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef enum:
    BLOCK_BYTES_MIN = 4096
    BLOCK_BYTES_MAX = 1 << 20
    RUNS_AT_ONCE = 4096      # pairs that are gathered between two looks at Python


cdef uint64_t *new_map(uint64_t words) except NULL:
    cdef void *place = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                            -1, 0)
    if place == MAP_FAILED:
        raise MemoryError(f"no memory for a map of {words * 8} bytes")
    return <uint64_t *> place


cdef class BlockMap:
    """Which blocks of a data volume of `size_bytes` are marked. Raises ValueError, MemoryError."""

    def __cinit__(self, *_):
        self.bits = NULL
        self.page_state = NULL
        pthread_mutex_init(&self.lock, NULL)

    def __init__(self, uint64_t size_bytes, uint32_t block_bytes):
        if not BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX or block_bytes & (block_bytes - 1):
            raise ValueError(f"block_bytes is {block_bytes}: a power of 2 from {BLOCK_BYTES_MIN} "
                             f"to {BLOCK_BYTES_MAX}")
        if size_bytes == 0:
            raise ValueError("size_bytes is 0")
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.block_shift = block_bytes.bit_length() - 1
        self.blocks = (size_bytes - 1 >> self.block_shift) + 1
        self.pages = (self.blocks - 1) // PAGE_BITS + 1
        self.words = self.pages * PAGE_WORDS
        self.bits = new_map(self.words)
        self.page_state = <uint8_t *> calloc(self.pages, 1)
        if self.page_state == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.bits != NULL:
            munmap(self.bits, self.words * 8)
        free(self.page_state)
        pthread_mutex_destroy(&self.lock)

    @property
    def dirty_blocks(self) -> int:
        """How many bits are set, as memory has it."""
        cdef uint64_t n
        with nogil:
            pthread_mutex_lock(&self.lock)
            n = self.count
            pthread_mutex_unlock(&self.lock)
        return n

    @property
    def map_bytes(self) -> int:
        """Size of the whole map in bytes."""
        return self.words * 8

    cdef void note_set_locked(self, uint64_t page) noexcept nogil:
        self.page_state[page] = PAGE_SET
        self.bulk += 1
        self.want += 1
        self.bulk_ticket = self.want

    def fill(self) -> None:
        """Set every bit."""
        cdef uint64_t page
        with nogil:
            for page in range(self.pages):
                pthread_mutex_lock(&self.lock)
                self.count += bits_set(self.bits, page * PAGE_BITS,
                                       min((page + 1) * PAGE_BITS, self.blocks) - 1)
                self.note_set_locked(page)
                pthread_mutex_unlock(&self.lock)

    def wipe(self) -> None:
        """Clear every bit. Only while nobody marks: it is no rule of when a bit may be cleared."""
        cdef uint64_t page
        with nogil:
            pthread_mutex_lock(&self.lock)
            madvise(self.bits, self.words * 8, MADV_DONTNEED)
            self.count = 0
            self.bulk += 1
            for page in range(self.pages):
                if self.page_state[page] == PAGE_SAME:
                    self.page_state[page] = PAGE_CLEARED
            pthread_mutex_unlock(&self.lock)

    # ---- iterate ----------------------------------------------------------------------------

    cdef uint64_t next_runs(self, uint64_t start, uint64_t *runs, uint64_t most,
                            uint64_t *next_block) noexcept nogil:
        cdef uint64_t found = 0, at = start, stop, end
        while at < self.blocks and found < most:
            # One page under the lock; a run that goes on in the next page is made longer then.
            stop = min((at // PAGE_BITS + 1) * PAGE_BITS, self.blocks)
            pthread_mutex_lock(&self.lock)
            while found < most:
                at = bits_next(self.bits, at, stop, 1)
                if at >= stop:
                    break
                end = bits_next(self.bits, at, stop, 0)
                if found and runs[2 * found - 2] + runs[2 * found - 1] == at:
                    runs[2 * found - 1] += end - at
                else:
                    runs[2 * found] = at
                    runs[2 * found + 1] = end - at
                    found += 1
                at = end
            pthread_mutex_unlock(&self.lock)
        next_block[0] = at
        return found

    def run_array(self, uint64_t start=0, Py_ssize_t limit=1 << 20) -> array.array:
        """Runs of set bits from `start`, at most `limit`, as an array of first, blocks, first, ...

        A run is as it was when its page was looked at; others may mark and clear meanwhile.
        """
        cdef uint64_t[2 * RUNS_AT_ONCE] runs
        cdef uint64_t count = 1, at = start
        found = array.array("Q")
        while count and len(found) < 2 * limit:
            with nogil:
                count = self.next_runs(at, runs, RUNS_AT_ONCE, &at)
            if not count:
                break
            piece = <bytes> (<char *> runs)[:count * 16]
            if found and found[-2] + found[-1] == runs[0]:
                found[-1] += runs[1]
                piece = piece[16:]
            found.frombytes(piece)
        return found[:2 * limit]

    def runs(self, uint64_t start=0, Py_ssize_t limit=1 << 20) -> list[tuple[int, int]]:
        """The same as a list of (first block, number of blocks)."""
        found = self.run_array(start, limit)
        return list(zip(found[::2], found[1::2], strict=True))

    # ---- to and from another side ---------------------------------------------------------------

    def export(self, uint64_t offset_bytes, uint64_t size_bytes) -> bytes:
        """A piece of the map as a device has it: little-endian words, bit 0 = block 0.

        Shorter than asked for where the map ends. Raises IndexError past its end.
        """
        cdef uint64_t done = 0, piece_bytes
        if offset_bytes > self.words * 8:
            raise IndexError(f"{offset_bytes} of {self.words * 8} bytes")
        size_bytes = min(size_bytes, self.words * 8 - offset_bytes)
        piece = bytearray(size_bytes)
        cdef uint8_t[::1] view = piece
        cdef uint8_t *data
        if size_bytes:
            data = &view[0]
            with nogil:
                while done < size_bytes:
                    piece_bytes = min(size_bytes - done, <uint64_t> PAGE_BYTES)
                    pthread_mutex_lock(&self.lock)
                    memcpy(data + done, <uint8_t *> self.bits + offset_bytes + done, piece_bytes)
                    pthread_mutex_unlock(&self.lock)
                    done += piece_bytes
        return bytes(piece)

    def merge(self, uint64_t offset_bytes, const uint8_t[::1] piece not None) -> None:
        """Set every bit that is set in a piece of another side's map.

        Bits past the last block are left out. Raises IndexError unless the piece is whole words
        inside the map.
        """
        cdef uint64_t size_bytes = piece.shape[0]
        cdef uint64_t first = offset_bytes // 8
        cdef uint64_t end, word
        if offset_bytes % 8 or size_bytes % 8 or size_bytes > self.words * 8 or \
                offset_bytes > self.words * 8 - size_bytes:
            raise IndexError(f"piece of {size_bytes} bytes at {offset_bytes} of {self.words * 8}")
        if size_bytes == 0:
            return
        cdef const uint8_t *theirs = &piece[0]
        end = first + size_bytes // 8
        with nogil:
            word = first
            while word < end:
                word = self.merge_page(word, end, theirs + (word - first) * 8)

    cdef uint64_t merge_page(self, uint64_t word, uint64_t end, const uint8_t *data) noexcept nogil:
        # Up to the end of a page; returns the word after it. Copied first: the piece may lie at
        # any address.
        cdef uint64_t[PAGE_WORDS] theirs
        cdef uint64_t page = word // PAGE_WORDS
        cdef uint64_t stop = min(end, (page + 1) * PAGE_WORDS)
        cdef uint64_t fresh
        memcpy(theirs, data, (stop - word) * 8)
        if stop * 64 > self.blocks:
            # Only the last page has bits past the last block.
            if word * 64 >= self.blocks:
                return stop
            bits_clear(theirs, self.blocks - word * 64, (stop - word) * 64 - 1)
        pthread_mutex_lock(&self.lock)
        fresh = bits_merge(self.bits + word, theirs, stop - word)
        if fresh:
            self.count += fresh
            self.note_set_locked(page)
        pthread_mutex_unlock(&self.lock)
        return stop

    def check(self, first: int, last: int) -> None:
        """Raise IndexError unless first..last are blocks of the volume."""
        if not 0 <= first <= last < self.blocks:
            raise IndexError(f"blocks {first}..{last} of {self.blocks}")

    cdef uint64_t recount(self) noexcept nogil:
        # Under lock, or before anyone else has it.
        self.count = bits_count(self.bits, self.words)
        return self.count
