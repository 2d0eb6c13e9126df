"""Metadata contexts of an NBD export: allocation, and the dirty blocks of a set."""

from libc.errno cimport ENOSYS
from libc.string cimport memcpy

from facade.engine.bits cimport bits_next
from facade.engine.nbd_wire cimport (
    NBD_EXTENDED_EXTENT_BYTES,
    NBD_EXTENT_BYTES,
    NBD_STATE_DIRTY,
    NBD_STATE_HOLE,
    NBD_STATE_ZERO,
)
from facade.engine.syscalls cimport (
    atomic_load,
    atomic_store,
    htobe32,
    htobe64,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

# Longest name of a context, as the protocol has it for every string.
CONTEXT_NAME_MAX_BYTES = 4096

ALLOCATION_NAME = "base:allocation"
DIRTY_BITMAP_PREFIX = "qemu:dirty-bitmap:"


cdef bint extents_add(ExtentList *extents, uint64_t length, uint32_t flags) noexcept nogil:
    if extents.count and extents.last_flags == flags:
        extents.last_bytes += length
    elif extents.count == extents.most:
        return False
    else:
        extents.count += 1
        extents.last_bytes = length
        extents.last_flags = flags
    write_last(extents)
    return True


cdef inline void write_last(ExtentList *extents) noexcept nogil:
    cdef uint64_t[2] long_words
    cdef uint32_t[2] words
    if extents.is_extended:
        long_words[0] = htobe64(extents.last_bytes)
        long_words[1] = htobe64(extents.last_flags)
        memcpy(extents.at + (extents.count - 1) * NBD_EXTENDED_EXTENT_BYTES, long_words,
               NBD_EXTENDED_EXTENT_BYTES)
        return
    words[0] = htobe32(<uint32_t> extents.last_bytes)
    words[1] = htobe32(extents.last_flags)
    memcpy(extents.at + (extents.count - 1) * NBD_EXTENT_BYTES, words, NBD_EXTENT_BYTES)


cdef class MetaContext:
    """Something that can be told about every byte of a volume, in 32 bits of flags.

    A kind of context is a subclass with its own `extents`.
    """

    def __init__(self, name: str) -> None:
        """`name` is what clients ask for. Raises ValueError unless it is `namespace:leaf`."""
        namespace, colon, leaf = name.partition(":")
        if not (namespace and colon and leaf) or len(name.encode()) > CONTEXT_NAME_MAX_BYTES:
            raise ValueError(f"metadata context {name[:80]!r}: a name is namespace:leaf, at most "
                             f"{CONTEXT_NAME_MAX_BYTES} bytes in all")
        self.name = name
        self.withdrawn_state = 0

    @property
    def withdrawn(self) -> bool:
        """Whether it is no longer offered: clients that selected it are told so by an error."""
        return atomic_load(&self.withdrawn_state) != 0

    @withdrawn.setter
    def withdrawn(self, value: bool) -> None:
        atomic_store(&self.withdrawn_state, 1 if value else 0)

    cdef int extents(self, uint64_t offset, uint64_t length, ExtentList *found) noexcept nogil:
        return ENOSYS


cdef class AllocationContext(MetaContext):
    """`base:allocation`: which parts of a volume are holes, which read as zeroes."""

    def __init__(self, volume: Volume) -> None:
        """Asks `volume`'s layers; where they cannot know, everything is data."""
        MetaContext.__init__(self, ALLOCATION_NAME)
        self.volume = volume

    cdef int extents(self, uint64_t offset, uint64_t length, ExtentList *found) noexcept nogil:
        cdef uint64_t end = offset + length
        cdef uint64_t run_bytes = 0
        cdef bint is_hole = False
        cdef int error
        cdef int lookups = 0
        while offset < end and lookups < STATUS_LOOKUPS_MAX:
            error = self.volume.extent(offset, end - offset, &run_bytes, &is_hole)
            if error:
                # What is known already is worth telling; the next question meets the error.
                return 0 if lookups else error
            lookups += 1
            if not extents_add(found, run_bytes, NBD_STATE_HOLE | NBD_STATE_ZERO if is_hole else 0):
                return 0
            offset += run_bytes
        return 0


cdef class BitmapContext(MetaContext):
    """`qemu:dirty-bitmap:<set>`: the blocks that the set's bitmap has marked, as flag 1.

    A reply is consistent: it is made under the bitmap's lock, from what memory holds. Withdraw it
    when the bitmap's set ends: its bits mean nothing afterwards.
    """

    def __init__(self, set_name: str, bitmap: Bitmap) -> None:
        """Raises ValueError when `set_name` is empty or too long for a context's name."""
        MetaContext.__init__(self, DIRTY_BITMAP_PREFIX + set_name)
        self.bitmap = bitmap

    cdef int extents(self, uint64_t offset, uint64_t length, ExtentList *found) noexcept nogil:
        cdef uint64_t end = offset + length
        cdef uint32_t shift = self.bitmap.block_shift
        cdef uint64_t stop
        cdef uint64_t run_end
        cdef bint is_dirty
        if length >> shift > STATUS_BLOCKS_MAX:
            end = offset + (<uint64_t> STATUS_BLOCKS_MAX << shift)
        pthread_mutex_lock(&self.bitmap.lock)
        while offset < end:
            # Bits beyond the range are not looked at: what the lock is held for has a limit.
            stop = min(self.bitmap.blocks, ((end - 1) >> shift) + 1)
            run_end = bits_next(self.bitmap.bits, offset >> shift, stop, 0)
            is_dirty = run_end > offset >> shift
            if not is_dirty:
                run_end = bits_next(self.bitmap.bits, offset >> shift, stop, 1)
            run_end = min(end, run_end << shift)
            if run_end <= offset:
                run_end = end       # past the bitmap's volume: not tracked, and clean
            if not extents_add(found, run_end - offset, NBD_STATE_DIRTY if is_dirty else 0):
                break
            offset = run_end
        pthread_mutex_unlock(&self.bitmap.lock)
        return 0
