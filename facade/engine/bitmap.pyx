"""The change bitmap: bits in memory, written through to the bitmap volume by group commit.

Decision and cost: docs/decisions/bitmap-durability.md. Layout: docs/bitmap.md.
"""

import os

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from facade.engine.bits cimport bits_all, bits_clear, bits_count, bits_next, bits_set
from facade.engine.syscalls cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    cond_init,
    mmap,
    munmap,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from facade.engine.volume cimport IO_FLUSH, IO_WRITE, Io, Volume

from facade.engine import bitmap_header as header_format
from facade.engine.bitmap_header import BitmapHeader
from facade.errors import BitmapTooSmall

cdef enum:
    PAGE_BYTES = 4096
    PAGE_BITS = PAGE_BYTES * 8
    BITS_OFFSET_BYTES = 8192
    READ_BYTES = 1 << 20


cdef class Bitmap:
    """The bitmap of a data volume of `size_bytes`, kept on the bitmap volume `volume`.

    All its I/O passes through `volume`, which stays its owner's to close, after close() here. Make
    its content with format() or load() before it is used. Raises BitmapTooSmall.
    """

    def __cinit__(self):
        self.bits = NULL
        self.page_dirty = NULL
        pthread_mutex_init(&self.lock, NULL)
        cond_init(&self.changed)

    def __init__(self, Volume volume not None, uint64_t size_bytes, uint32_t block_bytes):
        if block_bytes < 4096 or block_bytes > 1 << 20 or block_bytes & (block_bytes - 1):
            raise ValueError(f"block_bytes is {block_bytes}: a power of 2 from 4096 to 1048576")
        if size_bytes == 0:
            raise ValueError("size_bytes is 0")
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.block_shift = block_bytes.bit_length() - 1
        self.blocks = (size_bytes + block_bytes - 1) >> self.block_shift
        self.pages = (self.blocks + PAGE_BITS - 1) // PAGE_BITS
        self.words = self.pages * PAGE_BYTES // 8
        cdef void *p = mmap(NULL, self.words * 8, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            raise MemoryError(f"no memory for a bitmap of {self.words * 8} bytes")
        self.bits = <uint64_t *> p
        self.page_dirty = <uint8_t *> calloc(self.pages, 1)
        if self.page_dirty == NULL:
            raise MemoryError
        self.volume = volume
        self.header = None
        cdef uint64_t need_bytes = BITS_OFFSET_BYTES + self.words * 8
        if volume.size_bytes < need_bytes:
            raise BitmapTooSmall(volume=volume.name, size_bytes=volume.size_bytes,
                                 data_bytes=size_bytes, needed_bytes=need_bytes)

    def __dealloc__(self):
        if self.bits != NULL:
            munmap(self.bits, self.words * 8)
        free(self.page_dirty)
        pthread_mutex_destroy(&self.lock)
        pthread_cond_destroy(&self.changed)

    # ---- life: Python, control path -----------------------------------------------------

    def format(self, header: BitmapHeader, bint dirty) -> None:
        """Make this a new bitmap, all dirty or all clean, durably; the header goes last.

        A crash on the way leaves no intact header of this set, which load() takes as all dirty.
        """
        self.volume.pwrite(0, b"\0" * BITS_OFFSET_BYTES, fua=True)
        with nogil:
            pthread_mutex_lock(&self.lock)
            memset(self.bits, 0, self.words * 8)
            self.count = 0
            if dirty:
                self.count = bits_set(self.bits, 0, self.blocks - 1)
            memset(self.page_dirty, 1, self.pages)
            self.want += 1
            self.failed = 0
            self.memory_only = False
            pthread_mutex_unlock(&self.lock)
        self.sync()
        self.write_header(header)

    def load(self, set_id: bytes) -> str | None:
        """Read header and bits. None when they can be trusted, else a sentence that says why not.

        Not trusted: everything counts as dirty, in memory and (with the next header) on disk.
        """
        slots = [self.volume.pread(i * 4096, 4096) for i in range(2)]
        header = header_format.newest(slots)
        why = None
        if header is None:
            why = "it has no intact header"
        elif header.set_id != set_id:
            why = f"it belongs to another set ({header.set_id.hex()})"
        elif header.size_bytes != self.size_bytes or header.block_bytes != self.block_bytes:
            why = (f"it is for a volume of {header.size_bytes} bytes in blocks of "
                   f"{header.block_bytes}")
        self.header = header if why is None else None
        if why is None:
            why = self._read_bits()
        if why is not None:
            self.fill()
        return why

    def _read_bits(self) -> str | None:
        data = b""
        cdef uint64_t at = 0, piece
        while at < self.words * 8:
            piece = self.words * 8 - at
            if piece > READ_BYTES:
                piece = READ_BYTES
            try:
                data = self.volume.pread(BITS_OFFSET_BYTES + at, piece)
            except OSError as error:
                return f"it cannot be read ({error.strerror})"
            memcpy(<uint8_t *> self.bits + at, <const uint8_t *> data, piece)
            at += piece
        with nogil:
            pthread_mutex_lock(&self.lock)
            if self.blocks < self.words * 64:
                bits_clear(self.bits, self.blocks, self.words * 64 - 1)
            self.count = bits_count(self.bits, self.words)
            pthread_mutex_unlock(&self.lock)
        return None

    def write_header(self, header: BitmapHeader) -> None:
        """Durably write `header` into the older slot. Raises OSError."""
        self.volume.pwrite(header_format.slot_offset_bytes(header), header_format.pack(header),
                           fua=True)
        self.header = header

    def sync(self) -> None:
        """Put every changed page on disk, durably. Raises OSError."""
        cdef int error
        with nogil:
            error = self.commit()
        if error:
            raise OSError(error, os.strerror(error), self.volume.name)

    def close(self) -> None:
        """Let go of the volume, which is not written any more when this returns.

        Commits afterwards fail with ESHUTDOWN; bits in memory can still be read.
        """
        with nogil:
            pthread_mutex_lock(&self.lock)
            while self.committing:
                pthread_cond_wait(&self.changed, &self.lock)
            if not self.failed:
                self.failed = ESHUTDOWN
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)

    # ---- what tests, control code and other sides' maps need ------------------------------

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
    def failed_errno(self) -> int:
        """The error number of the first failed bitmap write, 0 when there was none."""
        return self.failed

    def go_memory_only(self) -> None:
        """The failure is durably on record elsewhere: marks no longer wait for this device."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.memory_only = True
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)

    def mark(self, uint64_t first, uint64_t last) -> None:
        """Set bits first..last (blocks) durably. Raises IndexError, OSError."""
        self._check(first, last)
        cdef uint64_t ticket
        cdef int error
        with nogil:
            pthread_mutex_lock(&self.lock)
            ticket = self.mark_locked(first, last)
            pthread_mutex_unlock(&self.lock)
            error = self.wait_stable(ticket) if ticket else 0
        if error:
            raise OSError(error, os.strerror(error), self.volume.name)

    def clear(self, uint64_t first, uint64_t last) -> None:
        """Clear bits first..last; durable with the next sync(). Raises IndexError."""
        self._check(first, last)
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.clear_locked(first, last)
            pthread_mutex_unlock(&self.lock)

    def fill(self) -> None:
        """Set every bit in memory; sync() makes it durable."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.count += bits_set(self.bits, 0, self.blocks - 1)
            memset(self.page_dirty, 1, self.pages)
            self.want += 1
            pthread_mutex_unlock(&self.lock)

    def wipe(self) -> None:
        """Clear every bit in memory; sync() makes it durable."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            memset(self.bits, 0, self.words * 8)
            self.count = 0
            memset(self.page_dirty, 1, self.pages)
            pthread_mutex_unlock(&self.lock)

    def runs(self, uint64_t start=0, Py_ssize_t limit=1 << 20) -> list[tuple[int, int]]:
        """Runs of set bits as (first block, number of blocks), from `start`, at most `limit`."""
        found = []
        cdef uint64_t at = start, end
        while len(found) < limit:
            with nogil:
                pthread_mutex_lock(&self.lock)
                at = bits_next(self.bits, at, self.blocks, 1)
                end = bits_next(self.bits, at, self.blocks, 0)
                pthread_mutex_unlock(&self.lock)
            if at >= self.blocks:
                break
            found.append((at, end - at))
            at = end
        return found

    def export(self, uint64_t offset_bytes, uint64_t size_bytes) -> bytes:
        """A piece of the map as it stands on disk: little-endian words, bit 0 = block 0."""
        if offset_bytes > self.words * 8:
            raise IndexError(offset_bytes)
        if size_bytes > self.words * 8 - offset_bytes:
            size_bytes = self.words * 8 - offset_bytes
        piece = bytearray(size_bytes)
        cdef uint8_t[::1] view
        if size_bytes:
            view = piece
            with nogil:
                pthread_mutex_lock(&self.lock)
                memcpy(&view[0], <uint8_t *> self.bits + offset_bytes, size_bytes)
                pthread_mutex_unlock(&self.lock)
        return bytes(piece)

    @property
    def map_bytes(self) -> int:
        """Size of the whole map in bytes."""
        return self.words * 8

    def merge(self, uint64_t offset_bytes, const uint8_t[::1] piece not None) -> None:
        """Set every bit that is set in a piece of another side's map; sync() makes it durable."""
        cdef uint64_t size = piece.shape[0], i, page
        if offset_bytes % 8 or size % 8 or size > self.words * 8 or \
                offset_bytes > self.words * 8 - size:
            raise IndexError(f"piece of {size} bytes at {offset_bytes} of {self.words * 8}")
        if size == 0:
            return
        cdef const uint64_t *theirs = <const uint64_t *> &piece[0]
        cdef uint64_t *ours = self.bits + offset_bytes // 8
        with nogil:
            pthread_mutex_lock(&self.lock)
            for i in range(size // 8):
                ours[i] |= theirs[i]
            if self.blocks < self.words * 64:
                bits_clear(self.bits, self.blocks, self.words * 64 - 1)
            for page in range(offset_bytes // PAGE_BYTES,
                              (offset_bytes + size - 1) // PAGE_BYTES + 1):
                self.page_dirty[page] = 1
            self.count = bits_count(self.bits, self.words)
            self.want += 1
            pthread_mutex_unlock(&self.lock)

    def _check(self, uint64_t first, uint64_t last) -> None:
        if first > last or last >= self.blocks:
            raise IndexError(f"blocks {first}..{last} of {self.blocks}")

    # ---- hot path -------------------------------------------------------------------------

    cdef uint64_t mark_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef int i
        cdef uint64_t ticket = 0, page
        if bits_all(self.bits, first, last):
            for i in range(self.unstable_count):
                if self.unstable[i].first <= last and first <= self.unstable[i].last:
                    if self.unstable[i].ticket > ticket:
                        ticket = self.unstable[i].ticket
            return ticket
        while self.unstable_count >= UNSTABLE_LIMIT and not self.memory_only:
            if self.failed:
                break
            pthread_cond_wait(&self.changed, &self.lock)
        self.count += bits_set(self.bits, first, last)
        for page in range(first // PAGE_BITS, last // PAGE_BITS + 1):
            self.page_dirty[page] = 1
        self.want += 1
        ticket = self.want
        if self.unstable_count < UNSTABLE_LIMIT:
            self.unstable[self.unstable_count].first = first
            self.unstable[self.unstable_count].last = last
            self.unstable[self.unstable_count].ticket = ticket
            self.unstable_count += 1
        return ticket

    cdef bint is_stable_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef int i
        if not bits_all(self.bits, first, last):
            return False
        for i in range(self.unstable_count):
            if self.unstable[i].first <= last and first <= self.unstable[i].last:
                return False
        return True

    cdef int wait_stable(self, uint64_t ticket) noexcept nogil:
        cdef int error = 0
        pthread_mutex_lock(&self.lock)
        while self.done < ticket and not self.memory_only:
            if self.failed:
                error = self.failed
                break
            if self.committing:
                pthread_cond_wait(&self.changed, &self.lock)
            else:
                self._commit_locked()
        pthread_mutex_unlock(&self.lock)
        return error

    cdef void clear_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef uint64_t page
        self.count -= bits_clear(self.bits, first, last)
        for page in range(first // PAGE_BITS, last // PAGE_BITS + 1):
            self.page_dirty[page] = 1

    cdef int commit(self) noexcept nogil:
        cdef int error
        pthread_mutex_lock(&self.lock)
        while self.committing:
            pthread_cond_wait(&self.changed, &self.lock)
        error = self._commit_locked()
        pthread_mutex_unlock(&self.lock)
        return error

    cdef int _commit_locked(self) noexcept nogil:
        # Under lock, which is given up while the disk works. One page is copied at a time, so
        # that marks go on meanwhile; a page marked again stays in page_dirty for the next round.
        cdef uint64_t page, target = self.want
        cdef int error = self.failed, i, kept
        cdef uint8_t scratch[PAGE_BYTES]
        cdef Io io
        io.flags = 0
        io.complete = NULL
        io.owner = NULL
        if error:
            return error
        self.committing = True
        for page in range(self.pages):
            if not self.page_dirty[page]:
                continue
            self.page_dirty[page] = 0
            memcpy(scratch, <uint8_t *> self.bits + page * PAGE_BYTES, PAGE_BYTES)
            pthread_mutex_unlock(&self.lock)
            io.op = IO_WRITE
            io.offset = BITS_OFFSET_BYTES + page * PAGE_BYTES
            io.length = PAGE_BYTES
            io.data = scratch
            error = self.volume.run(&io)
            pthread_mutex_lock(&self.lock)
            if error:
                self.page_dirty[page] = 1
                break
        if not error:
            pthread_mutex_unlock(&self.lock)
            io.op = IO_FLUSH
            io.offset = 0
            io.length = 0
            io.data = NULL
            error = self.volume.run(&io)
            pthread_mutex_lock(&self.lock)
        if error:
            self.failed = error
        else:
            self.commits += 1
            if target > self.done:
                self.done = target
            kept = 0
            for i in range(self.unstable_count):
                if self.unstable[i].ticket > self.done:
                    self.unstable[kept] = self.unstable[i]
                    kept += 1
            self.unstable_count = kept
        self.committing = False
        pthread_cond_broadcast(&self.changed)
        return error
