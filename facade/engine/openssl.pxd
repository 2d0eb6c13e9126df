# What the engine calls of OpenSSL 3 (libssl, libcrypto): `nbd_transport` and `nbd_tls` do.

from libc.stdint cimport uint64_t

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_METHOD:
        pass
    enum:
        TLS1_2_VERSION
        TLS1_3_VERSION
        SSL_VERIFY_PEER
        SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_FILETYPE_PEM
        SSL_SESS_CACHE_OFF
        SSL_MODE_ENABLE_PARTIAL_WRITE
        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_ERROR_NONE
        SSL_ERROR_WANT_READ
        SSL_ERROR_WANT_WRITE
        SSL_ERROR_ZERO_RETURN
        SSL_KEY_UPDATE_NOT_REQUESTED
        SSL_SENT_SHUTDOWN
    uint64_t SSL_OP_NO_TICKET
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    const SSL_METHOD *TLS_server_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *context)
    uint64_t SSL_CTX_set_options(SSL_CTX *context, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX *context, long mode)
    int SSL_CTX_set_min_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX *context, const char *names)
    int SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *names)
    int SSL_CTX_set_num_tickets(SSL_CTX *context, size_t count)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *context, long mode)
    int SSL_CTX_use_certificate_chain_file(SSL_CTX *context, const char *path)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX *context, const char *path, int kind)
    int SSL_CTX_check_private_key(const SSL_CTX *context)
    int SSL_CTX_load_verify_locations(SSL_CTX *context, const char *file, const char *folder)
    void SSL_CTX_set_verify(SSL_CTX *context, int mode, void *callback)
    SSL *SSL_new(SSL_CTX *context)
    void SSL_free(SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *incoming, BIO *outgoing)
    int SSL_accept(SSL *ssl)
    int SSL_read(SSL *ssl, void *data, int room)
    int SSL_write(SSL *ssl, const void *data, int length)
    int SSL_shutdown(SSL *ssl)
    int SSL_get_error(const SSL *ssl, int returned)
    int SSL_free_buffers(SSL *ssl)
    int SSL_key_update(SSL *ssl, int kind)
    int SSL_version(const SSL *ssl)
    int SSL_has_pending(const SSL *ssl)
    int SSL_is_init_finished(const SSL *ssl)
    int SSL_get_shutdown(const SSL *ssl)
    const char *SSL_get_version(const SSL *ssl)
    const char *SSL_get_cipher(const SSL *ssl)
    long SSL_get_verify_result(const SSL *ssl)
    X509 *SSL_get1_peer_certificate(const SSL *ssl)

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    enum:
        BIO_CTRL_FLUSH
        BIO_TYPE_SOURCE_SINK
    int BIO_get_new_index()
    BIO_METHOD *BIO_meth_new(int kind, const char *name)
    int BIO_meth_set_write(BIO_METHOD *method, int (*call)(BIO *, const char *, int) noexcept nogil)
    int BIO_meth_set_read(BIO_METHOD *method, int (*call)(BIO *, char *, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *method,
                          long (*call)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *method)
    int BIO_free(BIO *bio)
    void BIO_set_init(BIO *bio, int is_ready)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_clear_retry_flags(BIO *bio)
    void BIO_set_retry_read(BIO *bio)
    void BIO_set_retry_write(BIO *bio)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    const char *ERR_reason_error_string(unsigned long error)

cdef extern from "<openssl/x509v3.h>" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_NAME_ENTRY:
        pass
    ctypedef struct ASN1_STRING:
        pass
    ctypedef struct GENERAL_NAMES:
        pass
    ctypedef struct GENERAL_NAME:
        pass
    enum:
        X509_V_OK
        NID_commonName
        NID_subject_alt_name
        GEN_DNS
    void X509_free(X509 *certificate)
    X509_NAME *X509_get_subject_name(const X509 *certificate)
    int X509_NAME_get_index_by_NID(X509_NAME *name, int nid, int after)
    X509_NAME_ENTRY *X509_NAME_get_entry(const X509_NAME *name, int index)
    ASN1_STRING *X509_NAME_ENTRY_get_data(const X509_NAME_ENTRY *entry)
    int ASN1_STRING_to_UTF8(unsigned char **text, const ASN1_STRING *string)
    void *X509_get_ext_d2i(const X509 *certificate, int nid, int *is_critical, int *index)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *names)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *names, int index)
    void *GENERAL_NAME_get0_value(const GENERAL_NAME *name, int *kind)
    void GENERAL_NAMES_free(GENERAL_NAMES *names)
    const char *X509_verify_cert_error_string(long code)

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_free(void *memory)
