# The pieces that the other side was found to lack, one bit per DIGEST_PIECE_BYTES of a volume: the
# link's receiver puts them in, the copier takes them out.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from facade.engine.syscalls cimport pthread_mutex_t

cdef enum:
    SCAN_PIECES = 1 << 20              # looked at under the lock in one go: 4 GiB of volume

cdef class PieceMap:
    cdef readonly uint64_t size_bytes
    cdef uint64_t pieces
    cdef uint64_t words
    cdef uint64_t *bits                # anonymous mapping; what is untouched takes no memory
    cdef pthread_mutex_t mutex         # guards bits and wanted_count
    cdef uint64_t wanted_count         # pieces asked for since the start

    # An answer about `length` bytes at `offset`: bit i of `asked` (lowest first) is piece i of
    # them. 0, or EPROTO for what cannot be an answer.
    cdef int want(self, uint64_t offset, uint64_t length, const uint8_t *asked,
                  uint32_t asked_bytes) noexcept nogil
    cdef uint64_t count_wanted(self) noexcept nogil
    # The next run of pieces from `start`, at most `limit`, taken out; returns how many. With 0,
    # `first` is where to go on; at `pieces` there is nothing more.
    cdef uint64_t take(self, uint64_t start, uint64_t limit, uint64_t *first) noexcept nogil
