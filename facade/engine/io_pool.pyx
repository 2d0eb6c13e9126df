"""The threads on which a volume's requests wait."""

from facade.engine.syscalls cimport (
    cond_init,
    cond_wait_ms,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    start_detached_thread,
)


# The pool lives until close() has seen its last thread go, so it is borrowed here.
cdef void *pool_thread(void *pool) noexcept nogil:
    (<IoPool> pool).serve()
    return NULL


cdef class IoPool:
    """Runs requests that would make their submitter wait. See the header."""

    def __cinit__(self) -> None:
        pthread_mutex_init(&self.mutex, NULL)
        cond_init(&self.work)
        cond_init(&self.gone)
        self.threads_max = POOL_THREADS_MAX
        self.is_ready = True

    def __init__(self, threads_max: int = POOL_THREADS_MAX) -> None:
        self.threads_max = threads_max

    def __dealloc__(self) -> None:
        if self.is_ready:
            with nogil:
                end_threads(self)
            pthread_cond_destroy(&self.gone)
            pthread_cond_destroy(&self.work)
            pthread_mutex_destroy(&self.mutex)

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        cdef int count
        with nogil:
            pthread_mutex_lock(&self.mutex)
            count = self.thread_count
            pthread_mutex_unlock(&self.mutex)
        return count

    def close(self) -> None:
        """Return when every request is done and every thread gone; later requests start anew."""
        with nogil:
            end_threads(self)

    cdef void push(self, PoolItem *item) noexcept nogil:
        cdef bint is_short
        cdef bint has_idle
        item.next = NULL
        pthread_mutex_lock(&self.mutex)
        if self.first == NULL:
            self.first = item
        else:
            self.last.next = item
        self.last = item
        self.queued += 1
        is_short = self.queued > self.idle_count and self.thread_count < self.threads_max
        if is_short:
            if start_detached_thread(pool_thread, <void *> self, POOL_STACK_BYTES) == 0:
                self.thread_count += 1
            elif self.thread_count == 0:
                self.first = NULL
                self.queued = 0
                pthread_mutex_unlock(&self.mutex)
                item.run(item.owner)
                return
        has_idle = self.idle_count > 0
        pthread_mutex_unlock(&self.mutex)
        # After the unlocking: who wakes finds the mutex free. The pool outlives its items.
        if has_idle:
            pthread_cond_signal(&self.work)

    cdef void serve(self) noexcept nogil:
        cdef PoolItem *item
        cdef int late = 0
        pthread_mutex_lock(&self.mutex)
        while True:
            if self.first == NULL:
                if late or self.is_ending:
                    break
                self.idle_count += 1
                late = cond_wait_ms(&self.work, &self.mutex, IDLE_END_MS)
                self.idle_count -= 1
                continue
            late = 0
            item = self.first
            self.first = item.next
            self.queued -= 1
            pthread_mutex_unlock(&self.mutex)
            item.run(item.owner)
            pthread_mutex_lock(&self.mutex)
        self.thread_count -= 1
        if self.thread_count == 0:
            pthread_cond_broadcast(&self.gone)
        pthread_mutex_unlock(&self.mutex)


cdef void end_threads(IoPool pool) noexcept nogil:
    pthread_mutex_lock(&pool.mutex)
    pool.is_ending = True
    pthread_cond_broadcast(&pool.work)
    while pool.thread_count:
        pthread_cond_wait(&pool.gone, &pool.mutex)
    pool.is_ending = False
    pthread_mutex_unlock(&pool.mutex)
