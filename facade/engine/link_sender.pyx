"""The sending side of a link: ring, order, acknowledgements, time-outs."""

import os

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPROTO, ESHUTDOWN, ETIMEDOUT, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove

from facade.engine.change_map cimport ChangeMap
from facade.engine.syscalls cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MSG_NOSIGNAL,
    PROT_READ,
    PROT_WRITE,
    SHUT_RDWR,
    atomic_add,
    atomic_load,
    atomic_store,
    cond_init,
    cond_wait_ms,
    mmap,
    munmap,
    now_ms,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    recv,
    send,
    shutdown,
)
from facade.engine.link_wire cimport (
    FRAME_ACK,
    FRAME_CONTROL,
    FRAME_DIFFER,
    FRAME_ERROR,
    FRAME_PING,
    HEADER_BYTES,
    FrameHeader,
    check_frame,
    pack_header,
    unpack_header,
)
from facade.engine.volume cimport IO_PENDING, Io

cdef enum:
    RECEIVE_BYTES = 128 << 10
    CONTROL_ARRIVED = -2         # receive_loop(): a control frame stands at *start

STUCK_LIMIT_S = 40.0             # a frame not done for so long, however alive the peer says it is


cdef class LinkSender:
    """Sends frames over a connected socket whose life the caller owns.

    run_sender() and run_receiver() are the bodies of two threads; both return once the link is
    dead. `timeout_s`: a frame not acknowledged for so long ends the link.
    """

    def __cinit__(self):
        pthread_mutex_init(&self.lock, NULL)
        cond_init(&self.work)
        cond_init(&self.space)
        cond_init(&self.acked_changed)
        self.fd = -1

    def __init__(self, int fd, ChangeMap changes not None, double timeout_s, double keepalive_s):
        self.fd = fd
        self.changes = changes
        self.timeout_ms = <long> (timeout_s * 1000)
        self.keepalive_ms = <long> (keepalive_s * 1000)
        self.stuck_limit_ms = <long> (STUCK_LIMIT_S * 1000)
        self.next_seq = 1
        self.send_seq = 1
        self.progress_ms = now_ms()
        self.advance_ms = self.progress_ms
        cdef void *p = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            raise MemoryError(f"no memory for a link's {RING_BYTES} bytes")
        self.ring = <uint8_t *> p
        self.frames = <SentFrame *> calloc(FRAMES_LIMIT, sizeof(SentFrame))
        if self.frames == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.ring != NULL:
            munmap(self.ring, RING_BYTES)
        free(self.frames)
        pthread_mutex_destroy(&self.lock)
        pthread_cond_destroy(&self.work)
        pthread_cond_destroy(&self.space)
        pthread_cond_destroy(&self.acked_changed)

    # ---- Python side ----------------------------------------------------------------------

    def run_sender(self) -> int:
        """Body of the sender thread; returns the errno that ended the link."""
        cdef int error
        with nogil:
            error = self.send_loop()
            self.kill(error)
        return self.dead_errno

    def run_receiver(self, on_control) -> int:
        """Body of the receiver thread: acknowledgements, and on_control(payload) for the rest.

        Returns the errno that ended the link.
        """
        cdef uint8_t *buffer = <uint8_t *> malloc(RECEIVE_BYTES)
        cdef size_t start = 0, end = 0
        cdef int result = 0
        cdef FrameHeader header
        if buffer == NULL:
            raise MemoryError
        try:
            while True:
                with nogil:
                    result = self.receive_loop(buffer, RECEIVE_BYTES, &start, &end)
                if result != CONTROL_ARRIVED:
                    break
                unpack_header(buffer + start, &header)
                payload = (<char *> buffer)[start + HEADER_BYTES:
                                            start + HEADER_BYTES + header.payload_bytes]
                start += HEADER_BYTES + header.payload_bytes
                on_control(payload)
        finally:
            free(buffer)
            with nogil:
                self.kill(result if result > 0 else ECONNRESET)
        return self.dead_errno

    def send_control(self, const uint8_t[::1] payload not None) -> int:
        """Put a control frame in its place in the order; returns its seq. Raises OSError."""
        cdef uint8_t *place = NULL
        cdef uint64_t seq
        cdef uint32_t size = <uint32_t> payload.shape[0], i
        if size == 0 or size > RECEIVE_BYTES // 2:
            raise ValueError(f"control message of {size} bytes: 1 to {RECEIVE_BYTES // 2}")
        with nogil:
            seq = self.reserve(size, 2, -1, NULL, &place)
            if seq:
                for i in range(size):
                    place[i] = payload[i]
                self.fill(seq, FRAME_CONTROL, 0, 0, 0, size)
        if not seq:
            raise OSError(self.dead_errno, os.strerror(self.dead_errno))
        return seq

    def wait(self, uint64_t seq) -> None:
        """Wait until the other side has done everything up to `seq`. Raises OSError."""
        cdef int error
        with nogil:
            error = self.wait_acked(seq)
        if error:
            raise OSError(error, os.strerror(error))

    cdef object expect_answers(self, PieceMap pieces):
        self.pieces = pieces
        atomic_store(&self.pieces_at, <int64_t> <void *> pieces)

    cdef int end_errno(self) noexcept nogil:
        cdef int error
        pthread_mutex_lock(&self.lock)
        error = self.dead
        pthread_mutex_unlock(&self.lock)
        return error

    def stop(self, int error=ESHUTDOWN) -> None:
        """End the link; both threads return, frames in flight count as lost on the other side."""
        with nogil:
            self.kill(error)

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far, headers included."""
        return atomic_load(&self.sent_count)

    @property
    def received_bytes(self) -> int:
        """Bytes received so far, headers included."""
        return atomic_load(&self.received_count)

    @property
    def dead_errno(self) -> int:
        """The errno that ended the link, 0 while it lives."""
        cdef int error
        with nogil:
            error = self.end_errno()
        return error

    @property
    def in_flight(self) -> int:
        """Frames given a place and not yet acknowledged."""
        cdef uint64_t n
        with nogil:
            pthread_mutex_lock(&self.lock)
            n = self.next_seq - 1 - self.acked_seq
            pthread_mutex_unlock(&self.lock)
        return n

    # ---- hot path -------------------------------------------------------------------------

    cdef bint place_locked(self, uint64_t size, uint64_t *position) noexcept nogil:
        # A frame is contiguous: one that would cross the ring's end starts at its front.
        position[0] = self.head
        if position[0] % RING_BYTES + size > RING_BYTES:
            position[0] += RING_BYTES - position[0] % RING_BYTES
        return position[0] + size - self.tail <= RING_BYTES and \
            not self.frames[self.next_seq % FRAMES_LIMIT].waiting

    cdef int try_reserve(self, uint32_t payload_bytes, uint8_t waiting, int parity, Io *io,
                         uint8_t **payload, uint64_t *seq) noexcept nogil:
        cdef uint64_t size = HEADER_BYTES + payload_bytes, position = 0
        cdef SentFrame *frame
        cdef int result
        pthread_mutex_lock(&self.lock)
        seq[0] = 0
        if self.dead:
            result = self.dead
        elif not self.place_locked(size, &position):
            result = EAGAIN
        else:
            result = 0
            frame = &self.frames[self.next_seq % FRAMES_LIMIT]
            seq[0] = self.next_seq
            self.next_seq += 1
            self.head = position + size
            frame.position = position
            frame.reserved_bytes = <uint32_t> size
            frame.ready = False
            frame.waiting = waiting
            frame.parity = parity
            frame.error = 0
            frame.io = io
            payload[0] = self.ring + position % RING_BYTES + HEADER_BYTES
        pthread_mutex_unlock(&self.lock)
        return result

    cdef bint has_room(self, uint64_t payload_bytes) noexcept nogil:
        cdef uint64_t position = 0
        cdef bint has_it
        pthread_mutex_lock(&self.lock)
        has_it = self.dead or self.place_locked(HEADER_BYTES + payload_bytes, &position)
        pthread_mutex_unlock(&self.lock)
        return has_it

    cdef void wait_room(self, uint32_t payload_bytes) noexcept nogil:
        cdef uint64_t position = 0
        pthread_mutex_lock(&self.lock)
        self.space_waiters += 1
        while not self.dead and not self.place_locked(HEADER_BYTES + payload_bytes, &position):
            pthread_cond_wait(&self.space, &self.lock)
        self.space_waiters -= 1
        pthread_mutex_unlock(&self.lock)

    cdef uint64_t reserve(self, uint32_t payload_bytes, uint8_t waiting, int parity, Io *io,
                          uint8_t **payload) noexcept nogil:
        cdef uint64_t seq = 0
        while self.try_reserve(payload_bytes, waiting, parity, io, payload, &seq) == EAGAIN:
            self.wait_room(payload_bytes)
        return seq

    cdef void fill(self, uint64_t seq, uint8_t kind, uint8_t flags, uint64_t offset,
                   uint64_t length, uint32_t payload_bytes) noexcept nogil:
        cdef SentFrame *frame = &self.frames[seq % FRAMES_LIMIT]
        cdef uint8_t *place = self.ring + frame.position % RING_BYTES
        cdef FrameHeader header
        header.type = kind
        header.flags = flags
        header.seq = seq
        header.offset = offset
        header.length = length
        header.payload_bytes = payload_bytes
        header.crc = 0
        pack_header(place, &header, place + HEADER_BYTES)
        pthread_mutex_lock(&self.lock)
        frame.size_bytes = HEADER_BYTES + payload_bytes
        frame.ready = True
        if self.sender_idle and seq == self.send_seq:
            pthread_cond_signal(&self.work)
        pthread_mutex_unlock(&self.lock)

    cdef int local_done(self, uint64_t seq, int error) noexcept nogil:
        cdef SentFrame *frame = &self.frames[seq % FRAMES_LIMIT]
        cdef int parity = -1, result = IO_PENDING
        pthread_mutex_lock(&self.lock)
        frame.error = error
        frame.waiting &= ~WAIT_LOCAL
        if not frame.waiting:
            parity = frame.parity
            result = error
            if self.space_waiters:
                pthread_cond_broadcast(&self.space)
        pthread_mutex_unlock(&self.lock)
        if parity >= 0:
            self.changes.leave(parity)
        return result

    cdef void end_frames(self, uint64_t up_to) noexcept nogil:
        # Under lock, which is given up for each completion.
        cdef SentFrame *frame
        cdef Io *io
        cdef int parity, error
        if self.acked_seq < up_to:
            self.advance_ms = now_ms()
        while self.acked_seq < up_to:
            self.acked_seq += 1
            frame = &self.frames[self.acked_seq % FRAMES_LIMIT]
            frame.waiting &= ~WAIT_REMOTE
            if frame.waiting:
                continue
            io = frame.io
            parity = frame.parity
            error = frame.error
            frame.io = NULL
            if io != NULL or parity >= 0:
                pthread_mutex_unlock(&self.lock)
                if parity >= 0:
                    self.changes.leave(parity)
                if io != NULL:
                    io.complete(io, error)
                pthread_mutex_lock(&self.lock)
        self.progress_ms = now_ms()
        if self.space_waiters:
            pthread_cond_broadcast(&self.space)
        if self.ack_waiters:
            pthread_cond_broadcast(&self.acked_changed)

    cdef int wait_acked(self, uint64_t seq) noexcept nogil:
        cdef int error
        pthread_mutex_lock(&self.lock)
        self.ack_waiters += 1
        while self.acked_seq < seq and not self.dead:
            pthread_cond_wait(&self.acked_changed, &self.lock)
        self.ack_waiters -= 1
        error = self.dead
        pthread_mutex_unlock(&self.lock)
        return error

    cdef void kill(self, int error) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        if not self.dead:
            # EAGAIN means "no room" to those who reserve; a peer can send any number.
            self.dead = EPROTO if error == EAGAIN else error if error else ESHUTDOWN
            shutdown(self.fd, SHUT_RDWR)
            self.end_frames(self.next_seq - 1)
            pthread_cond_broadcast(&self.work)
            pthread_cond_broadcast(&self.space)
            pthread_cond_broadcast(&self.acked_changed)
        pthread_mutex_unlock(&self.lock)

    # ---- the two threads ------------------------------------------------------------------

    cdef int send_loop(self) noexcept nogil:
        cdef SentFrame *frame
        cdef uint64_t start, end, seq
        cdef int error = 0
        cdef long now, quiet_since = now_ms()
        cdef bint ping
        pthread_mutex_lock(&self.lock)
        while not self.dead:
            frame = &self.frames[self.send_seq % FRAMES_LIMIT]
            if self.send_seq == self.next_seq or not frame.ready:
                now = now_ms()
                if self.is_overdue(now):
                    error = ETIMEDOUT
                    break
                ping = (self.send_seq == self.next_seq and self.acked_seq + 1 == self.next_seq
                        and now - quiet_since >= self.keepalive_ms)
                if ping:
                    quiet_since = now
                    pthread_mutex_unlock(&self.lock)
                    self.ping()
                    pthread_mutex_lock(&self.lock)
                    continue
                self.sender_idle = True
                cond_wait_ms(&self.work, &self.lock, self.keepalive_ms // 2 + 1)
                self.sender_idle = False
                continue
            # As many ready frames as stand one behind the other, in one send().
            start = frame.position
            end = start
            seq = self.send_seq
            while seq < self.next_seq and end - start < SEND_LIMIT_BYTES:
                frame = &self.frames[seq % FRAMES_LIMIT]
                if not frame.ready or frame.position != end:
                    break
                # The ring's end is followed by its front, not by more memory.
                if seq > self.send_seq and end % RING_BYTES == 0:
                    break
                end = frame.position + frame.size_bytes
                seq += 1
                if frame.size_bytes != frame.reserved_bytes:
                    break
            if self.send_seq == self.acked_seq + 1:
                self.progress_ms = now_ms()
                self.advance_ms = self.progress_ms
            pthread_mutex_unlock(&self.lock)
            error = self.send_all(self.ring + start % RING_BYTES, end - start)
            pthread_mutex_lock(&self.lock)
            if error:
                break
            atomic_add(&self.sent_count, end - start)
            quiet_since = now_ms()
            frame = &self.frames[(seq - 1) % FRAMES_LIMIT]
            self.tail = start + (end - start) + frame.reserved_bytes - frame.size_bytes
            self.send_seq = seq
            if self.space_waiters:
                pthread_cond_broadcast(&self.space)
        pthread_mutex_unlock(&self.lock)
        return error

    cdef bint is_overdue(self, long now) noexcept nogil:
        # Silence, or a peer that repeats its last acknowledgement for ever.
        if self.acked_seq + 1 >= self.send_seq:
            return False
        return now - self.progress_ms > self.timeout_ms or \
            now - self.advance_ms > self.stuck_limit_ms

    cdef void ping(self) noexcept nogil:
        cdef uint8_t *place = NULL
        cdef uint64_t seq = 0
        # The sender thread itself must not wait for room: nobody else makes any.
        self.try_reserve(0, WAIT_REMOTE, -1, NULL, &place, &seq)
        if seq:
            self.fill(seq, FRAME_PING, 0, 0, 0, 0)

    cdef int send_all(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef ssize_t n
        while size:
            n = send(self.fd, data, size, MSG_NOSIGNAL)
            if n < 0:
                if errno == EINTR:
                    continue
                # SO_SNDTIMEO is the link's time-out: a peer that takes nothing for so long is gone.
                return ETIMEDOUT if errno == EAGAIN else errno
            data += n
            size -= n
        return 0

    cdef int receive_loop(self, uint8_t *buffer, size_t size, size_t *start,
                          size_t *end) noexcept nogil:
        cdef ssize_t n
        cdef FrameHeader header
        cdef uint8_t *payload
        cdef void *asked
        cdef int error
        while True:
            while end[0] - start[0] >= HEADER_BYTES:
                if unpack_header(buffer + start[0], &header):
                    return EPROTO
                if header.payload_bytes + HEADER_BYTES > size:
                    return EPROTO
                if end[0] - start[0] < HEADER_BYTES + header.payload_bytes:
                    break
                if not check_frame(buffer + start[0], &header):
                    return EPROTO
                if header.type == FRAME_CONTROL:
                    return CONTROL_ARRIVED
                payload = buffer + start[0] + HEADER_BYTES
                start[0] += HEADER_BYTES + header.payload_bytes
                if header.type == FRAME_DIFFER:
                    asked = <void *> atomic_load(&self.pieces_at)
                    if asked == NULL or (<PieceMap> asked).want(header.offset, header.length,
                                                                payload, header.payload_bytes):
                        return EPROTO
                elif header.type == FRAME_ACK:
                    pthread_mutex_lock(&self.lock)
                    # A peer that acknowledges what it was never sent cannot be trusted. send_seq
                    # advances only after send() returns, so next_seq is the bound that holds. A
                    # repeated acknowledgement may be overtaken by a newer one: it says "alive".
                    if header.seq >= self.next_seq or self.dead:
                        pthread_mutex_unlock(&self.lock)
                        return EPROTO
                    self.end_frames(header.seq)
                    pthread_mutex_unlock(&self.lock)
                elif header.type == FRAME_ERROR:
                    return <int> (header.offset & 0xffff) if header.offset & 0xffff else EPROTO
                else:
                    return EPROTO
            if start[0]:
                memmove(buffer, buffer + start[0], end[0] - start[0])
                end[0] -= start[0]
                start[0] = 0
            n = recv(self.fd, buffer + end[0], size - end[0], 0)
            if n == 0:
                return ECONNRESET
            if n < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    error = self.end_errno()
                    if error:
                        return error
                    continue
                return errno
            atomic_add(&self.received_count, n)
            end[0] += n
