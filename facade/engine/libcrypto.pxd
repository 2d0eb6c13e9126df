# What the engine calls in OpenSSL's libcrypto (3.0 or newer): authenticated-cipher contexts.

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    enum:
        EVP_CTRL_AEAD_GET_TAG
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *context)
    const EVP_CIPHER *EVP_aes_256_gcm()
    # These return 1 when they succeeded.
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine,
                           const unsigned char *key, const unsigned char *nonce)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_bytes,
                          const unsigned char *data, int data_bytes)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_bytes)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *context, int command, int number, void *value)
