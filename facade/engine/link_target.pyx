"""The receiving side of a link: strict order, acknowledgement of what is done."""

import os

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPROTO, ETIMEDOUT, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memmove, memset

from facade.engine.syscalls cimport (
    MSG_NOSIGNAL,
    SHUT_RDWR,
    atomic_load,
    atomic_store,
    now_ms,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    recv,
    send,
    shutdown,
)
from facade.engine.keyed_digest cimport (
    DIGEST_BYTES,
    SEED_BYTES,
    close_digester,
    digest_piece,
    open_digester,
)
from facade.engine.link_wire cimport (
    DIGEST_PIECE_BYTES,
    DIFFER_BYTES_MAX,
    DIGEST_RANGE_BYTES,
    FRAME_ACK,
    FRAME_CONTROL,
    FRAME_DIFFER,
    FRAME_DIGEST,
    FRAME_ERROR,
    FRAME_FLUSH,
    FRAME_FUA,
    FRAME_NO_HOLE,
    FRAME_PING,
    FRAME_WRITE,
    FRAME_ZERO,
    HEADER_BYTES,
    FrameHeader,
    check_frame,
    pack_header,
    unpack_header,
)
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NO_HOLE,
    IO_READ,
    IO_WRITE,
    IO_ZERO,
    Io,
    Volume,
)

from facade.engine.link_wire import pack_frame

cdef enum:
    CONTROL_ARRIVED = -2


