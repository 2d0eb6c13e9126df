"""TLS with NBD clients: what the server is, who the client is, and the handshake."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, EPROTO, ESHUTDOWN, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset, strerror

from facade.engine.nbd_transport cimport (
    TLS_INCOMING_BYTES,
    TLS_RECORDS_PER_KEY,
    Transport,
    transport_close,
    transport_error,
    transport_flush,
    transport_has_incoming,
    transport_open,
    transport_receive,
    transport_send,
    wire_is_unsent,
)
from facade.engine.openssl cimport (
    GEN_DNS,
    GENERAL_NAMES,
    SSL_FILETYPE_PEM,
    SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
    SSL_MODE_ENABLE_PARTIAL_WRITE,
    SSL_OP_CIPHER_SERVER_PREFERENCE,
    SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION,
    SSL_OP_NO_TICKET,
    SSL_SESS_CACHE_OFF,
    SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
    SSL_VERIFY_PEER,
    TLS1_2_VERSION,
    X509,
    X509_NAME,
    X509_V_OK,
    ASN1_STRING,
    ASN1_STRING_to_UTF8,
    ERR_clear_error,
    ERR_peek_error,
    ERR_reason_error_string,
    GENERAL_NAME_get0_value,
    GENERAL_NAMES_free,
    NID_commonName,
    NID_subject_alt_name,
    OPENSSL_free,
    SSL_accept,
    SSL_CTX_check_private_key,
    SSL_CTX_free,
    SSL_CTX_load_verify_locations,
    SSL_CTX_new,
    SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites,
    SSL_CTX_set_min_proto_version,
    SSL_CTX_set_mode,
    SSL_CTX_set_num_tickets,
    SSL_CTX_set_options,
    SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_verify,
    SSL_CTX_use_certificate_chain_file,
    SSL_CTX_use_PrivateKey_file,
    SSL_get1_peer_certificate,
    SSL_get_cipher,
    SSL_get_verify_result,
    SSL_get_version,
    SSL_is_init_finished,
    SSL_shutdown,
    TLS_server_method,
    X509_free,
    X509_get_ext_d2i,
    X509_get_subject_name,
    X509_NAME_ENTRY_get_data,
    X509_NAME_get_entry,
    X509_NAME_get_index_by_NID,
    X509_verify_cert_error_string,
    sk_GENERAL_NAME_num,
    sk_GENERAL_NAME_value,
)
from facade.engine.syscalls cimport (
    iovec,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    POLLIN,
    POLLOUT,
    now_ms,
    poll,
    pollfd,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    recv,
)

# The shorter key first: as strong as anybody needs, and a fifth less work for both sides.
CIPHERS_1_3 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# In TLS 1.2 keys never change, and ChaCha20 has no limit that a connection could reach.
CIPHERS_1_2 = b"ECDHE+CHACHA20:ECDHE+AESGCM"


class TlsRefused(ConnectionError):
    """The TLS handshake failed; the message says why, for a log."""


cdef class TlsContext:
    """What a TLS server is: its certificate and key, and the CA that its clients must come from.

    Sessions are never resumed: each connection shows its certificate anew.
    """

    def __cinit__(self) -> None:
        self.context = NULL

    def __init__(self, certificate: str, key: str, ca: str) -> None:
        """Take three PEM files; raise ValueError with a sentence when one does not serve."""
        cdef bytes certificate_path = certificate.encode()
        cdef bytes key_path = key.encode()
        cdef bytes ca_path = ca.encode()
        cdef bytes ciphers_1_3 = CIPHERS_1_3
        cdef bytes ciphers_1_2 = CIPHERS_1_2
        ERR_clear_error()
        self.context = SSL_CTX_new(TLS_server_method())
        if self.context == NULL:
            raise MemoryError
        SSL_CTX_set_min_proto_version(self.context, TLS1_2_VERSION)
        SSL_CTX_set_options(self.context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION
                            | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE)
        SSL_CTX_set_num_tickets(self.context, 0)
        SSL_CTX_set_session_cache_mode(self.context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_mode(self.context, SSL_MODE_ENABLE_PARTIAL_WRITE
                         | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
        SSL_CTX_set_verify(self.context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)
        if (SSL_CTX_set_ciphersuites(self.context, ciphers_1_3) != 1
                or SSL_CTX_set_cipher_list(self.context, ciphers_1_2) != 1):
            raise ValueError(f"OpenSSL lacks the ciphers: {reason()}")
        if SSL_CTX_use_certificate_chain_file(self.context, certificate_path) != 1:
            raise ValueError(f"{certificate} is no certificate that can be used: {reason()}")
        if SSL_CTX_use_PrivateKey_file(self.context, key_path, SSL_FILETYPE_PEM) != 1:
            raise ValueError(f"{key} is no key that fits {certificate}: {reason()}")
        if SSL_CTX_check_private_key(self.context) != 1:
            raise ValueError(f"{key} does not fit {certificate}: {reason()}")
        if SSL_CTX_load_verify_locations(self.context, ca_path, NULL) != 1:
            raise ValueError(f"{ca} holds no CA certificate: {reason()}")

    def __dealloc__(self) -> None:
        if self.context != NULL:
            SSL_CTX_free(self.context)


cdef class TlsSession:
    """TLS with one client over a connected socket, which stays the caller's and must outlive it.

    `handshake` first; then `receive` and `send` for the options, and a `Transmission` for the rest.
    Until that runs, one thread at a time.
    """

    def __cinit__(self) -> None:
        memset(&self.transport, 0, sizeof(self.transport))

    def __init__(self, context: TlsContext, fd: int,
                 records_per_key: int = TLS_RECORDS_PER_KEY) -> None:
        self.context = context
        if transport_open(&self.transport, (<TlsContext> context).context, fd, records_per_key):
            raise MemoryError

    def __dealloc__(self) -> None:
        transport_close(&self.transport)

    def handshake(self, timeout_s: float) -> None:
        """Become a TLS server whose client has shown a certificate of the CA.

        Raises TlsRefused, with the reason; TimeoutError; OSError.
        """
        cdef int64_t until_ms = now_ms() + <int64_t> (timeout_s * 1000)
        cdef int error
        with nogil:
            error = self.accept(until_ms)
            # The flight that ends the handshake, or the alert that says why there is none.
            if transport_flush(&self.transport, MSG_DONTWAIT | MSG_NOSIGNAL) and error == 0:
                error = ETIMEDOUT
        if error == EPROTO:
            raise TlsRefused(self.why())
        if error == ESHUTDOWN:
            raise TlsRefused("the client left during the TLS handshake")
        if error:
            raise_errno(error)

    def receive(self, size: int, timeout_s: float) -> bytes:
        """Return up to `size` bytes, none when the client sends no more. Raises OSError."""
        cdef int64_t until_ms = now_ms() + <int64_t> (timeout_s * 1000)
        cdef bytearray buffer = bytearray(size)
        cdef uint8_t *data = buffer
        cdef size_t room = size
        cdef ssize_t count
        cdef int error
        while True:
            with nogil:
                count = transport_receive(&self.transport, data, room, MSG_DONTWAIT)
                error = errno if count < 0 else 0
                if error == EAGAIN:
                    error = 0 if self.await_input(until_ms) > 0 else ETIMEDOUT
            if error:
                raise_errno(error)
            if count >= 0:
                return bytes(buffer[:count])

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`. Raises OSError."""
        cdef int64_t until_ms = now_ms() + <int64_t> (timeout_s * 1000)
        cdef const uint8_t *at = data
        cdef iovec piece
        cdef pollfd watched
        cdef ssize_t count
        cdef int error = 0
        piece.iov_base = <void *> at
        piece.iov_len = len(data)
        watched.fd = self.transport.fd
        watched.events = POLLOUT
        while piece.iov_len or wire_is_unsent(&self.transport):
            with nogil:
                error = 0
                if piece.iov_len:
                    count = transport_send(&self.transport, &piece, 1, MSG_DONTWAIT | MSG_NOSIGNAL)
                    error = errno if count < 0 else 0
                    if count > 0:
                        piece.iov_base = <uint8_t *> piece.iov_base + count
                        piece.iov_len -= count
                if error == 0:
                    error = transport_flush(&self.transport, MSG_DONTWAIT | MSG_NOSIGNAL)
                if error == EAGAIN:
                    error = 0
                    if poll(&watched, 1, <int> max(until_ms - now_ms(), 0)) <= 0:
                        error = ETIMEDOUT
            if error:
                raise_errno(error)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the client's certificate: its common name, then its DNS names."""
        cdef X509 *certificate = SSL_get1_peer_certificate(self.transport.ssl)
        if certificate == NULL:
            return ()
        try:
            return tuple(dict.fromkeys([*common_names(certificate), *dns_names(certificate)]))
        finally:
            X509_free(certificate)

    @property
    def cipher(self) -> str:
        """Version and cipher that were agreed on, for a log."""
        cdef const char *version = SSL_get_version(self.transport.ssl)
        cdef const char *cipher = SSL_get_cipher(self.transport.ssl)
        return f"{version.decode()} {cipher.decode()}"

    def close(self) -> None:
        """Tell the client that nothing follows, as far as the socket takes it at once."""
        if SSL_is_init_finished(self.transport.ssl):
            with nogil:
                pthread_mutex_lock(&self.transport.mutex)
                ERR_clear_error()
                SSL_shutdown(self.transport.ssl)
                pthread_mutex_unlock(&self.transport.mutex)
                transport_flush(&self.transport, MSG_DONTWAIT | MSG_NOSIGNAL)

    cdef int await_input(self, int64_t until_ms) noexcept nogil:
        cdef pollfd watched
        watched.fd = self.transport.fd
        watched.events = POLLIN
        return poll(&watched, 1, <int> max(until_ms - now_ms(), <int64_t> 0))

    cdef int accept(self, int64_t until_ms) noexcept nogil:
        cdef Transport *transport = &self.transport
        cdef ssize_t count
        cdef int returned
        cdef int error
        if not transport_has_incoming(transport):
            return ENOMEM
        while True:
            ERR_clear_error()
            returned = SSL_accept(transport.ssl)
            if returned == 1:
                return 0
            error = transport_error(transport, returned)
            if error != EAGAIN:
                return error
            error = transport_flush(transport, MSG_DONTWAIT | MSG_NOSIGNAL)
            if error and error != EAGAIN:
                return error
            returned = self.await_input(until_ms)
            if returned <= 0:
                return ETIMEDOUT if returned == 0 else errno
            transport.incoming_start = 0
            count = recv(transport.fd, transport.incoming, TLS_INCOMING_BYTES, MSG_DONTWAIT)
            if count == 0:
                return ESHUTDOWN
            if count < 0 and errno != EAGAIN and errno != EINTR:
                return errno
            transport.incoming_end = count if count > 0 else 0

    # After a failed handshake, on the same thread.
    def why(self) -> str:
        """Say why the handshake failed."""
        cdef long verdict = SSL_get_verify_result(self.transport.ssl)
        if verdict != X509_V_OK:
            text = (<bytes> X509_verify_cert_error_string(verdict)).decode()
            return f"the client's certificate is not accepted: {text}"
        return f"the TLS handshake failed: {reason()}"


