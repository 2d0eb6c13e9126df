"""TLS between an NBD connection and its client, without the GIL and without copying twice."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, EPROTO, ESHUTDOWN, ETIMEDOUT, errno
from libc.string cimport memcpy, memmove, memset, strerror

from facade.engine.openssl cimport (
    BIO,
    BIO_CTRL_FLUSH,
    BIO_METHOD,
    BIO_TYPE_SOURCE_SINK,
    GEN_DNS,
    GENERAL_NAMES,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    SSL_FILETYPE_PEM,
    SSL_KEY_UPDATE_NOT_REQUESTED,
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
    TLS1_3_VERSION,
    X509,
    X509_NAME,
    X509_V_OK,
    ASN1_STRING,
    ASN1_STRING_to_UTF8,
    BIO_clear_retry_flags,
    BIO_get_data,
    BIO_get_new_index,
    BIO_meth_new,
    BIO_meth_set_ctrl,
    BIO_meth_set_read,
    BIO_meth_set_write,
    BIO_new,
    BIO_set_data,
    BIO_set_init,
    BIO_set_retry_read,
    BIO_set_retry_write,
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
    SSL_free,
    SSL_free_buffers,
    SSL_get1_peer_certificate,
    SSL_get_cipher,
    SSL_get_error,
    SSL_get_verify_result,
    SSL_get_version,
    SSL_has_pending,
    SSL_is_init_finished,
    SSL_key_update,
    SSL_new,
    SSL_read,
    SSL_set_bio,
    SSL_shutdown,
    SSL_version,
    SSL_write,
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
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_WAITALL,
    POLLIN,
    POLLOUT,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
    now_ms,
    poll,
    pollfd,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    recv,
    send,
    set_errno,
)

# The shorter key first: as strong as anybody needs, and a fifth less work for both sides.
CIPHERS_1_3 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# In TLS 1.2 keys never change, and ChaCha20 has no limit that a connection could reach.
CIPHERS_1_2 = b"ECDHE+CHACHA20:ECDHE+AESGCM"

cdef BIO_METHOD *buffers_method = NULL


class TlsRefused(ConnectionError):
    """The TLS handshake failed; the message says why, for a log."""


cdef int read_incoming(BIO *bio, char *data, int room) noexcept nogil:
    cdef Transport *transport = <Transport *> BIO_get_data(bio)
    cdef size_t count = min(transport.incoming_end - transport.incoming_start, <size_t> room)
    BIO_clear_retry_flags(bio)
    if count == 0:
        BIO_set_retry_read(bio)
        return -1
    memcpy(data, transport.incoming + transport.incoming_start, count)
    transport.incoming_start += count
    return <int> count


# All or nothing: who seals a record has seen to it that there is room.
cdef int write_outgoing(BIO *bio, const char *data, int length) noexcept nogil:
    cdef Transport *transport = <Transport *> BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if (not has_buffer(&transport.outgoing, TLS_OUTGOING_BYTES)
            or TLS_OUTGOING_BYTES - transport.outgoing_end < <size_t> length):
        BIO_set_retry_write(bio)
        return -1
    memcpy(transport.outgoing + transport.outgoing_end, data, length)
    transport.outgoing_end += length
    return length


cdef long control_buffers(BIO *bio, int command, long number, void *pointer) noexcept nogil:
    return 1 if command == BIO_CTRL_FLUSH else 0


# Straight from the kernel, so that what is given back does not stay with the process.
cdef bint has_buffer(uint8_t **buffer, size_t size_bytes) noexcept nogil:
    cdef void *memory
    if buffer[0] == NULL:
        memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory != MAP_FAILED:
            buffer[0] = <uint8_t *> memory
    return buffer[0] != NULL


cdef void drop_buffer(uint8_t **buffer, size_t size_bytes) noexcept nogil:
    if buffer[0] != NULL:
        munmap(buffer[0], size_bytes)
        buffer[0] = NULL


# Under the mutex, by the sender: what is left to send comes to the front.
cdef void compact(Transport *transport) noexcept nogil:
    cdef size_t left = transport.outgoing_end - transport.outgoing_start
    if left and transport.outgoing_start:
        memmove(transport.outgoing, transport.outgoing + transport.outgoing_start, left)
    transport.outgoing_start = 0
    transport.outgoing_end = left


cdef int error_of(Transport *transport, int returned) noexcept nogil:
    cdef int kind = SSL_get_error(transport.ssl, returned)
    if kind == SSL_ERROR_WANT_READ or kind == SSL_ERROR_WANT_WRITE:
        return EAGAIN
    return ESHUTDOWN if kind == SSL_ERROR_ZERO_RETURN else EPROTO


cdef ssize_t transport_receive(Transport *transport, uint8_t *data, size_t room,
                               int flags) noexcept nogil:
    cdef size_t got = 0
    cdef ssize_t count
    cdef int64_t since_ms = 0
    cdef int error
    while got < room:
        if not transport.is_drained:
            error = open_records(transport, data, room, &got)
            if error == 0:
                continue
            if error == ESHUTDOWN:       # the client said that it sends no more
                return got
            if error != EAGAIN:
                if got:
                    return got
                set_errno(error)
                return -1
            transport.is_drained = True
        if got and not flags & MSG_WAITALL:
            return got
        if not has_buffer(&transport.incoming, TLS_INCOMING_BYTES):
            set_errno(ENOMEM)
            return -1
        # The socket's time-out is one wait's, and a client that trickles never lets it pass.
        if since_ms == 0:
            since_ms = now_ms()
        elif now_ms() - since_ms >= TLS_RECEIVE_TICK_MS:
            if got:
                return got
            set_errno(EAGAIN)
            return -1
        # What OpenSSL left is the beginning of nothing: it takes whatever is there.
        transport.incoming_start = transport.incoming_end = 0
        count = recv(transport.fd, transport.incoming, TLS_INCOMING_BYTES, flags & ~MSG_WAITALL)
        if count <= 0:
            return <ssize_t> got if got else count
        transport.incoming_end = count
        transport.is_drained = False
    return got


cdef bint transport_has_part(Transport *transport) noexcept nogil:
    cdef bint has_part
    pthread_mutex_lock(&transport.mutex)
    has_part = SSL_has_pending(transport.ssl)
    pthread_mutex_unlock(&transport.mutex)
    return has_part


# Decrypt into `data` from `got` on. 0: some; EAGAIN: nothing more without receiving.
cdef int open_records(Transport *transport, uint8_t *data, size_t room,
                      size_t *got) noexcept nogil:
    cdef int count
    cdef int error = 0
    pthread_mutex_lock(&transport.mutex)
    ERR_clear_error()
    count = SSL_read(transport.ssl, data + got[0],
                     <int> min(room - got[0], <size_t> TLS_INCOMING_BYTES))
    if count > 0:
        got[0] += count
    else:
        error = error_of(transport, count)
    pthread_mutex_unlock(&transport.mutex)
    return error


cdef ssize_t transport_send(Transport *transport, const iovec *pieces, size_t count,
                            int flags) noexcept nogil:
    cdef ssize_t taken = 0
    cdef size_t staged = 0
    cdef size_t length
    cdef size_t number
    cdef size_t at
    cdef size_t part
    cdef uint8_t *data
    cdef int error = 0
    if not has_buffer(&transport.staged, TLS_RECORD_BYTES):
        set_errno(ENOMEM)
        return -1
    for number in range(count):
        data = <uint8_t *> pieces[number].iov_base
        length = pieces[number].iov_len
        at = 0
        while at < length:
            if staged == 0 and length - at >= TLS_RECORD_BYTES:
                part = TLS_RECORD_BYTES
                error = seal_record(transport, data + at, part, flags)
                if error:
                    break
                taken += part
            else:
                part = min(length - at, TLS_RECORD_BYTES - staged)
                memcpy(transport.staged + staged, data + at, part)
                staged += part
                if staged == TLS_RECORD_BYTES or (number + 1 == count and at + part == length):
                    error = seal_record(transport, transport.staged, staged, flags)
                    if error:
                        break
                    taken += staged
                    staged = 0
            at += part
        if error:
            break
    if error and taken == 0:
        set_errno(error)
        return -1
    return taken


# Encrypt one record into `outgoing`, sending what is there when it is full. 0 or errno.
cdef int seal_record(Transport *transport, const uint8_t *data, size_t length,
                     int flags) noexcept nogil:
    cdef int count
    cdef int error = 0
    if (transport.outgoing_end + TLS_RECORD_WIRE_BYTES + TLS_OUTGOING_KEPT_BYTES
            > TLS_OUTGOING_BYTES):
        error = transport_flush(transport, flags)
        if error:
            # Some may have been sent: whatever is left at the end is room.
            pthread_mutex_lock(&transport.mutex)
            compact(transport)
            pthread_mutex_unlock(&transport.mutex)
            if (transport.outgoing_end + TLS_RECORD_WIRE_BYTES + TLS_OUTGOING_KEPT_BYTES
                    > TLS_OUTGOING_BYTES):
                return error
    pthread_mutex_lock(&transport.mutex)
    ERR_clear_error()
    if transport.records >= transport.records_per_key:
        transport.records = 0
        if SSL_version(transport.ssl) == TLS1_3_VERSION:
            SSL_key_update(transport.ssl, SSL_KEY_UPDATE_NOT_REQUESTED)
    count = SSL_write(transport.ssl, data, <int> length)
    transport.records += 1
    error = 0 if count == <int> length else EPROTO
    transport.is_unsent = True
    pthread_mutex_unlock(&transport.mutex)
    return error


cdef int transport_flush(Transport *transport, int flags) noexcept nogil:
    cdef size_t start
    cdef size_t length
    cdef ssize_t count = 0
    while True:
        pthread_mutex_lock(&transport.mutex)
        transport.outgoing_start += count
        start = transport.outgoing_start
        length = transport.outgoing_end - start
        if length == 0:
            transport.outgoing_start = transport.outgoing_end = 0
        transport.is_unsent = length > 0
        pthread_mutex_unlock(&transport.mutex)
        if length == 0:
            return 0
        # Who receives may append meanwhile, never before `start + length`.
        count = send(transport.fd, transport.outgoing + start, length, flags)
        if count < 0:
            if errno != EINTR:
                return errno
            count = 0


cdef void transport_release(Transport *transport) noexcept nogil:
    pthread_mutex_lock(&transport.mutex)
    if transport.outgoing_end == transport.outgoing_start:
        drop_buffer(&transport.outgoing, TLS_OUTGOING_BYTES)
        transport.outgoing_start = transport.outgoing_end = 0
    drop_buffer(&transport.staged, TLS_RECORD_BYTES)
    if transport.is_drained:
        drop_buffer(&transport.incoming, TLS_INCOMING_BYTES)
        transport.incoming_start = transport.incoming_end = 0
    SSL_free_buffers(transport.ssl)
    pthread_mutex_unlock(&transport.mutex)


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
        cdef BIO *bio
        self.context = context
        self.transport.fd = fd
        self.transport.records_per_key = records_per_key
        pthread_mutex_init(&self.transport.mutex, NULL)
        self.is_ready = True
        self.transport.ssl = SSL_new((<TlsContext> context).context)
        bio = BIO_new(buffers_method)
        if self.transport.ssl == NULL or bio == NULL:
            raise MemoryError
        BIO_set_data(bio, &self.transport)
        BIO_set_init(bio, 1)
        # The same one for both ways: freed with the SSL object.
        SSL_set_bio(self.transport.ssl, bio, bio)

    def __dealloc__(self) -> None:
        SSL_free(self.transport.ssl)
        drop_buffer(&self.transport.incoming, TLS_INCOMING_BYTES)
        drop_buffer(&self.transport.outgoing, TLS_OUTGOING_BYTES)
        drop_buffer(&self.transport.staged, TLS_RECORD_BYTES)
        if self.is_ready:
            pthread_mutex_destroy(&self.transport.mutex)

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
        if not has_buffer(&transport.incoming, TLS_INCOMING_BYTES):
            return ENOMEM
        while True:
            ERR_clear_error()
            returned = SSL_accept(transport.ssl)
            if returned == 1:
                return 0
            error = error_of(transport, returned)
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


def _make_method() -> None:
    global buffers_method
    buffers_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"nbd buffers")
    if buffers_method == NULL:
        raise MemoryError
    BIO_meth_set_read(buffers_method, read_incoming)
    BIO_meth_set_write(buffers_method, write_outgoing)
    BIO_meth_set_ctrl(buffers_method, control_buffers)


_make_method()
