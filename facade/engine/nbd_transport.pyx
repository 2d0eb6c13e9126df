"""The way between an NBD connection and its client, without the GIL and without copying twice."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, EPROTO, ESHUTDOWN, errno
from libc.string cimport memcpy, memmove, memset

from facade.engine.openssl cimport (
    BIO,
    BIO_CTRL_FLUSH,
    BIO_METHOD,
    BIO_TYPE_SOURCE_SINK,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    SSL_KEY_UPDATE_NOT_REQUESTED,
    TLS1_3_VERSION,
    BIO_clear_retry_flags,
    BIO_free,
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
    SSL_free,
    SSL_free_buffers,
    SSL_get_error,
    SSL_has_pending,
    SSL_key_update,
    SSL_new,
    SSL_read,
    SSL_set_bio,
    SSL_version,
    SSL_write,
)
from facade.engine.syscalls cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MSG_WAITALL,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
    now_ms,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    recv,
    send,
    set_errno,
)

cdef BIO_METHOD *buffers_method = NULL


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


cdef int transport_error(Transport *transport, int returned) noexcept nogil:
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
        error = transport_error(transport, count)
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


cdef int transport_open(Transport *transport, SSL_CTX *context, int fd,
                        int64_t records_per_key) noexcept nogil:
    cdef BIO *bio
    memset(transport, 0, sizeof(transport[0]))
    transport.fd = fd
    transport.records_per_key = records_per_key
    transport.ssl = SSL_new(context)
    bio = BIO_new(buffers_method)
    if transport.ssl == NULL or bio == NULL:
        BIO_free(bio)
        SSL_free(transport.ssl)
        transport.ssl = NULL
        return ENOMEM
    BIO_set_data(bio, transport)
    BIO_set_init(bio, 1)
    # The same one for both ways: freed with the SSL object.
    SSL_set_bio(transport.ssl, bio, bio)
    pthread_mutex_init(&transport.mutex, NULL)
    return 0


cdef void transport_close(Transport *transport) noexcept nogil:
    if transport.ssl == NULL:
        return
    SSL_free(transport.ssl)
    transport.ssl = NULL
    drop_buffer(&transport.incoming, TLS_INCOMING_BYTES)
    drop_buffer(&transport.outgoing, TLS_OUTGOING_BYTES)
    drop_buffer(&transport.staged, TLS_RECORD_BYTES)
    pthread_mutex_destroy(&transport.mutex)


cdef bint transport_has_incoming(Transport *transport) noexcept nogil:
    return has_buffer(&transport.incoming, TLS_INCOMING_BYTES)


def _make_method() -> None:
    global buffers_method
    buffers_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"nbd buffers")
    if buffers_method == NULL:
        raise MemoryError
    BIO_meth_set_read(buffers_method, read_incoming)
    BIO_meth_set_write(buffers_method, write_outgoing)
    BIO_meth_set_ctrl(buffers_method, control_buffers)


_make_method()
