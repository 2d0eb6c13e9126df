"""The change bitmap: bits in memory, written through to the bitmap volume by group commit.

Decision and cost: docs/decisions/bitmap-durability.md. Layout: docs/bitmap.md.
"""

import os

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from facade.engine.bits cimport bits_all, bits_any, bits_clear, bits_set
from facade.engine.block_map cimport (
    PAGE_BITS,
    PAGE_BYTES,
    PAGE_CLEARED,
    PAGE_SAME,
    PAGE_SET,
    PAGE_WORDS,
    BlockMap,
    new_map,
)
from facade.engine.hot_extents cimport AHEAD_EXTENTS, EVICT_SHARE, HotExtents
from facade.engine.syscalls cimport (
    cond_init,
    munmap,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_wait,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from facade.engine.volume cimport IO_FLUSH, IO_WRITE, Io, Volume

from facade.engine import bitmap_header as header_format
from facade.engine.bitmap_header import BitmapHeader
from facade.errors import BitmapTooSmall

cdef enum:
    BITS_OFFSET_BYTES = 8192
    READ_BYTES = 1 << 20


cdef class Bitmap(BlockMap):
    """The bitmap of a data volume of `size_bytes`, kept on the bitmap volume `volume`.

    All its I/O passes through `volume`, which stays its owner's to close, after close() here. Make
    its content with format() or load() before it is used. Raises BitmapTooSmall, ValueError.
    """

    def __cinit__(self, *_):
        self.scratch = NULL
        cond_init(&self.changed)

    def __init__(self, Volume volume not None, uint64_t size_bytes, uint32_t block_bytes):
        BlockMap.__init__(self, size_bytes, block_bytes)
        self.volume = volume
        self.header = None
        self.hot = HotExtents(self.blocks, block_bytes)
        self.scratch = new_map(COMMIT_PAGES * PAGE_WORDS)
        needed_bytes = BITS_OFFSET_BYTES + self.map_bytes
        if volume.size_bytes < needed_bytes:
            raise BitmapTooSmall(volume=volume.name, size_bytes=volume.size_bytes,
                                 data_bytes=size_bytes, needed_bytes=needed_bytes)

    def __dealloc__(self):
        if self.scratch != NULL:
            munmap(self.scratch, COMMIT_PAGES * PAGE_BYTES)
        pthread_cond_destroy(&self.changed)

    # ---- life: Python, control path -----------------------------------------------------

    def format(self, header: BitmapHeader, bint dirty) -> None:
        """Make this a new bitmap, all dirty or all clean, durably; the header goes last.

        A crash on the way leaves no intact header, which load() takes as all dirty. Raises OSError.
        """
        self.volume.pwrite(0, b"\0" * BITS_OFFSET_BYTES, fua=True)
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.failed = 0
            self.memory_only = False
            pthread_mutex_unlock(&self.lock)
        self.wipe()
        if dirty:
            self.fill()
        with nogil:
            # What the device has is not known: every page is written.
            pthread_mutex_lock(&self.lock)
            memset(self.page_state, PAGE_SET, self.pages)
            pthread_mutex_unlock(&self.lock)
        self.sync()
        self.write_header(header)

    def load(self, set_id: bytes) -> str | None:
        """Read header and bits. None when they can be trusted, else a sentence that says why not.

        Not trusted: every bit is set in memory; format() makes it so on the device.
        """
        header, why = self._read_header(set_id)
        self.header = header if why is None else None
        if why is None:
            why = self._read_bits()
        if why is not None:
            self.fill()
        return why

    def _read_header(self, set_id: bytes) -> tuple[BitmapHeader | None, str | None]:
        try:
            slots = [self.volume.pread(i * header_format.SLOT_BYTES, header_format.SLOT_BYTES)
                     for i in range(header_format.SLOTS)]
        except OSError as error:
            return None, f"it cannot be read ({error.strerror})"
        header = header_format.newest(slots)
        if header is None:
            return None, "it has no intact header"
        if header.set_id != set_id:
            return header, f"it belongs to another set ({header.set_id.hex()})"
        if header.size_bytes != self.size_bytes or header.block_bytes != self.block_bytes:
            return header, (f"it is for a volume of {header.size_bytes} bytes in blocks of "
                            f"{header.block_bytes}")
        return header, None

    def _read_bits(self) -> str | None:
        data = b""
        cdef uint64_t at = 0, piece, done
        cdef const uint8_t *words
        while at < self.words * 8:
            piece = min(self.words * 8 - at, <uint64_t> READ_BYTES)
            try:
                data = self.volume.pread(BITS_OFFSET_BYTES + at, piece)
            except OSError as error:
                return f"it cannot be read ({error.strerror})"
            words = <const uint8_t *> data
            for done in range(0, piece, PAGE_BYTES):
                # Pages of zeroes stay untouched: they take no memory.
                if bits_any(<const uint64_t *> (words + done), PAGE_WORDS):
                    memcpy(<uint8_t *> self.bits + at + done, words + done, PAGE_BYTES)
            at += piece
        with nogil:
            pthread_mutex_lock(&self.lock)
            if self.blocks < self.words * 64:
                bits_clear(self.bits, self.blocks, self.words * 64 - 1)
            self.recount()
            pthread_mutex_unlock(&self.lock)
        return None

    def write_header(self, header: BitmapHeader) -> None:
        """Durably write `header` into the older slot. Raises OSError."""
        self.volume.pwrite(header_format.slot_offset_bytes(header), header_format.pack(header),
                           fua=True)
        self.header = header

    def sync(self) -> None:
        """Put every changed page on disk, durably; hot extents stay hot. Raises OSError."""
        cdef int error
        with nogil:
            error = self.commit()
        if error:
            raise OSError(error, os.strerror(error), self.volume.name)

    def sync_exact(self) -> None:
        """Close every hot extent, then sync(): the device has the very bits of memory.

        Raises OSError.
        """
        self._close_extents(False)
        self.sync()

    def cool(self) -> None:
        """Close hot extents unused since the last call, and put clears on disk. Raises OSError.

        To be called every few seconds. Does no I/O when there is nothing to do.
        """
        cdef bint differs
        self._close_extents(True)
        with nogil:
            pthread_mutex_lock(&self.lock)
            differs = not self.closed and any_differs(self.page_state, self.pages)
            pthread_mutex_unlock(&self.lock)
        if differs:
            self.sync()

    def _close_extents(self, bint idle_only) -> None:
        cdef uint64_t at
        with nogil:
            pthread_mutex_lock(&self.lock)
            at = self.hot.next_hot(0, self.hot.extents)
            while at < self.hot.extents:
                if not self.hot.was_used(at) or not idle_only:
                    self.close_extent(at, PAGE_CLEARED)
                at = self.hot.next_hot(at + 1, self.hot.extents)
            pthread_mutex_unlock(&self.lock)

    def close(self) -> None:
        """Let go of the volume, which is not written any more when this returns.

        Commits afterwards fail with ESHUTDOWN; bits in memory can still be read.
        """
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.closed = True
            while self.committing:
                pthread_cond_wait(&self.changed, &self.lock)
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)

    # ---- what tests and control code need --------------------------------------------------

    @property
    def failed_errno(self) -> int:
        """The error number of the first failed bitmap write, 0 when there was none."""
        cdef int error
        with nogil:
            pthread_mutex_lock(&self.lock)
            error = self.failed
            pthread_mutex_unlock(&self.lock)
        return error

    @property
    def commits(self) -> int:
        """Durable commits so far."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.lock)
            count = self.commit_count
            pthread_mutex_unlock(&self.lock)
        return count

    @property
    def hot_extents(self) -> int:
        """How many extents are hot now."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.lock)
            count = self.hot.count
            pthread_mutex_unlock(&self.lock)
        return count

    @property
    def hot_extents_max(self) -> int:
        """How many may be hot at once."""
        return self.hot.limit

    @property
    def extent_blocks(self) -> int:
        """Blocks of an extent."""
        return 1 << self.hot.block_shift

    def go_memory_only(self) -> None:
        """The failure is durably on record elsewhere: marks no longer wait for this device."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.memory_only = True
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)

    def mark(self, uint64_t first, uint64_t last) -> None:
        """Set bits first..last (blocks) durably. Raises IndexError, OSError."""
        self.check(first, last)
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
        self.check(first, last)
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.clear_locked(first, last)
            pthread_mutex_unlock(&self.lock)

    def wipe(self) -> None:
        """Clear every bit, only while nobody marks; durable with the next sync()."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.hot.close_all()
            pthread_mutex_unlock(&self.lock)
        BlockMap.wipe(self)

    # ---- hot path -------------------------------------------------------------------------

    cdef uint64_t mark_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef uint32_t shift = self.hot.block_shift
        cdef uint64_t opened_last
        while True:
            if self.hot.are_hot(first >> shift, last >> shift):
                self.hot.use(first >> shift, last >> shift)
                self.count += bits_set(self.bits, first, last)
                return self.ticket_of(first, last)
            if bits_all(self.bits, first, last):
                return self.ticket_of(first, last)
            if self.memory_only:
                self.count += bits_set(self.bits, first, last)
                return 0
            if self.unstable_count < UNSTABLE_LIMIT or self.failed or self.closed:
                break
            # The lock is given up: what is hot, and what is set, may differ afterwards.
            pthread_cond_wait(&self.changed, &self.lock)
        opened_last = last | ((<uint64_t> 1 << shift) - 1)
        if not self.open_locked(first, last, &opened_last):
            return self.ticket_of(first, last)
        self.want += 1
        if self.unstable_count < UNSTABLE_LIMIT:
            # Whole extents, all that were opened: who marks another block there waits too.
            self.unstable[self.unstable_count].first = first >> shift << shift
            self.unstable[self.unstable_count].last = opened_last
            self.unstable[self.unstable_count].ticket = self.want
            self.unstable_count += 1
        return self.want

    cdef uint64_t ticket_of(self, uint64_t first, uint64_t last) noexcept nogil:
        # 0 when bits of these blocks that are set, or hot, are on disk; else whom to wait for.
        cdef uint64_t ticket = self.bulk_ticket if self.bulk_ticket > self.done else 0
        cdef int i
        for i in range(self.unstable_count):
            if self.unstable[i].first <= last and first <= self.unstable[i].last:
                ticket = max(ticket, self.unstable[i].ticket)
        return ticket

    cdef bint is_stable_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        if self.memory_only:
            return True
        if not self.hot.are_hot(first >> self.hot.block_shift, last >> self.hot.block_shift) and \
                not bits_all(self.bits, first, last):
            return False
        return self.ticket_of(first, last) == 0

    cdef bint open_locked(self, uint64_t first, uint64_t last,
                          uint64_t *opened_last) noexcept nogil:
        # Sets the bits; returns whether the disk lacks some, and moves opened_last where extents
        # beyond `last` were opened too. One that is written whole needs no opening: all its bits
        # are set anyway.
        cdef uint32_t shift = self.hot.block_shift
        cdef uint64_t extent, start, end
        cdef bint lacks = False
        for extent in range(first >> shift, (last >> shift) + 1):
            start = max(first, extent << shift)
            end = min(last, ((extent + 1) << shift) - 1)
            if self.hot.are_hot(extent, extent):
                self.hot.use(extent, extent)
            elif not bits_all(self.bits, start, end):
                lacks = True
                self.page_state[start // PAGE_BITS] = PAGE_SET
                if end - start + 1 < <uint64_t> 1 << shift:
                    end = ((extent + self.open_extent(extent)) << shift) - 1
                    opened_last[0] = max(opened_last[0], end)
        self.count += bits_set(self.bits, first, last)
        return lacks

    cdef uint64_t open_extent(self, uint64_t extent) noexcept nogil:
        # And the next ones of its page where a writer comes along; returns how many.
        cdef uint64_t count = 1, i
        cdef uint64_t page_end = ((extent << self.hot.block_shift) // PAGE_BITS + 1) * PAGE_BITS
        cdef uint64_t stop = min(page_end >> self.hot.block_shift, self.hot.extents)
        if extent and self.hot.are_hot(extent - 1, extent - 1):
            count = min(<uint64_t> AHEAD_EXTENTS, stop - extent)
        if self.hot.count + count > self.hot.limit:
            for _ in range(self.hot.limit // EVICT_SHARE + count):
                if self.hot.count == 0:
                    break
                self.close_extent(self.hot.next_victim(), PAGE_SET)
        for i in range(extent, extent + count):
            self.hot.open(i)
        return count

    cdef void close_extent(self, uint64_t extent, uint8_t state) noexcept nogil:
        cdef uint64_t page = (extent << self.hot.block_shift) // PAGE_BITS
        self.hot.close(extent)
        if self.page_state[page] < state:
            self.page_state[page] = state

    cdef int wait_stable(self, uint64_t ticket) noexcept nogil:
        cdef int error = 0
        pthread_mutex_lock(&self.lock)
        while self.done < ticket and not self.memory_only and not error:
            if self.failed or self.closed:
                error = self.failed or ESHUTDOWN
            elif self.committing:
                pthread_cond_wait(&self.changed, &self.lock)
            else:
                self.commit_locked(PAGE_SET)
        pthread_mutex_unlock(&self.lock)
        return error

    cdef void clear_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef uint64_t extent
        self.count -= bits_clear(self.bits, first, last)
        for extent in range(first >> self.hot.block_shift, (last >> self.hot.block_shift) + 1):
            self.note_cleared_locked(extent << self.hot.block_shift)

    cdef void note_cleared_locked(self, uint64_t block) noexcept nogil:
        cdef uint64_t extent = block >> self.hot.block_shift
        if self.page_state[block // PAGE_BITS] == PAGE_SAME and \
                not self.hot.are_hot(extent, extent):
            self.page_state[block // PAGE_BITS] = PAGE_CLEARED

    # ---- the disk ---------------------------------------------------------------------------

    cdef int commit(self) noexcept nogil:
        cdef int error
        pthread_mutex_lock(&self.lock)
        while self.committing:
            pthread_cond_wait(&self.changed, &self.lock)
        error = self.commit_locked(PAGE_CLEARED)
        pthread_mutex_unlock(&self.lock)
        return error

    cdef int commit_locked(self, uint8_t least) noexcept nogil:
        # Under lock, which is given up while the disk works. `least` is the PageState from which
        # on a page is written; every ticket given before is stable afterwards.
        cdef uint64_t target = self.want
        cdef int error
        if self.failed or self.closed:
            return self.failed or ESHUTDOWN
        self.committing = True
        error = self.write_pages(least)
        if error:
            # From here on no mark is stable, whatever its bits say.
            self.failed = error
            self.want += 1
            self.bulk_ticket = self.want
        else:
            self.commit_count += 1
            self.done = target
            self.forget_stable()
        self.committing = False
        pthread_cond_broadcast(&self.changed)
        return error

    cdef int write_pages(self, uint8_t least) noexcept nogil:
        # Pages are copied under the lock and written without it, so that marks go on meanwhile; a
        # page that is marked again keeps its state for the next round.
        cdef uint64_t page = 0, count = 0
        cdef bint wrote = False
        cdef int error = 0
        while page < self.pages and not error:
            if self.page_state[page] < least:
                page += 1
                continue
            count = self.copy_pages(page, least)
            wrote = True
            error = self.run_io(IO_WRITE, BITS_OFFSET_BYTES + page * PAGE_BYTES, count * PAGE_BYTES)
            page += count
        if wrote and not error:
            error = self.run_io(IO_FLUSH, 0, 0)
        return error

    cdef uint64_t copy_pages(self, uint64_t page, uint8_t least) noexcept nogil:
        # Into scratch, from `page` on, as the disk is to have them; returns how many.
        cdef uint32_t shift = self.hot.block_shift
        cdef uint64_t count = 0, first = page * PAGE_BITS, extent, at
        while count < COMMIT_PAGES and page + count < self.pages and \
                self.page_state[page + count] >= least:
            self.page_state[page + count] = PAGE_SAME
            count += 1
        memcpy(self.scratch, self.bits + page * PAGE_WORDS, count * PAGE_BYTES)
        extent = self.hot.next_hot(first >> shift, (first + count * PAGE_BITS) >> shift)
        while extent < min(self.hot.extents, (first + count * PAGE_BITS) >> shift):
            at = (extent << shift) - first
            bits_set(self.scratch, at, min(at + (<uint64_t> 1 << shift), self.blocks - first) - 1)
            extent = self.hot.next_hot(extent + 1, (first + count * PAGE_BITS) >> shift)
        return count

    cdef int run_io(self, uint8_t op, uint64_t offset, uint64_t length) noexcept nogil:
        # From scratch; gives up the lock meanwhile.
        cdef Io io
        cdef int error
        io.op = op
        io.flags = 0
        io.offset = offset
        io.length = length
        io.data = <uint8_t *> self.scratch if length else NULL
        io.complete = NULL
        io.owner = NULL
        pthread_mutex_unlock(&self.lock)
        error = self.volume.run(&io)
        pthread_mutex_lock(&self.lock)
        return error

    cdef void forget_stable(self) noexcept nogil:
        cdef int i, kept = 0
        for i in range(self.unstable_count):
            if self.unstable[i].ticket > self.done:
                self.unstable[kept] = self.unstable[i]
                kept += 1
        self.unstable_count = kept


cdef bint any_differs(const uint8_t *page_state, uint64_t pages) noexcept nogil:
    cdef uint64_t page
    for page in range(pages):
        if page_state[page] != PAGE_SAME:
            return True
    return False
