"""The request loop of one NBD connection: what each request asks for, and whether it may."""

from libc.errno cimport EINVAL, ENOSPC, EPERM
from libc.string cimport memcpy

from facade.engine.nbd_buffers cimport CHUNK_BYTES, pool_drop
from facade.engine.nbd_connection cimport (
    CLIENT_BROKE_RULES,
    CLIENT_LEFT,
    CONNECTION_LOST,
    GO_ON,
    INLINE_BYTES_MAX,
)
from facade.engine.nbd_outbox cimport Request, answer, queue_push
from facade.engine.nbd_wire cimport (
    NBD_CMD_DISC,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_MAX_PAYLOAD_BYTES,
    NBD_REQUEST_BYTES,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_BYTES,
)
from facade.engine.syscalls cimport be16toh, be32toh, be64toh
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NO_HOLE,
    IO_PENDING,
    IO_READ,
    IO_TRIM,
    IO_WRITE,
    IO_ZERO,
)

cdef enum:
    # Received at first when another large write is likely: what lands in the input is copied.
    LARGE_PEEK_BYTES = 4096

ENDINGS = ("", "the client left", "the client broke the protocol", "the connection was lost")


cdef inline void parse_header(const uint8_t *data, Header *header) noexcept nogil:
    memcpy(&header.flags, data + 4, 2)
    memcpy(&header.command, data + 6, 2)
    memcpy(&header.cookie, data + 8, 8)
    memcpy(&header.offset, data + 16, 8)
    memcpy(&header.length, data + 24, 4)
    header.flags = be16toh(header.flags)
    header.command = be16toh(header.command)
    header.offset = be64toh(header.offset)
    header.length = be32toh(header.length)


cdef inline bint has_magic(const uint8_t *data) noexcept nogil:
    cdef uint32_t magic = 0
    memcpy(&magic, data, 4)
    return be32toh(magic) == <uint32_t> NBD_REQUEST_MAGIC


