# Memory of one NBD connection: nothing while it is idle, at most BUFFER_BYTES_MAX while it works.
# Not locked: only the connection's own thread takes and gives.
#
# In all, the connections of a process have at most SHARED_BYTES_MAX beyond OWN_BYTES of each. Who
# needs more waits, with nothing in flight, until others have given back; OWN_BYTES are enough to
# go on with small requests whatever the others do.
from libc.stdint cimport uint8_t

cdef enum:
    CHUNK_BYTES = 262144              # smallest chunk; one holds a batch of small requests
    BUFFER_BYTES_MAX = 67108864       # all chunks of one connection; past it, it is not read from
    OWN_BYTES = 524288                # of each connection's, not counted as shared
    SHARED_BYTES_MAX = 1073741824     # of all connections together
    SHARED_TIMEOUT_S = 60             # who has not been given any for so long is disconnected
    KEPT_CHUNK_BYTES_MAX = 4194304    # a larger chunk goes back to the kernel at once
    KEPT_BYTES_MAX = 16777216         # of free chunks, kept for the next requests

cdef struct Chunk:
    uint8_t *data
    size_t size_bytes
    int users                # the connection itself and each request whose data is in it
    Chunk *next              # valid while in the list of free ones

cdef struct BufferPool:
    Chunk *free
    size_t free_bytes
    size_t mapped_bytes      # free ones included
    bint is_refused          # by the kernel, the last time it was asked

# A chunk of at least size_bytes with one user; NULL when the limit (or the memory) is reached.
cdef Chunk *pool_take(BufferPool *pool, size_t size_bytes) noexcept nogil

# One user less; without users it is free. NULL is allowed.
cdef void pool_drop(BufferPool *pool, Chunk *chunk) noexcept nogil

# pool_take() gave NULL and nothing is in flight: wait until other connections have given so much
# back, then try again. False: they have not within SHARED_TIMEOUT_S, or the kernel has no memory.
cdef bint pool_wait(BufferPool *pool, size_t size_bytes) noexcept nogil

# Give every free chunk back to the kernel.
cdef void pool_release(BufferPool *pool) noexcept nogil

# Give the chunk's memory back to the kernel but keep its address: it reads as zeroes afterwards.
cdef void chunk_forget(Chunk *chunk) noexcept nogil