cdef str reason():
    cdef const char *text = ERR_reason_error_string(ERR_peek_error())
    return "no reason known" if text == NULL else (<bytes> text).decode()


cdef int raise_errno(int error) except -1:
    raise OSError(error, (<bytes> strerror(error)).decode())


cdef list common_names(X509 *certificate):
    cdef X509_NAME *subject = X509_get_subject_name(certificate)
    cdef int index = X509_NAME_get_index_by_NID(subject, NID_commonName, -1)
    found = []
    while index >= 0:
        found += text_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, index)))
        index = X509_NAME_get_index_by_NID(subject, NID_commonName, index)
    return found


cdef list dns_names(X509 *certificate):
    cdef GENERAL_NAMES *names = <GENERAL_NAMES *> X509_get_ext_d2i(
        certificate, NID_subject_alt_name, NULL, NULL)
    cdef int number
    cdef int kind = 0
    cdef void *value
    if names == NULL:
        return []
    found = []
    try:
        for number in range(sk_GENERAL_NAME_num(names)):
            value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, number), &kind)
            if kind == GEN_DNS:
                found += text_of(<ASN1_STRING *> value)
    finally:
        GENERAL_NAMES_free(names)
    return found


# The text in a list, or nothing: a name with a zero byte is meant to be read as a shorter one.
cdef list text_of(ASN1_STRING *string):
    cdef unsigned char *text = NULL
    cdef int length = ASN1_STRING_to_UTF8(&text, string)
    if length < 0:
        return []
    try:
        name = (<char *> text)[:length].decode("utf-8", "replace")
    finally:
        OPENSSL_free(text)
    return [name] if name and "\0" not in name else []