cdef class LinkTarget:
    """Applies what a connected socket brings to `lower`; the caller owns the socket's life."""

    def __cinit__(self):
        self.buffer = NULL
        self.scratch = NULL
        self.digester.context = NULL
        pthread_mutex_init(&self.send_lock, NULL)

    def __init__(self, int fd, Volume lower not None, const uint8_t[::1] seed=None):
        """`seed`: the digests' (32 bytes), when both sides agreed to compare by them."""
        self.fd = fd
        self.lower = lower
        self.buffer = <uint8_t *> malloc(APPLY_BUFFER_BYTES)
        if self.buffer == NULL:
            raise MemoryError
        if seed is not None:
            if seed.shape[0] != SEED_BYTES:
                raise ValueError(f"the seed has {seed.shape[0]} bytes; it is {SEED_BYTES}")
            self.scratch = <uint8_t *> malloc(DIGEST_RANGE_BYTES)
            if self.scratch == NULL or open_digester(&self.digester, &seed[0]):
                raise MemoryError
            self.compares = True

    def __dealloc__(self):
        free(self.buffer)
        free(self.scratch)
        close_digester(&self.digester)
        pthread_mutex_destroy(&self.send_lock)

    def run(self, on_control) -> int:
        """Apply frames until the link ends; returns the errno that ended it.

        on_control(payload) is called in order for each control frame, after all before it are
        applied; what it returns (bytes or None) is sent back as a control frame.
        """
        cdef int result
        cdef FrameHeader header
        while True:
            with nogil:
                result = self.apply_loop()
            if result != CONTROL_ARRIVED:
                return result
            unpack_header(self.buffer + self.start, &header)
            payload = (<char *> self.buffer)[self.start + HEADER_BYTES:
                                             self.start + HEADER_BYTES + header.payload_bytes]
            self.start += HEADER_BYTES + header.payload_bytes
            self.applied_seq = header.seq
            answer = on_control(payload)
            if answer is not None:
                self.send_control(answer)
            with nogil:
                result = self.send_frame(FRAME_ACK, self.applied_seq, 0)
                atomic_store(&self.acked_seq, self.applied_seq)
            if result:
                return result

    def send_control(self, payload: bytes) -> None:
        """Send a control frame now, from any thread. Raises OSError."""
        frame = pack_frame(FRAME_CONTROL, payload)
        cdef const uint8_t[::1] view = frame
        cdef int error
        with nogil:
            error = self.send_bytes(&view[0], view.shape[0])
        if error:
            raise OSError(error, os.strerror(error))

    def send_alive(self) -> int:
        """Repeat the last acknowledgement, so that a long flush is not taken for a dead link.

        Returns 0, or an errno when the link is gone or one frame takes longer than the limit.
        """
        cdef int error = 0
        cdef int64_t since_ms
        with nogil:
            since_ms = atomic_load(&self.busy_since_ms)
            if since_ms and now_ms() - since_ms > STUCK_LIMIT_MS:
                error = ETIMEDOUT
            else:
                error = self.send_frame(FRAME_ACK, atomic_load(&self.acked_seq), 0)
        return error

    def stop(self) -> None:
        """End the link; run() returns."""
        shutdown(self.fd, SHUT_RDWR)

    cdef int send_bytes(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef ssize_t n
        cdef int error = 0
        pthread_mutex_lock(&self.send_lock)
        while size and not error:
            n = send(self.fd, data, size, MSG_NOSIGNAL)
            if n >= 0:
                data += n
                size -= n
                self.sent_bytes += n
            elif errno != EINTR:
                error = ETIMEDOUT if errno == EAGAIN else errno
        pthread_mutex_unlock(&self.send_lock)
        return error

    cdef int send_frame(self, uint8_t kind, uint64_t seq, uint64_t offset) noexcept nogil:
        cdef uint8_t frame[HEADER_BYTES]
        cdef FrameHeader header
        header.type = kind
        header.flags = 0
        header.seq = seq
        header.offset = offset
        header.length = 0
        header.payload_bytes = 0
        header.crc = 0
        pack_header(frame, &header, NULL)
        return self.send_bytes(frame, HEADER_BYTES)

    cdef int apply_one(self, const FrameHeader *header, uint8_t *payload) noexcept nogil:
        # 0 or the errno of the volume below; EPROTO for a frame that cannot be.
        cdef Io io
        io.flags = IO_FUA if header.flags & FRAME_FUA else 0
        io.offset = header.offset
        io.length = header.length
        io.data = NULL
        io.complete = NULL
        io.owner = NULL
        if header.type == FRAME_PING:
            return 0
        if header.type == FRAME_FLUSH:
            io.op = IO_FLUSH
            io.offset = 0
            io.length = 0
            return self.lower.run(&io)
        if header.offset > self.lower.size_bytes or \
                header.length > self.lower.size_bytes - header.offset:
            return EPROTO
        if header.type == FRAME_DIGEST:
            return self.compare_one(header, payload)
        if header.type == FRAME_WRITE:
            if header.payload_bytes != header.length:
                return EPROTO
            io.op = IO_WRITE
            io.data = payload
        elif header.type == FRAME_ZERO:
            io.op = IO_ZERO
            if header.flags & FRAME_NO_HOLE:
                io.flags |= IO_NO_HOLE
        else:
            return EPROTO
        if header.length == 0:
            return 0
        self.applied_bytes += header.length
        return self.lower.run(&io)

    cdef int compare_one(self, const FrameHeader *header, const uint8_t *digests) noexcept nogil:
        cdef uint64_t pieces = (header.length + DIGEST_PIECE_BYTES - 1) // DIGEST_PIECE_BYTES
        cdef uint64_t number
        cdef uint64_t at
        cdef uint8_t[DIGEST_BYTES] ours
        # The answer: a header and a bit for each piece.
        cdef uint8_t[HEADER_BYTES + DIFFER_BYTES_MAX] frame
        cdef uint8_t *asked = &frame[HEADER_BYTES]
        cdef FrameHeader answer
        cdef bint is_equal = True
        cdef int error
        cdef Io io
        if (not self.compares or header.length == 0 or header.length > DIGEST_RANGE_BYTES
                or header.offset % DIGEST_PIECE_BYTES
                or header.payload_bytes != pieces * DIGEST_BYTES):
            return EPROTO
        io.op = IO_READ
        io.flags = 0
        io.offset = header.offset
        io.length = header.length
        io.data = self.scratch
        io.complete = NULL
        io.owner = NULL
        error = self.lower.run(&io)
        memset(asked, 0, (pieces + 7) // 8)
        for number in range(pieces):
            if error:
                return error
            at = number * DIGEST_PIECE_BYTES
            error = digest_piece(&self.digester, self.scratch + at,
                                 min(header.length - at, <uint64_t> DIGEST_PIECE_BYTES), &ours[0])
            if memcmp(&ours[0], digests + number * DIGEST_BYTES, DIGEST_BYTES) != 0:
                asked[number >> 3] |= 1 << (number & 7)
                is_equal = False
        # Without an answer, the acknowledgement says that all is equal.
        if error or is_equal:
            return error
        answer = header[0]
        answer.type = FRAME_DIFFER
        answer.flags = 0
        answer.payload_bytes = <uint32_t> ((pieces + 7) // 8)
        pack_header(frame, &answer, asked)
        error = self.send_bytes(frame, HEADER_BYTES + answer.payload_bytes)
        self.is_cut = error != 0
        return error

    cdef int apply_loop(self) noexcept nogil:
        cdef FrameHeader header
        cdef ssize_t n
        cdef int error
        while True:
            while self.end - self.start >= HEADER_BYTES:
                if unpack_header(self.buffer + self.start, &header):
                    return EPROTO
                if self.end - self.start < HEADER_BYTES + header.payload_bytes:
                    break
                if not check_frame(self.buffer + self.start, &header):
                    return EPROTO
                if header.seq != self.applied_seq + 1:
                    return EPROTO
                if header.type == FRAME_CONTROL:
                    return CONTROL_ARRIVED
                atomic_store(&self.busy_since_ms, now_ms())
                error = self.apply_one(&header, self.buffer + self.start + HEADER_BYTES)
                atomic_store(&self.busy_since_ms, 0)
                if error:
                    if self.is_cut:
                        return error
                    if error != EPROTO:
                        self.apply_errno = error
                    self.send_frame(FRAME_ERROR, self.applied_seq, <uint64_t> error)
                    return error
                self.applied_seq = header.seq
                self.start += HEADER_BYTES + header.payload_bytes
            if <uint64_t> self.acked_seq != self.applied_seq:
                error = self.send_frame(FRAME_ACK, self.applied_seq, 0)
                if error:
                    return error
                atomic_store(&self.acked_seq, self.applied_seq)
            if self.start == self.end:
                self.start = 0
                self.end = 0
            elif APPLY_BUFFER_BYTES - self.end < (1 << 20) + HEADER_BYTES:
                memmove(self.buffer, self.buffer + self.start, self.end - self.start)
                self.end -= self.start
                self.start = 0
            n = recv(self.fd, self.buffer + self.end, APPLY_BUFFER_BYTES - self.end, 0)
            if n == 0:
                return ECONNRESET
            if n < 0:
                if errno == EINTR:
                    continue
                # SO_RCVTIMEO is the link's time-out; the other side pings when it has no data.
                return ETIMEDOUT if errno == EAGAIN else errno
            self.received_bytes += n
            self.end += n
