"""The pieces of a volume that its other side asked for."""

from libc.errno cimport EPROTO
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from facade.engine.bits cimport bits_clear, bits_next, bits_set
from facade.engine.link_wire cimport DIGEST_PIECE_BYTES, DIGEST_RANGE_BYTES
from facade.engine.syscalls cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef class PieceMap:
    """Pieces still to be sent. Safe to use from any thread."""

    def __cinit__(self) -> None:
        pthread_mutex_init(&self.mutex, NULL)
        self.bits = NULL

    def __init__(self, size_bytes: int) -> None:
        """`size_bytes` is the volume's, over 0. Raises MemoryError."""
        cdef void *memory
        self.size_bytes = size_bytes
        self.pieces = (self.size_bytes + DIGEST_PIECE_BYTES - 1) // DIGEST_PIECE_BYTES
        self.words = (self.pieces + 63) // 64
        memory = mmap(NULL, self.words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError(f"no memory for a map of {self.words * 8} bytes")
        self.bits = <uint64_t *> memory

    def __dealloc__(self) -> None:
        if self.bits != NULL:
            munmap(self.bits, self.words * 8)
        pthread_mutex_destroy(&self.mutex)

    @property
    def wanted_ever(self) -> int:
        """How many pieces were asked for since the start."""
        return self.count_wanted()

    cdef uint64_t count_wanted(self) noexcept nogil:
        cdef uint64_t count
        pthread_mutex_lock(&self.mutex)
        count = self.wanted_count
        pthread_mutex_unlock(&self.mutex)
        return count

    cdef int want(self, uint64_t offset, uint64_t length, const uint8_t *asked,
                  uint32_t asked_bytes) noexcept nogil:
        cdef uint64_t count
        cdef uint64_t first
        cdef uint64_t number
        if (offset % DIGEST_PIECE_BYTES or length == 0 or length > DIGEST_RANGE_BYTES
                or offset > self.size_bytes or length > self.size_bytes - offset):
            return EPROTO
        count = (length + DIGEST_PIECE_BYTES - 1) // DIGEST_PIECE_BYTES
        if asked_bytes != (count + 7) // 8:
            return EPROTO
        first = offset // DIGEST_PIECE_BYTES
        pthread_mutex_lock(&self.mutex)
        for number in range(count):
            if asked[number >> 3] >> (number & 7) & 1:
                bits_set(self.bits, first + number, first + number)
                self.wanted_count += 1
        pthread_mutex_unlock(&self.mutex)
        return 0

    cdef uint64_t take(self, uint64_t start, uint64_t limit, uint64_t *first) noexcept nogil:
        cdef uint64_t stop = min(start + SCAN_PIECES, self.pieces)
        cdef uint64_t at
        cdef uint64_t end
        pthread_mutex_lock(&self.mutex)
        at = bits_next(self.bits, start, stop, 1)
        end = at
        if at < stop:
            end = bits_next(self.bits, at, min(at + limit, self.pieces), 0)
            bits_clear(self.bits, at, end - 1)
        pthread_mutex_unlock(&self.mutex)
        first[0] = at
        return end - at
