# Plain bit arrays of 64-bit words, bit i in word i/64: inline kernels without checks.
# Callers guarantee first <= last < the number of bits.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    static inline uint64_t trellis_mask(uint64_t first, uint64_t last)
    {   /* bits first..last of one word, both in 0..63 */
        return (~0ull << first) & (~0ull >> (63 - last));
    }
    static inline int trellis_bits_all(const uint64_t *w, uint64_t first, uint64_t last)
    {
        uint64_t i = first >> 6, j = last >> 6;
        if (i == j) {
            uint64_t m = trellis_mask(first & 63, last & 63);
            return (w[i] & m) == m;
        }
        uint64_t m = trellis_mask(first & 63, 63);
        if ((w[i] & m) != m) return 0;
        while (++i < j) if (~w[i]) return 0;
        m = trellis_mask(0, last & 63);
        return (w[j] & m) == m;
    }
    static inline uint64_t trellis_bits_set(uint64_t *w, uint64_t first, uint64_t last)
    {   /* returns how many were clear before */
        uint64_t i = first >> 6, j = last >> 6, n = 0;
        for (uint64_t k = i; k <= j; k++) {
            uint64_t m = trellis_mask(k == i ? first & 63 : 0, k == j ? last & 63 : 63);
            n += (uint64_t)__builtin_popcountll(m & ~w[k]);
            w[k] |= m;
        }
        return n;
    }
    static inline uint64_t trellis_bits_clear(uint64_t *w, uint64_t first, uint64_t last)
    {   /* returns how many were set before */
        uint64_t i = first >> 6, j = last >> 6, n = 0;
        for (uint64_t k = i; k <= j; k++) {
            uint64_t m = trellis_mask(k == i ? first & 63 : 0, k == j ? last & 63 : 63);
            n += (uint64_t)__builtin_popcountll(m & w[k]);
            w[k] &= ~m;
        }
        return n;
    }
    static inline uint64_t trellis_bits_merge(uint64_t *w, const uint64_t *other, uint64_t words)
    {   /* returns how many were clear before */
        uint64_t n = 0;
        for (uint64_t i = 0; i < words; i++) {
            uint64_t fresh = other[i] & ~w[i];
            if (fresh) {
                n += (uint64_t)__builtin_popcountll(fresh);
                w[i] |= fresh;
            }
        }
        return n;
    }
    static inline int trellis_bits_any(const uint64_t *w, uint64_t words)
    {
        for (uint64_t i = 0; i < words; i++) if (w[i]) return 1;
        return 0;
    }
    static inline uint64_t trellis_bits_count(const uint64_t *w, uint64_t words)
    {
        uint64_t n = 0;
        for (uint64_t i = 0; i < words; i++) n += (uint64_t)__builtin_popcountll(w[i]);
        return n;
    }
    static inline uint64_t trellis_bits_next(const uint64_t *w, uint64_t from,
                                             uint64_t nbits, int value)
    {   /* the first bit at or after `from` that has `value`; nbits when there is none */
        uint64_t flip = value ? 0 : ~0ull;
        if (from >= nbits) return nbits;
        uint64_t i = from >> 6, words = (nbits + 63) >> 6;
        uint64_t v = (w[i] ^ flip) & (~0ull << (from & 63));
        while (!v) {
            if (++i >= words) return nbits;
            v = w[i] ^ flip;
        }
        uint64_t at = (i << 6) + (uint64_t)__builtin_ctzll(v);
        return at < nbits ? at : nbits;
    }
    """
    bint bits_all "trellis_bits_all"(const uint64_t *w, uint64_t first,
                                     uint64_t last) noexcept nogil
    uint64_t bits_set "trellis_bits_set"(uint64_t *w, uint64_t first,
                                         uint64_t last) noexcept nogil
    uint64_t bits_clear "trellis_bits_clear"(uint64_t *w, uint64_t first,
                                             uint64_t last) noexcept nogil
    uint64_t bits_count "trellis_bits_count"(const uint64_t *w, uint64_t words) noexcept nogil
    # The first bit at or after `start` that has `value`; nbits when there is none.
    uint64_t bits_next "trellis_bits_next"(const uint64_t *w, uint64_t start, uint64_t nbits,
                                           int value) noexcept nogil
    # Sets in `w` what is set in `other`.
    uint64_t bits_merge "trellis_bits_merge"(uint64_t *w, const uint64_t *other,
                                             uint64_t words) noexcept nogil
    bint bits_any "trellis_bits_any"(const uint64_t *w, uint64_t words) noexcept nogil
