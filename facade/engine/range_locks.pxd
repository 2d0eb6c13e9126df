# Locks on ranges of blocks, held from a local write to its place in the send order, and by the
# copier from read to send: two writes to one block reach both sides in the same order.
#
# Striped: block b uses stripe b % STRIPES. A range takes its stripes in rising order, so that
# holders cannot wait for each other in a circle.

from libc.stdint cimport uint64_t

from facade.engine.syscalls cimport pthread_mutex_t

cdef enum:
    STRIPES = 256
    PEEK_BLOCKS_MAX = 64

cdef class RangeLocks:
    cdef pthread_mutex_t stripes[STRIPES]

    cdef void lock(self, uint64_t first, uint64_t last) noexcept nogil
    cdef void unlock(self, uint64_t first, uint64_t last) noexcept nogil
    # Whether lock() would not wait, just now. A range of over PEEK_BLOCKS_MAX counts as taken.
    cdef bint are_free(self, uint64_t first, uint64_t last) noexcept nogil
