# The bitmap as the replication layer uses it: when a bit may be cleared.
#
# A bit is cleared only when no write to its block is in flight and a flush begun after its last
# write has completed on both sides. Writes belong to one of two epochs. A clean flips the epoch,
# waits until every write of the old one has ended on both sides, flushes both sides, then clears
# all bits that are neither touched in the new epoch nor still to be copied.

from libc.stdint cimport uint64_t

from facade.engine.bitmap cimport Bitmap
from facade.engine.syscalls cimport pthread_cond_t

cdef class ChangeMap(Bitmap):
    cdef uint64_t *touched       # blocks written in the current epoch; under lock
    cdef uint64_t *todo          # blocks the copier has not taken yet; under lock
    cdef uint64_t todo_count
    cdef int parity              # of the current epoch
    cdef uint64_t active[2]      # writes of each epoch not yet ended on both sides
    cdef uint64_t writes         # begun since the start
    cdef pthread_cond_t quiet    # active[] fell to 0

    # Under lock: a write to these blocks begins; returns its parity for leave().
    cdef int enter_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Without lock: it has ended on both sides, or its link is gone.
    cdef void leave(self, int parity) noexcept nogil
    # Without lock: new epoch; 0 once every write of the old one has ended, ETIMEDOUT after that.
    cdef int flip(self, long timeout_ms) noexcept nogil
    # Without lock, after both sides flushed: clears what is settled; returns how many.
    cdef uint64_t clear_settled(self) noexcept nogil
    # Under lock: the next run of blocks to copy, at most `limit`, taken off the list; 0 = none.
    cdef uint64_t take_todo_locked(self, uint64_t start, uint64_t limit,
                                   uint64_t *first) noexcept nogil
