"""Striped locks on ranges of blocks."""

from libc.stdint cimport uint64_t

from facade.engine.syscalls cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)


cdef class RangeLocks:
    """Locks for blocks first..last; not re-entrant."""

    def __cinit__(self):
        cdef int i
        for i in range(STRIPES):
            pthread_mutex_init(&self.stripes[i], NULL)

    def __dealloc__(self):
        cdef int i
        for i in range(STRIPES):
            pthread_mutex_destroy(&self.stripes[i])

    cdef void lock(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef int i, low = <int> (first % STRIPES), high = <int> (last % STRIPES)
        if last - first >= STRIPES - 1:
            for i in range(STRIPES):
                pthread_mutex_lock(&self.stripes[i])
        elif low <= high:
            for i in range(low, high + 1):
                pthread_mutex_lock(&self.stripes[i])
        else:
            for i in range(high + 1):
                pthread_mutex_lock(&self.stripes[i])
            for i in range(low, STRIPES):
                pthread_mutex_lock(&self.stripes[i])

    cdef void unlock(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef int i, low = <int> (first % STRIPES), high = <int> (last % STRIPES)
        if last - first >= STRIPES - 1:
            for i in range(STRIPES):
                pthread_mutex_unlock(&self.stripes[i])
        elif low <= high:
            for i in range(low, high + 1):
                pthread_mutex_unlock(&self.stripes[i])
        else:
            for i in range(high + 1):
                pthread_mutex_unlock(&self.stripes[i])
            for i in range(low, STRIPES):
                pthread_mutex_unlock(&self.stripes[i])

    cdef bint are_free(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef uint64_t block
        cdef pthread_mutex_t *stripe
        if last - first >= PEEK_BLOCKS_MAX:
            return False
        for block in range(first, last + 1):
            stripe = &self.stripes[block % STRIPES]
            if pthread_mutex_trylock(stripe) != 0:
                return False
            pthread_mutex_unlock(stripe)
        return True
