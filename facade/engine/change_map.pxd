# The bitmap as the replication layer uses it: when a bit may be cleared.
#
# A bit is cleared only when no write to its block is in flight and a flush begun after its last
# write has completed on both sides. Writes belong to one of two epochs. A clean flips the epoch,
# waits until every write of the old one has ended on both sides, flushes both sides, then clears
# all bits that are neither touched since the flip nor still to be copied. One clean runs at a time.

from libc.stdint cimport uint64_t

from facade.engine.bitmap cimport Bitmap
from facade.engine.syscalls cimport pthread_cond_t

cdef class ChangeMap(Bitmap):
    # All under lock, but for what `touched` holds: see give_back().
    cdef uint64_t *touched       # blocks written since the last flip, while `watching`
    cdef bint watching           # a clean is under way: from its flip to its end
    cdef uint64_t watched_bulk   # `bulk` as it was at the flip
    cdef uint64_t *todo          # blocks the copier has not taken yet; NULL: no copy is planned
    cdef uint64_t todo_count
    cdef int parity              # of the current epoch
    cdef uint64_t[2] active      # writes of each epoch not yet ended on both sides
    cdef uint64_t writes         # begun since the start
    cdef pthread_cond_t quiet    # active[] fell to 0

    # Under lock: a write to these blocks begins; returns its parity for leave().
    cdef int enter_locked(self, uint64_t first, uint64_t last) noexcept nogil
    # Without lock: it has ended on both sides, or its link is gone.
    cdef void leave(self, int parity) noexcept nogil
    # Without lock: new epoch; 0 once every write of the old one has ended, ETIMEDOUT after that.
    cdef int flip(self, long timeout_ms) noexcept nogil
    # Without lock, after both sides flushed: clears what is settled; returns how many. Nothing
    # when bits were set in bulk, or the copier's list changed, since the flip.
    cdef uint64_t clear_settled(self) noexcept nogil
    # Under lock: the next run of blocks to copy, at most `limit`, taken off the list; 0 = none.
    cdef uint64_t take_todo_locked(self, uint64_t start, uint64_t limit,
                                   uint64_t *first) noexcept nogil

    cdef uint64_t clear_page_locked(self, uint64_t page) noexcept nogil
    cdef void stop_watching(self) noexcept nogil
    cdef void replace_todo(self, uint64_t *fresh, uint64_t count) noexcept nogil
    cdef void drop_empty_todo(self) noexcept nogil
