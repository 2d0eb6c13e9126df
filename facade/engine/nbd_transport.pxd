# The way between an NBD connection and its client: the socket itself, or TLS over it.
#
# Whoever receives or sends calls `wire_receive` and `wire_send` with the connection's Transport,
# which is NULL for a plain socket: then they are the system calls and one branch. With TLS they
# keep the system calls' meaning (bytes or -1 and errno, MSG_DONTWAIT, MSG_WAITALL, the socket's
# SO_RCVTIMEO and SO_SNDTIMEO), so that nobody above needs to know.
#
# OpenSSL never touches the socket: it reads ciphertext from `incoming` and writes it to `outgoing`.
# So its calls never wait, many records share one system call, and the mutex, which an SSL object
# needs, is held for one record's arithmetic at a time.
from libc.stdint cimport int64_t, uint8_t

from facade.engine.openssl cimport SSL, SSL_CTX
from facade.engine.syscalls cimport iovec, msghdr, pthread_mutex_t, recv, sendmsg

cdef enum:
    TLS_RECORD_BYTES = 16384      # plaintext in one record, at most
    TLS_RECORD_WIRE_BYTES = 17408      # of it on the wire, with room to spare
    TLS_INCOMING_BYTES = 262144   # ciphertext that one recv() takes
    TLS_OUTGOING_BYTES = 262144   # ciphertext that waits for the socket
    TLS_OUTGOING_KEPT_BYTES = 8192     # left free for what OpenSSL says by itself
    TLS_RECEIVE_TICK_MS = 2000    # how long a call may wait while what comes is no whole record
    TLS_RECORDS_PER_KEY = 8388608      # AES-GCM wants a new key well before 2**24.5 records

cdef struct Transport:
    int fd                        # the client's socket, owned by who made the Transport
    SSL *ssl
    pthread_mutex_t mutex         # guards calls of `ssl`, and with them what they do to the buffers
    # Of the receiving thread:
    uint8_t *incoming             # NULL until needed
    size_t incoming_start
    size_t incoming_end
    bint is_drained               # `ssl` has nothing to give before more is received
    # Of the one who sends:
    uint8_t *outgoing             # NULL until needed
    size_t outgoing_start
    size_t outgoing_end
    bint is_unsent                # the socket did not take all of `outgoing`
    uint8_t *staged               # pieces shorter than a record, side by side; NULL until needed
    int64_t records               # sent under the present key
    int64_t records_per_key

# Begin TLS over a connected socket; `context` must outlive it. 0 or ENOMEM.
cdef int transport_open(Transport *transport, SSL_CTX *context, int fd,
                        int64_t records_per_key) noexcept nogil
# Give everything back but the socket. Nothing when it was never opened.
cdef void transport_close(Transport *transport) noexcept nogil

# For the handshake: whether there is a buffer to receive into, and what a failed call of OpenSSL's
# means (EAGAIN: it wants more; ESHUTDOWN: the client said that it leaves; EPROTO: ask why).
cdef bint transport_has_incoming(Transport *transport) noexcept nogil
cdef int transport_error(Transport *transport, int returned) noexcept nogil

# As recv() on the socket, but plaintext. For the connection's own thread.
cdef ssize_t transport_receive(Transport *transport, uint8_t *data, size_t room,
                               int flags) noexcept nogil

# Whether a record, or plaintext, is here in part: the client is in the middle of something.
cdef bint transport_has_part(Transport *transport) noexcept nogil

# As sendmsg() on the socket, of plaintext. What is taken may wait in `outgoing`: transport_flush.
# For one thread at a time.
cdef ssize_t transport_send(Transport *transport, const iovec *pieces, size_t count,
                            int flags) noexcept nogil

# Send what is in `outgoing`. 0 or errno. For one thread at a time.
cdef int transport_flush(Transport *transport, int flags) noexcept nogil

# For the connection's own thread with nobody sending: give back the memory that holds nothing.
cdef void transport_release(Transport *transport) noexcept nogil

cdef inline ssize_t wire_receive(Transport *transport, int fd, uint8_t *data, size_t room,
                                 int flags) noexcept nogil:
    if transport == NULL:
        return recv(fd, data, room, flags)
    return transport_receive(transport, data, room, flags)

cdef inline ssize_t wire_send(Transport *transport, int fd, const msghdr *message,
                              int flags) noexcept nogil:
    if transport == NULL:
        return sendmsg(fd, message, flags)
    return transport_send(transport, message.msg_iov, message.msg_iovlen, flags)

# Whether something that was taken still waits for the socket.
cdef inline bint wire_is_unsent(const Transport *transport) noexcept nogil:
    return transport != NULL and transport.is_unsent
