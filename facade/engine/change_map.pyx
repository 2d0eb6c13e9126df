"""The rules by which bits of the change bitmap are cleared, and the copier's list."""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from facade.engine.bitmap cimport Bitmap
from facade.engine.bits cimport bits_clear, bits_count, bits_next, bits_set
from facade.engine.syscalls cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    cond_init,
    cond_wait_ms,
    mmap,
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

    def __cinit__(self):
        cond_init(&self.quiet)

    def __init__(self, Volume volume not None, size_bytes, block_bytes):
        super().__init__(volume, size_bytes, block_bytes)
        # Untouched pages of an anonymous mapping cost no memory, so both maps may be whole.
        cdef void *p = mmap(NULL, self.words * 16, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            raise MemoryError(f"no memory for maps of {self.words * 16} bytes")
        self.touched = <uint64_t *> p
        self.todo = self.touched + self.words

    def __dealloc__(self):
        if self.touched != NULL:
            munmap(self.touched, self.words * 16)
        pthread_cond_destroy(&self.quiet)

    @property
    def todo_blocks(self) -> int:
        """Blocks the copier has not taken yet."""
        return self.todo_count

    @property
    def active_writes(self) -> int:
        """Writes and copies begun and not yet ended on both sides."""
        return self.active[0] + self.active[1]

    @property
    def writes_begun(self) -> int:
        """Writes and copies begun since the layer was engaged."""
        return self.writes

    def plan_copy(self) -> int:
        """Make every dirty block one to copy; returns how many there are."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            memcpy(self.todo, self.bits, self.words * 8)
            self.todo_count = self.count
            pthread_mutex_unlock(&self.lock)
        return self.todo_count

    def drop_copy(self) -> None:
        """Forget the copier's list: the bits themselves say what differs."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            memset(self.todo, 0, self.words * 8)
            self.todo_count = 0
            pthread_mutex_unlock(&self.lock)

    cdef int enter_locked(self, uint64_t first, uint64_t last) noexcept nogil:
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

    cdef int flip(self, long timeout_ms) noexcept nogil:
        cdef int old, error = 0
        cdef long deadline = now_ms() + timeout_ms, left
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
            memset(self.touched, 0, self.words * 8)
            while self.active[old] and not error:
                left = deadline - now_ms()
                if left <= 0:
                    error = ETIMEDOUT
                else:
                    cond_wait_ms(&self.quiet, &self.lock, left)
        pthread_mutex_unlock(&self.lock)
        return error

    cdef uint64_t clear_settled(self) noexcept nogil:
        cdef uint64_t word, before, cleared = 0
        pthread_mutex_lock(&self.lock)
        before = self.count
        for word in range(self.words):
            if self.bits[word] & ~(self.todo[word] | self.touched[word]):
                self.bits[word] &= self.todo[word] | self.touched[word]
                self.page_dirty[word >> 9] = 1
        self.count = bits_count(self.bits, self.words)
        cleared = before - self.count
        pthread_mutex_unlock(&self.lock)
        return cleared

    cdef uint64_t take_todo_locked(self, uint64_t start, uint64_t limit,
                                   uint64_t *first) noexcept nogil:
        cdef uint64_t at, end
        if self.todo_count == 0:
            return 0
        at = bits_next(self.todo, start, self.blocks, 1)
        if at >= self.blocks:
            return 0
        end = bits_next(self.todo, at, self.blocks, 0)
        if end - at > limit:
            end = at + limit
        self.todo_count -= bits_clear(self.todo, at, end - 1)
        first[0] = at
        return end - at
