"""Chunks of memory for requests and replies, counted and kept for reuse."""

from libc.stdlib cimport calloc, free

from facade.engine.syscalls cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)


cdef Chunk *pool_take(BufferPool *pool, size_t size_bytes) noexcept nogil:
    cdef size_t rounded = CHUNK_BYTES
    cdef Chunk *chunk
    cdef Chunk **link = &pool.free
    while rounded < size_bytes:
        rounded *= 2
    while link[0] != NULL:
        chunk = link[0]
        if chunk.size_bytes == rounded:
            link[0] = chunk.next
            pool.free_count -= 1
            chunk.users = 1
            return chunk
        link = &chunk.next
    if pool.mapped_bytes + rounded > BUFFER_BYTES_MAX:
        pool_release(pool)
    if pool.mapped_bytes + rounded > BUFFER_BYTES_MAX:
        return NULL
    return map_chunk(pool, rounded)


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
    pool.mapped_bytes -= chunk.size_bytes
    munmap(chunk.data, chunk.size_bytes)
    free(chunk)


cdef void pool_drop(BufferPool *pool, Chunk *chunk) noexcept nogil:
    if chunk == NULL:
        return
    chunk.users -= 1
    if chunk.users:
        return
    if chunk.size_bytes > KEPT_CHUNK_BYTES_MAX or pool.free_count >= KEPT_CHUNKS_MAX:
        unmap_chunk(pool, chunk)
        return
    chunk.next = pool.free
    pool.free = chunk
    pool.free_count += 1


cdef void pool_release(BufferPool *pool) noexcept nogil:
    cdef Chunk *chunk
    while pool.free != NULL:
        chunk = pool.free
        pool.free = chunk.next
        unmap_chunk(pool, chunk)
    pool.free_count = 0


cdef void chunk_forget(Chunk *chunk) noexcept nogil:
    madvise(chunk.data, chunk.size_bytes, MADV_DONTNEED)