cdef class Transmission:
    """Serves one client whose handshake is done, until it leaves or breaks the protocol.

    The socket stays the caller's: it must outlive `run`, and shutting down its receiving side is
    the way to end `run` from outside (requests already received are still answered).
    """

    def __init__(self, fd: int, volume: Volume, read_only: bool = False,
                 leftover: bytes = b"") -> None:
        """`leftover` is what the client sent beyond the handshake, at most 64 KiB."""
        Connection.__init__(self, fd, leftover)
        self.volume = volume
        self.read_only = read_only

    def run(self) -> str:
        """Serve until the connection ends and return, in words, how it did.

        When this returns no request is in flight. The GIL is not held. To be called once.
        """
        cdef Step ending
        with nogil:
            ending = self.serve()
        return ENDINGS[<int> ending]

    cdef Step serve(self) noexcept nogil:
        cdef Step step = GO_ON
        cdef Step sent
        cdef bint is_large
        while step == GO_ON:
            step = self.take_requests()
            sent = self.send_batch()
            if step == GO_ON:
                step = sent
            if step == GO_ON:
                is_large = self.expect_large and self.input_end == self.input_start
                step = self.fill_input(LARGE_PEEK_BYTES if is_large else CHUNK_BYTES)
        self.drain()
        return step

    # Every whole request that has been received.
    cdef Step take_requests(self) noexcept nogil:
        cdef Header header
        cdef uint8_t *data
        cdef size_t needed
        cdef Step step
        while self.input_end - self.input_start >= NBD_REQUEST_BYTES:
            data = self.input.data + self.input_start
            if not has_magic(data):
                return CLIENT_BROKE_RULES
            parse_header(data, &header)
            needed = NBD_REQUEST_BYTES
            self.expect_large = False
            if header.command == NBD_CMD_DISC:
                return CLIENT_LEFT
            if header.command == NBD_CMD_WRITE:
                # Where so long a payload ends cannot be trusted: nothing after it could be.
                if header.length > NBD_MAX_PAYLOAD_BYTES:
                    return CLIENT_BROKE_RULES
                if header.length > INLINE_BYTES_MAX:
                    step = self.take_large_write(&header)
                    if step != GO_ON:
                        return step
                    continue
                needed += header.length
                if self.input_end - self.input_start < needed:
                    return GO_ON
            self.input_start += needed
            step = self.take_one(&header, data + NBD_REQUEST_BYTES, self.input)
            if step != GO_ON:
                return step
        return GO_ON

    # Header and the payload's beginning are in the input; the rest goes where it will stay.
    cdef Step take_large_write(self, const Header *header) noexcept nogil:
        cdef Chunk *payload
        cdef size_t have
        cdef ssize_t count
        cdef Step step
        payload = self.new_chunk(header.length)
        if payload == NULL:
            return CONNECTION_LOST
        self.input_start += NBD_REQUEST_BYTES
        have = min(self.input_end - self.input_start, <size_t> header.length)
        memcpy(payload.data, self.input.data + self.input_start, have)
        self.input_start += have
        step = GO_ON
        if have < header.length:
            # What is answered already must not wait for the client's bytes.
            step = self.send_batch()
        while step == GO_ON and have < header.length:
            count = self.receive(payload.data + have, header.length - have, True, True)
            if count <= 0:
                step = CONNECTION_LOST
            else:
                have += count
        if step == GO_ON:
            step = self.take_one(header, payload.data, payload)
        pool_drop(&self.pool, payload)
        self.expect_large = True
        return step

    # The NBD side's rules; what it lets through is inside the volume.
    cdef int check(self, const Header *header) noexcept nogil:
        cdef bint is_outside
        cdef uint16_t known = NBD_CMD_FLAG_FUA
        is_outside = (header.offset > self.volume.size_bytes
                      or header.length > self.volume.size_bytes - header.offset)
        if header.command == NBD_CMD_WRITE_ZEROES:
            known |= NBD_CMD_FLAG_NO_HOLE
        if header.flags & ~known:
            return EINVAL
        if header.command == NBD_CMD_READ:
            return EINVAL if is_outside or header.length > NBD_MAX_PAYLOAD_BYTES else 0
        if header.command == NBD_CMD_FLUSH:
            return EINVAL if header.offset or header.length else 0
        if header.command == NBD_CMD_WRITE or header.command == NBD_CMD_WRITE_ZEROES:
            if self.read_only:
                return EPERM
            return ENOSPC if is_outside else 0
        if header.command == NBD_CMD_TRIM:
            if self.read_only:
                return EPERM
            return EINVAL if is_outside else 0
        return EINVAL

    # One request, whole, with the data of a write in `payload` at `data`.
    cdef Step take_one(self, const Header *header, uint8_t *data, Chunk *payload) noexcept nogil:
        cdef Request *request = self.new_request()
        cdef int error
        if request == NULL:
            return CONNECTION_LOST
        self.requests += 1
        request.cookie = header.cookie
        translate(header, &request.io)
        error = self.check(header)
        if error == 0 and (header.length or header.command == NBD_CMD_FLUSH):
            if request.io.op == IO_READ:
                self.read_bytes += header.length
                if not self.give_read_buffer(request):
                    return CONNECTION_LOST
            elif request.io.op == IO_WRITE:
                self.write_bytes += header.length
                request.io.data = data
                request.payload = payload
                payload.users += 1
            error = self.volume.submit(&request.io)
            if error == IO_PENDING:
                self.submitted += 1
                return GO_ON
        answer(request, error)
        queue_push(&self.batch, request)
        self.batch_bytes += NBD_SIMPLE_REPLY_BYTES + request.body_bytes
        return self.send_batch() if self.batch_bytes >= SEND_AT_BYTES else GO_ON


cdef void translate(const Header *header, Io *io) noexcept nogil:
    io.offset = header.offset
    io.length = header.length
    io.data = NULL
    io.flags = 0
    if header.command == NBD_CMD_READ:
        io.op = IO_READ
        return
    if header.command == NBD_CMD_FLUSH:
        io.op = IO_FLUSH
        return
    if header.command == NBD_CMD_WRITE:
        io.op = IO_WRITE
    elif header.command == NBD_CMD_TRIM:
        io.op = IO_TRIM
    else:
        io.op = IO_ZERO
        if header.flags & NBD_CMD_FLAG_NO_HOLE:
            io.flags |= IO_NO_HOLE
    if header.flags & NBD_CMD_FLAG_FUA:
        io.flags |= IO_FUA
