# Digests that tell whether two pieces of data are equal without moving them: AES-256-GMAC under a
# random seed that both sides of a session share and nobody else knows. What that is worth, and
# where it is not to be used: docs/blocks.md.

from libc.stdint cimport uint8_t

from facade.engine.libcrypto cimport EVP_CIPHER_CTX

cdef enum:
    SEED_BYTES = 32
    DIGEST_BYTES = 16
    DIGEST_PIECE_MAX = 1 << 30     # bytes digested at once; libcrypto counts in an int

# One thread's own; any number may share a seed.
cdef struct Digester:
    EVP_CIPHER_CTX *context        # NULL: closed

# 0 or ENOMEM. `seed` has SEED_BYTES and is not needed afterwards.
cdef int open_digester(Digester *digester, const uint8_t *seed) noexcept nogil
# 0 or EIO (libcrypto refused). Writes DIGEST_BYTES to `digest`. size at most DIGEST_PIECE_MAX.
cdef int digest_piece(Digester *digester, const void *data, size_t size,
                      uint8_t *digest) noexcept nogil
cdef void close_digester(Digester *digester) noexcept nogil
