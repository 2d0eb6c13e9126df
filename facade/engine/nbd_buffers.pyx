"""Chunks of memory for requests and replies, counted and kept for reuse."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from facade.engine.syscalls cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    atomic_add,
    atomic_load,
    atomic_store,
    cond_init,
    cond_wait_ms,
    madvise,
    mmap,
    munmap,
    pthread_cond_broadcast,
    pthread_cond_t,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)


# What the connections of this process share.
cdef struct Shared:
    int64_t used_bytes               # atomic: beyond OWN_BYTES of each connection
    int64_t limit_bytes              # atomic
    int64_t waiting                  # atomic: connections in pool_wait()
    pthread_mutex_t mutex            # of `changed` alone
    pthread_cond_t changed           # memory was given back


cdef Shared shared
shared.limit_bytes = SHARED_BYTES_MAX
pthread_mutex_init(&shared.mutex, NULL)
cond_init(&shared.changed)


def limit_shared_bytes(size_bytes: int) -> None:
    """Set what all connections share; not less than one may have, so that each can be served.

    Raises ValueError.
    """
    if not BUFFER_BYTES_MAX <= size_bytes <= SHARED_BYTES_MAX:
        raise ValueError(f"{size_bytes} bytes for all NBD connections; it is {BUFFER_BYTES_MAX} to "
                         f"{SHARED_BYTES_MAX}")
    atomic_store(&shared.limit_bytes, size_bytes)


def shared_bytes() -> int:
    """Return how many bytes the connections have, beyond OWN_BYTES of each."""
    return atomic_load(&shared.used_bytes)


# What of a pool of `mapped_bytes` counts as shared.
cdef inline int64_t shared_part(size_t mapped_bytes) noexcept nogil:
    return mapped_bytes - OWN_BYTES if mapped_bytes > OWN_BYTES else 0


cdef bint share(BufferPool *pool, size_t more_bytes) noexcept nogil:
    cdef int64_t more = (shared_part(pool.mapped_bytes + more_bytes)
                         - shared_part(pool.mapped_bytes))
    if more and atomic_add(&shared.used_bytes, more) > atomic_load(&shared.limit_bytes):
        atomic_add(&shared.used_bytes, -more)
        return False
    return True


cdef void unshare(size_t before_bytes, size_t after_bytes) noexcept nogil:
    cdef int64_t less = shared_part(before_bytes) - shared_part(after_bytes)
    if not less:
        return
    atomic_add(&shared.used_bytes, -less)
    # Whoever waits has said so before it looked at used_bytes.
    if atomic_load(&shared.waiting):
        pthread_mutex_lock(&shared.mutex)
        pthread_cond_broadcast(&shared.changed)
        pthread_mutex_unlock(&shared.mutex)


cdef bint pool_wait(BufferPool *pool, size_t size_bytes) noexcept nogil:
    cdef int64_t more
    cdef int late = 0
    if pool.is_refused:
        return False
    pool_release(pool)
    more = (shared_part(pool.mapped_bytes + rounded_up(size_bytes))
            - shared_part(pool.mapped_bytes))
    atomic_add(&shared.waiting, 1)
    pthread_mutex_lock(&shared.mutex)
    while (not late and atomic_load(&shared.used_bytes) + more
           > atomic_load(&shared.limit_bytes)):
        late = cond_wait_ms(&shared.changed, &shared.mutex, SHARED_TIMEOUT_S * 1000)
    pthread_mutex_unlock(&shared.mutex)
    atomic_add(&shared.waiting, -1)
    return not late


# Past half of what is shared nothing is kept for later: others may need it now.
cdef inline bint is_short() noexcept nogil:
    return atomic_load(&shared.used_bytes) > atomic_load(&shared.limit_bytes) // 2


cdef inline size_t rounded_up(size_t size_bytes) noexcept nogil:
    cdef size_t rounded = CHUNK_BYTES
    while rounded < size_bytes:
        rounded *= 2
    return rounded


cdef Chunk *pool_take(BufferPool *pool, size_t size_bytes) noexcept nogil:
    cdef size_t rounded = rounded_up(size_bytes)
    cdef Chunk *chunk
    cdef Chunk **link = &pool.free
    while link[0] != NULL:
        chunk = link[0]
        if chunk.size_bytes == rounded:
            link[0] = chunk.next
            pool.free_bytes -= rounded
            chunk.users = 1
            return chunk
        link = &chunk.next
    if pool.mapped_bytes + rounded > BUFFER_BYTES_MAX:
        pool_release(pool)
    if pool.mapped_bytes + rounded > BUFFER_BYTES_MAX:
        return NULL
    if not share(pool, rounded):
        pool_release(pool)
        if not share(pool, rounded):
            return NULL
    chunk = map_chunk(pool, rounded)
    pool.is_refused = chunk == NULL
    if chunk == NULL:
        unshare(pool.mapped_bytes + rounded, pool.mapped_bytes)
    return chunk


cdef Chunk *map_chunk(BufferPool *pool, size_t size_bytes) noexcept nogil:
    cdef Chunk *chunk = <Chunk *> calloc(1, sizeof(Chunk))
    cdef void *data
    if chunk == NULL:
        return NULL
    data = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if data == MAP_FAILED:
        free(chunk)
        return NULL
    chunk.data = <uint8_t *> data
    chunk.size_bytes = size_bytes
    chunk.users = 1
    pool.mapped_bytes += size_bytes
    return chunk


cdef void unmap_chunk(BufferPool *pool, Chunk *chunk) noexcept nogil:
    munmap(chunk.data, chunk.size_bytes)
    unshare(pool.mapped_bytes, pool.mapped_bytes - chunk.size_bytes)
    pool.mapped_bytes -= chunk.size_bytes
    free(chunk)


cdef void pool_drop(BufferPool *pool, Chunk *chunk) noexcept nogil:
    if chunk == NULL:
        return
    chunk.users -= 1
    if chunk.users:
        return
    if (chunk.size_bytes > KEPT_CHUNK_BYTES_MAX
            or pool.free_bytes + chunk.size_bytes > KEPT_BYTES_MAX or is_short()):
        unmap_chunk(pool, chunk)
        return
    chunk.next = pool.free
    pool.free = chunk
    pool.free_bytes += chunk.size_bytes


cdef void pool_release(BufferPool *pool) noexcept nogil:
    cdef Chunk *chunk
    while pool.free != NULL:
        chunk = pool.free
        pool.free = chunk.next
        unmap_chunk(pool, chunk)
    pool.free_bytes = 0


cdef void chunk_forget(Chunk *chunk) noexcept nogil:
    madvise(chunk.data, chunk.size_bytes, MADV_DONTNEED)
