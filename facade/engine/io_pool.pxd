# Threads that wait for the disk, the link or another request, so that a connection's need not.
#
# One pool a volume: a slow volume keeps its own threads busy and nobody else's. Threads come with
# the work, end after IDLE_END_MS without any, and are all gone when close() returns.

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    POOL_THREADS_MAX = 32          # requests of one volume that wait at a time; more queue
    # Of reads, which have threads of their own: more would only be woken more often.
    READ_THREADS_MAX = 16
    LOOKUP_THREADS_MAX = 4         # questions about its extents, likewise
    POOL_STACK_BYTES = 262144      # a layer may call Python when its bitmap fails
    IDLE_END_MS = 5000

# A piece of work on its way to a thread, part of what it works on. The queue is bounded by what
# those who push may have in flight.
cdef struct PoolItem:
    void (*run)(void *owner) noexcept nogil
    void *owner
    PoolItem *next


cdef class IoPool:
    cdef pthread_mutex_t mutex     # guards what follows
    cdef pthread_cond_t work       # idle threads wait here
    cdef pthread_cond_t gone       # close() waits here
    cdef PoolItem *first
    cdef PoolItem *last
    cdef readonly int threads_max
    cdef int thread_count
    cdef int idle_count            # of these, waiting for work
    cdef int queued                # items that no thread has taken
    cdef bint is_ending            # idle threads go at once
    cdef bint is_ready             # mutex and conditions exist

    # Have item.run(item.owner) called on a thread of the pool, which may end the item's memory.
    # Where no thread can be had it is called on the caller's.
    cdef void push(self, PoolItem *item) noexcept nogil
    cdef void serve(self) noexcept nogil
