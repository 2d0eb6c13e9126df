# Inline kernels on memory: what differs, what is zero. No checks: callers guarantee sizes.
#
# A block map is a plain array of 64-bit words, bit i in word i / 64 (see bits.pxd for the rest).
# Bits are only ever set here, atomically: threads share words.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from facade.engine.syscalls cimport atomic_load, atomic_or, is_zero

cdef extern from *:
    int popcount "__builtin_popcountll"(unsigned long long word) noexcept nogil
    int lowest_bit "__builtin_ctzll"(unsigned long long word) noexcept nogil


cdef inline void mark_block(uint64_t *map, uint64_t block) noexcept nogil:
    atomic_or(<int64_t *> &map[block >> 6], <int64_t> (<uint64_t> 1 << (block & 63)))


cdef inline bint has_block(uint64_t *map, uint64_t block) noexcept nogil:
    return <uint64_t> atomic_load(<int64_t *> &map[block >> 6]) >> (block & 63) & 1


# These two while others may mark: a bit set meanwhile is found or not.
cdef inline uint64_t count_blocks(uint64_t *map, uint64_t words) noexcept nogil:
    cdef uint64_t count = 0
    cdef uint64_t word
    for word in range(words):
        count += popcount(<uint64_t> atomic_load(<int64_t *> &map[word]))
    return count


# The first block at or after `start` whose bit is `value`; `blocks` when there is none.
cdef inline uint64_t next_block(uint64_t *map, uint64_t start, uint64_t blocks,
                                bint value) noexcept nogil:
    cdef uint64_t flip = 0 if value else ~<uint64_t> 0
    cdef uint64_t mask = ~<uint64_t> 0 << (start & 63)
    cdef uint64_t word = start >> 6
    cdef uint64_t found
    while word << 6 < blocks:
        found = (<uint64_t> atomic_load(<int64_t *> &map[word]) ^ flip) & mask
        if found:
            return min((word << 6) + lowest_bit(found), blocks)
        mask = ~<uint64_t> 0
        word += 1
    return blocks


# `size` bytes that stand at byte `start` of a range: marks each block of 1 << shift bytes (counted
# from the range's begin) of which any byte differs. Where `right` is NULL it counts as zeroes.
cdef inline void mark_differing(const uint8_t *left, const uint8_t *right, uint64_t start,
                                uint64_t size, int shift, uint64_t *map) noexcept nogil:
    cdef uint64_t block_bytes = <uint64_t> 1 << shift
    cdef uint64_t at = 0
    cdef uint64_t step
    cdef bint is_equal
    while at < size:
        step = min(size - at, block_bytes - ((start + at) & (block_bytes - 1)))
        if right == NULL:
            is_equal = is_zero(left + at, step)
        else:
            is_equal = memcmp(left + at, right + at, step) == 0
        if not is_equal:
            mark_block(map, (start + at) >> shift)
        at += step


# How many of `size` bytes from `data` on are alike: all zero, or not, granule by granule. Granules
# of 1 << shift bytes are counted from where `start` would be 0; the first and last may be shorter.
cdef inline uint64_t alike_bytes(const uint8_t *data, uint64_t start, uint64_t size, int shift,
                                 bint *zero) noexcept nogil:
    cdef uint64_t granule_bytes = <uint64_t> 1 << shift
    cdef uint64_t at = 0
    cdef uint64_t step
    cdef bint is_first = True
    cdef bint found
    while at < size:
        step = min(size - at, granule_bytes - ((start + at) & (granule_bytes - 1)))
        found = is_zero(data + at, step)
        if is_first:
            zero[0] = found
            is_first = False
        elif found != zero[0]:
            break
        at += step
    return at
