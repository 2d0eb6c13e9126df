# Metadata contexts: what BLOCK_STATUS can tell about a volume, each under a name of its own.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from facade.engine.bitmap cimport Bitmap
from facade.engine.volume cimport Volume

cdef enum:
    # Extents that one context tells in one reply; where they end, the client asks again.
    STATUS_EXTENTS_MAX = 2048
    # Questions that it may need for them: many that are alike become one extent.
    STATUS_LOOKUPS_MAX = 8192
    # Of a bitmap so many blocks (4 MiB of bits): so long its lock is held.
    STATUS_BLOCKS_MAX = 33554432

# Extents as they go out, written one behind the other; neighbours with equal flags become one.
cdef struct ExtentList:
    uint8_t *at              # room for `most` of them
    int count
    int most
    bint is_extended         # 64 bits of length and flags each, else 32 and lengths below 2^32
    uint64_t last_bytes      # length of the last one so far, and its flags
    uint32_t last_flags

# Add `length` bytes with `flags`. False: there is no room for it, and the list ends before it.
cdef bint extents_add(ExtentList *extents, uint64_t length, uint32_t flags) noexcept nogil


cdef class MetaContext:
    cdef readonly str name               # namespace, colon, leaf
    cdef int64_t withdrawn_state         # atomic; 1: it is no longer offered

    # Tell what is at `offset`, from there on without gaps and at least one extent, until `length`
    # bytes are covered or extents_add() says no. 0 or errno. From any thread, several at once;
    # length > 0, and the range is inside the volume.
    cdef int extents(self, uint64_t offset, uint64_t length, ExtentList *found) noexcept nogil


cdef class AllocationContext(MetaContext):
    cdef Volume volume


cdef class BitmapContext(MetaContext):
    cdef Bitmap bitmap
