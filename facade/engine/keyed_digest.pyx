"""Digests of pieces of data under a secret seed, for comparing volumes over a link."""

from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint8_t
from libc.string cimport memset

from facade.engine.libcrypto cimport (
    EVP_CTRL_AEAD_GET_TAG,
    EVP_CIPHER_CTX_ctrl,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_EncryptFinal_ex,
    EVP_EncryptInit_ex,
    EVP_EncryptUpdate,
    EVP_aes_256_gcm,
)

# The nonce never changes: under one seed equal pieces must have equal digests, on both sides.
cdef uint8_t[12] NONCE
memset(&NONCE[0], 0, sizeof(NONCE))


cdef int open_digester(Digester *digester, const uint8_t *seed) noexcept nogil:
    digester.context = EVP_CIPHER_CTX_new()
    if digester.context == NULL:
        return ENOMEM
    if EVP_EncryptInit_ex(digester.context, EVP_aes_256_gcm(), NULL, seed, &NONCE[0]) != 1:
        close_digester(digester)
        return ENOMEM
    return 0


cdef int digest_piece(Digester *digester, const void *data, size_t size,
                      uint8_t *digest) noexcept nogil:
    cdef int written = 0
    # The same key, from the start again; all of the piece is "additional data", none is ciphered.
    if EVP_EncryptInit_ex(digester.context, NULL, NULL, NULL, &NONCE[0]) != 1:
        return EIO
    if size and EVP_EncryptUpdate(digester.context, NULL, &written, <const uint8_t *> data,
                                  <int> size) != 1:
        return EIO
    if EVP_EncryptFinal_ex(digester.context, digest, &written) != 1:
        return EIO
    if EVP_CIPHER_CTX_ctrl(digester.context, EVP_CTRL_AEAD_GET_TAG, DIGEST_BYTES, digest) != 1:
        return EIO
    return 0


cdef void close_digester(Digester *digester) noexcept nogil:
    EVP_CIPHER_CTX_free(digester.context)
    digester.context = NULL


def check_seed(const uint8_t[::1] seed not None) -> None:
    """Raise ValueError unless `seed` has SEED_BYTES."""
    if seed.shape[0] != SEED_BYTES:
        raise ValueError(f"the seed has {seed.shape[0]} bytes: it must be {SEED_BYTES} random "
                         "bytes that both sides of a session share")


def keyed_digest(const uint8_t[::1] seed not None, const uint8_t[::1] data not None) -> bytes:
    """Digest `data` (at most 1 GiB) under `seed` (32 bytes): 16 bytes.

    Equal data has equal digests under one seed. Different data whose author does not know the seed
    has equal ones with a chance of at most (length / 16 + 2) / 2^128. Raises ValueError, OSError.
    """
    check_seed(seed)
    if data.shape[0] > DIGEST_PIECE_MAX:
        raise ValueError(f"{data.shape[0]} bytes are more than one digest covers "
                         f"({DIGEST_PIECE_MAX}); digest them in pieces")
    cdef uint8_t[DIGEST_BYTES] digest
    cdef Digester digester
    cdef const uint8_t *key = &seed[0]
    cdef size_t size = data.shape[0]
    cdef const uint8_t *start = &data[0] if size else key
    cdef int error
    with nogil:
        error = open_digester(&digester, key)
        if error == 0:
            error = digest_piece(&digester, start, size, &digest[0])
            close_digester(&digester)
    if error:
        raise OSError(error, "libcrypto has no AES-256-GCM to digest with")
    return (<const char *> &digest[0])[:DIGEST_BYTES]
