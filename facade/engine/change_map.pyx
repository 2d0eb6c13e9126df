"""The rules by which bits of the change bitmap are cleared, and the copier's list."""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from facade.engine.bitmap cimport Bitmap
from facade.engine.bits cimport bits_any, bits_clear, bits_count, bits_next, bits_set
from facade.engine.block_map cimport PAGE_BYTES, PAGE_WORDS, new_map
from facade.engine.syscalls cimport (
    MADV_DONTNEED,
    cond_init,
    cond_wait_ms,
    madvise,
    munmap,
    now_ms,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from facade.engine.volume cimport Volume


cdef class ChangeMap(Bitmap):
    """A Bitmap with epochs of writes and the list of blocks still to be copied."""

    def __cinit__(self, *_):
        cond_init(&self.quiet)

    def __init__(self, Volume volume not None, size_bytes, block_bytes):
        Bitmap.__init__(self, volume, size_bytes, block_bytes)
        self.touched = new_map(self.words)

    def __dealloc__(self):
        if self.touched != NULL:
            munmap(self.touched, self.words * 8)
        if self.todo != NULL:
            munmap(self.todo, self.words * 8)
        pthread_cond_destroy(&self.quiet)

    @property
    def todo_blocks(self) -> int:
        """Blocks the copier has not taken yet."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.lock)
            count = self.todo_count
            pthread_mutex_unlock(&self.lock)
        return count

    @property
    def active_writes(self) -> int:
        """Writes and copies begun and not yet ended on both sides."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.lock)
            count = self.active[0] + self.active[1]
            pthread_mutex_unlock(&self.lock)
        return count

    @property
    def writes_begun(self) -> int:
        """Writes and copies begun since the layer was engaged."""
        cdef uint64_t begun
        with nogil:
            pthread_mutex_lock(&self.lock)
            begun = self.writes
            pthread_mutex_unlock(&self.lock)
        return begun

    def plan_copy(self) -> int:
        """Make every dirty block one to copy; returns how many there are.

        Page by page: a block that is marked meanwhile is on the list or not, and its write is sent
        in either case.
        """
        cdef uint64_t *plan = new_map(self.words)
        cdef uint64_t page, count = 0
        with nogil:
            for page in range(self.pages):
                pthread_mutex_lock(&self.lock)
                # Pages of zeroes stay untouched: they take no memory.
                if bits_any(self.bits + page * PAGE_WORDS, PAGE_WORDS):
                    memcpy(plan + page * PAGE_WORDS, self.bits + page * PAGE_WORDS, PAGE_BYTES)
                    count += bits_count(plan + page * PAGE_WORDS, PAGE_WORDS)
                pthread_mutex_unlock(&self.lock)
            self.replace_todo(plan, count)
        return count

    def drop_copy(self) -> None:
        """Forget the copier's list: the bits themselves say what differs."""
        with nogil:
            self.replace_todo(NULL, 0)

    cdef void replace_todo(self, uint64_t *fresh, uint64_t count) noexcept nogil:
        cdef uint64_t *old
        pthread_mutex_lock(&self.lock)
        old = self.todo
        self.todo = fresh
        self.todo_count = count
        # A clean that is under way may not clear what the old list kept.
        self.watching = False
        pthread_mutex_unlock(&self.lock)
        if old != NULL:
            munmap(old, self.words * 8)

    cdef int enter_locked(self, uint64_t first, uint64_t last) noexcept nogil:
        if self.watching:
            bits_set(self.touched, first, last)
        self.active[self.parity] += 1
        self.writes += 1
        return self.parity

    cdef void leave(self, int parity) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.active[parity] -= 1
        if self.active[parity] == 0:
            pthread_cond_broadcast(&self.quiet)
        pthread_mutex_unlock(&self.lock)

    cdef void stop_watching(self) noexcept nogil:
        # Nobody writes to `touched` while it is not watched, so its memory can be given back
        # without the lock; it reads as zeroes afterwards.
        pthread_mutex_lock(&self.lock)
        self.watching = False
        pthread_mutex_unlock(&self.lock)
        madvise(self.touched, self.words * 8, MADV_DONTNEED)

    cdef int flip(self, long timeout_ms) noexcept nogil:
        cdef int old, error = 0
        cdef long deadline = now_ms() + timeout_ms, left
        self.stop_watching()
        pthread_mutex_lock(&self.lock)
        # The other parity is reused only once its writes are gone: one flip at a time.
        while self.active[self.parity ^ 1] and not error:
            left = deadline - now_ms()
            if left <= 0:
                error = ETIMEDOUT
            else:
                cond_wait_ms(&self.quiet, &self.lock, left)
        if not error:
            old = self.parity
            self.parity ^= 1
            self.watching = True
            self.watched_bulk = self.bulk
            while self.active[old] and not error:
                left = deadline - now_ms()
                if left <= 0:
                    error = ETIMEDOUT
                else:
                    cond_wait_ms(&self.quiet, &self.lock, left)
        pthread_mutex_unlock(&self.lock)
        return error

    cdef uint64_t clear_settled(self) noexcept nogil:
        # Page by page: a write that comes in between is in `touched`, and whoever else sets bits
        # or changes the copier's list raises `bulk`.
        cdef uint64_t page, cleared = 0
        cdef bint same = True
        for page in range(self.pages):
            pthread_mutex_lock(&self.lock)
            same = self.watching and self.bulk == self.watched_bulk
            if same:
                cleared += self.clear_page_locked(page)
            pthread_mutex_unlock(&self.lock)
            if not same:
                break
        self.stop_watching()
        self.drop_empty_todo()
        return cleared

    cdef void drop_empty_todo(self) noexcept nogil:
        # Once the copier has taken all, its list takes no memory.
        cdef uint64_t *empty = NULL
        pthread_mutex_lock(&self.lock)
        if self.todo_count == 0:
            empty = self.todo
            self.todo = NULL
        pthread_mutex_unlock(&self.lock)
        if empty != NULL:
            munmap(empty, self.words * 8)

    cdef uint64_t clear_page_locked(self, uint64_t page) noexcept nogil:
        cdef uint64_t word, keep, fresh, cleared = 0
        for word in range(page * PAGE_WORDS, (page + 1) * PAGE_WORDS):
            if not self.bits[word]:
                continue
            keep = self.touched[word]
            if self.todo_count:
                keep |= self.todo[word]
            fresh = self.bits[word] & ~keep
            if fresh:
                self.bits[word] &= keep
                cleared += bits_count(&fresh, 1)
                self.note_cleared_locked(word * 64)
        self.count -= cleared
        return cleared

    cdef uint64_t take_todo_locked(self, uint64_t start, uint64_t limit,
                                   uint64_t *first) noexcept nogil:
        cdef uint64_t at, end
        if self.todo_count == 0:
            return 0
        at = bits_next(self.todo, start, self.blocks, 1)
        if at >= self.blocks:
            return 0
        end = bits_next(self.todo, at, min(at + limit, self.blocks), 0)
        self.todo_count -= bits_clear(self.todo, at, end - 1)
        first[0] = at
        return end - at
