"""The request loop of one NBD connection: what each request asks for, and its answer."""

from libc.errno cimport EAGAIN, EINTR, EINVAL, ESHUTDOWN, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from facade.engine.nbd_buffers cimport CHUNK_BYTES, pool_drop
from facade.engine.nbd_connection cimport (
    CLIENT_BROKE_RULES,
    CLIENT_LEFT,
    CONNECTION_LOST,
    GO_ON,
    INLINE_BYTES_MAX,
    now_ns,
)
from facade.engine.nbd_context cimport STATUS_EXTENTS_MAX, ExtentList, MetaContext
from facade.engine.nbd_outbox cimport (
    READ_RUNS_MAX,
    Layout,
    Request,
    outbox_unfinished,
    queue_push,
    request_answered,
    request_completed,
)
from facade.engine.nbd_reply cimport answer, answer_chunks, layout_add, write_chunk_head
from facade.engine.nbd_rules cimport check, has_magic, parse_header, translate
from facade.engine.nbd_tls cimport TlsSession
from facade.engine.nbd_wire cimport (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_DATA_PREFIX_BYTES,
    NBD_EXTENDED_CHUNK_BYTES,
    NBD_EXTENDED_EXTENT_BYTES,
    NBD_EXTENDED_STATUS_PREFIX_BYTES,
    NBD_EXTENT_BYTES,
    NBD_MAX_PAYLOAD_BYTES,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
    NBD_STATUS_FILTER_BYTES,
    NBD_STATUS_PREFIX_BYTES,
)
from facade.engine.syscalls cimport (
    MSG_DONTWAIT,
    MSG_PEEK,
    atomic_load,
    be32toh,
    be64toh,
    htobe32,
    recv,
)
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_PENDING,
    IO_READ,
    IO_WRITE,
    Io,
)
from facade.engine.volume_stack cimport VolumeStack

cdef enum:
    # Received at first when another large write is likely: what lands in the input is copied.
    LARGE_PEEK_BYTES = 4096
    STATUS_BYTES_MAX = (NBD_EXTENDED_CHUNK_BYTES + NBD_EXTENDED_STATUS_PREFIX_BYTES
                        + STATUS_EXTENTS_MAX * NBD_EXTENDED_EXTENT_BYTES)
    NANOSECONDS_PER_S = 1000000000

cdef int64_t KNOWN_DATA_NS = <int64_t> KNOWN_DATA_S * NANOSECONDS_PER_S

ENDINGS = ("", "the client left", "the client broke the protocol", "the connection was lost")


cdef inline bint is_withdrawn(void *context) noexcept nogil:
    return atomic_load(&(<MetaContext> context).withdrawn_state) != 0


cdef class Transmission:
    """Serves one client whose handshake is done, until it leaves or breaks the protocol.

    The socket stays the caller's: it must outlive `run`, and shutting down its receiving side is
    the way to end `run` from outside (requests already received are still answered).
    """

    def __init__(self, fd: int, volume: Volume, read_only: bool = False, leftover: bytes = b"",
                 *, structured: bool = False, extended: bool = False, can_zero_fast: bool = False,
                 contexts: tuple[MetaContext, ...] = (),
                 session: TlsSession | None = None) -> None:
        """`leftover` is what the client sent beyond the handshake, at most 64 KiB.

        `structured` says that structured replies were agreed on, `extended` that extended headers
        were, which brings them along, `contexts` which metadata contexts were selected: they are
        numbered from 1, as many as CONTEXTS_MAX. `can_zero_fast` is where zeroes that may punch
        holes are punched and not written. `session` is TLS over that socket.
        """
        cdef MetaContext context
        Connection.__init__(self, fd, leftover, structured, extended, session)
        if len(contexts) > CONTEXTS_MAX:
            raise ValueError(f"{len(contexts)} metadata contexts; at most {CONTEXTS_MAX}")
        self.volume = volume
        self.lookups = (<VolumeStack> volume).lookups if isinstance(volume, VolumeStack) else None
        self.has_lookups = self.lookups is not None
        self.rules.read_only = read_only
        self.rules.is_structured = self.is_structured
        self.rules.is_extended = extended
        self.rules.can_zero_fast = can_zero_fast
        self.rules.context_count = len(contexts)
        self.contexts = contexts
        for number, context in enumerate(contexts):
            self.contexts_at[number] = <void *> context

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
            if self.outbox.has_long:
                self.go_on_with_long()
            sent = self.send_batch()
            if step == GO_ON:
                step = sent
            if step == GO_ON:
                is_large = self.expect_large and self.input_end == self.input_start
                step = self.fill_input(LARGE_PEEK_BYTES if is_large else CHUNK_BYTES)
        self.is_broken = step != CLIENT_LEFT
        self.drain()
        return step

    # Every whole request that has been received.
    cdef Step take_requests(self) noexcept nogil:
        cdef Header header
        cdef uint8_t *data
        cdef size_t header_bytes = self.request_bytes
        cdef size_t needed
        cdef Step step
        while self.input_end - self.input_start >= header_bytes:
            data = self.input.data + self.input_start
            if not has_magic(data, self.is_extended):
                return CLIENT_BROKE_RULES
            parse_header(data, self.is_extended, &header)
            needed = header_bytes
            self.expect_large = False
            if header.command == NBD_CMD_DISC:
                return CLIENT_LEFT
            if header.payload_bytes:
                # Where so long a payload ends cannot be trusted: nothing after it could be.
                if header.payload_bytes > NBD_MAX_PAYLOAD_BYTES:
                    return CLIENT_BROKE_RULES
                if header.payload_bytes > INLINE_BYTES_MAX:
                    step = self.take_large(&header)
                    if step != GO_ON:
                        return step
                    continue
                needed += header.payload_bytes
                if self.input_end - self.input_start < needed:
                    return GO_ON
            self.input_start += needed
            step = self.take_one(&header, data + header_bytes, self.input)
            if step != GO_ON:
                return step
        return GO_ON

    # Header and the payload's beginning are in the input; the rest goes where it will stay.
    cdef Step take_large(self, const Header *header) noexcept nogil:
        cdef Header own = header[0]
        cdef Chunk *payload
        cdef size_t length = header.payload_bytes
        cdef size_t have
        cdef ssize_t count
        cdef Step step
        payload = self.new_chunk(length)
        if payload == NULL:
            return CONNECTION_LOST
        # While others had the memory it was not the client who was slow.
        self.pace.since_ms = 0
        self.pace.bytes = 0
        self.input_start += self.request_bytes
        have = min(self.input_end - self.input_start, length)
        memcpy(payload.data, self.input.data + self.input_start, have)
        self.input_start += have
        step = GO_ON
        if have < length:
            # What is answered already must not wait for the client's bytes.
            step = self.send_batch()
        while step == GO_ON and have < length:
            count = self.receive(payload.data + have, length - have, True, True)
            if count <= 0:
                step = CONNECTION_LOST
            else:
                have += count
        if step == GO_ON:
            step = self.take_one(&own, payload.data, payload)
        pool_drop(&self.pool, payload)
        self.expect_large = True
        return step

    # One request, whole, with its payload, if any, in `payload` at `data`.
    cdef Step take_one(self, Header *header, uint8_t *data, Chunk *payload) noexcept nogil:
        cdef Request *request = self.new_request()
        cdef int error = 0
        if request == NULL:
            return CONNECTION_LOST
        self.requests += 1
        self.pace.since_ms = 0
        self.pace.bytes = 0
        request.cookie = header.cookie
        request.offset = header.offset
        request.is_read = header.command == NBD_CMD_READ
        if header.command == NBD_CMD_BLOCK_STATUS:
            error = self.parse_filter(header, data, request)
        translate(header, &request.io)
        if error == 0:
            # Another thread may resize the volume; its gate checks again.
            error = check(&self.rules, atomic_load(<int64_t *> &self.volume.size_bytes), header,
                          &request.why)
        if error == 0 and (header.length or header.command == NBD_CMD_FLUSH):
            request.why = NULL
            if request.io.op == IO_READ:
                if not self.prepare_read(header, request):
                    return CONNECTION_LOST
            elif request.io.op == IO_WRITE:
                self.write_bytes += header.length
                request.io.data = data
                request.payload = payload
                payload.users += 1
            elif header.command == NBD_CMD_BLOCK_STATUS:
                return self.take_status(header, request)
            elif request.io.length > LONG_PIECE_BYTES:
                return self.take_long(request)
            error = self.volume.submit(&request.io)
            if error == IO_PENDING:
                self.submitted += 1
                return GO_ON
        answer(request, error)
        return self.finish(request)

    cdef Step take_long(self, Request *request) noexcept nogil:
        cdef int error
        request.left_bytes = request.io.length
        request.io.length = 0
        # Pieces end before one flush for all of them is asked for: that covers them.
        request.wants_flush = (request.io.flags & IO_FUA) != 0
        request.io.flags &= ~IO_FUA
        self.outbox.has_long = True
        error = self.submit_pieces(request)
        if error == IO_PENDING:
            self.submitted += 1
            return GO_ON
        answer(request, error)
        return self.finish(request)

    cdef int submit_pieces(self, Request *request) noexcept nogil:
        cdef Io *io = &request.io
        cdef int error = 0
        while error == 0:
            if request.left_bytes:
                io.offset += io.length
                io.length = min(request.left_bytes, <uint64_t> LONG_PIECE_BYTES)
                request.left_bytes -= io.length
            elif request.wants_flush:
                request.wants_flush = False
                io.op = IO_FLUSH
                io.offset = io.length = 0
            else:
                return 0
            error = self.volume.submit(io)
        return error

    cdef void go_on_with_long(self) noexcept nogil:
        cdef Request *request = outbox_unfinished(&self.outbox)
        cdef int error
        while request != NULL:
            error = ESHUTDOWN if self.has_client_gone() else self.submit_pieces(request)
            if error != IO_PENDING:
                request_completed(&request.io, error)
            request = outbox_unfinished(&self.outbox)

    # Nobody waits for the rest of what was begun.
    cdef bint has_client_gone(self) noexcept nogil:
        cdef uint8_t byte = 0
        cdef ssize_t count
        if not self.is_draining or self.is_broken:
            return self.is_broken
        count = recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
        return count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR)

    cdef Step finish(self, Request *request) noexcept nogil:
        queue_push(&self.batch, request)
        self.batch_bytes += request.head_bytes + request.body_bytes
        return self.send_batch() if self.batch_bytes >= SEND_AT_BYTES else GO_ON

    cdef bint prepare_read(self, const Header *header, Request *request) noexcept nogil:
        if header.command != NBD_CMD_READ:
            request.io.length = min(request.io.length, <uint64_t> CACHE_BYTES_MAX)
            request.reply = self.new_chunk(request.io.length)
            if request.reply == NULL:
                return False
            request.io.data = request.reply.data
            return True
        self.read_bytes += header.length
        if not self.give_read_buffer(request):
            return False
        if (header.length > HOLE_READ_BYTES and self.is_structured
                and not header.flags & NBD_CMD_FLAG_DF):
            self.lay_out(request)
        return True

    cdef void lay_out(self, Request *request) noexcept nogil:
        cdef Io *io = &request.io
        cdef uint64_t at = io.offset
        cdef uint64_t end = io.offset + io.length
        cdef uint64_t size_bytes = atomic_load(<int64_t *> &self.volume.size_bytes)
        cdef uint64_t from_at = at       # where what is not yet laid out begins
        cdef uint64_t run_bytes = 0
        cdef bint is_hole = False
        cdef bint was_hole = False
        cdef Layout *layout
        if end > size_bytes:
            return
        # All the way to the volume's end: a long run of data is asked for once.
        if self.is_known_data(at, end) or self.volume.extent(at, size_bytes - at, &run_bytes,
                                                             &is_hole):
            return
        if not is_hole:
            self.note_data(at, at + run_bytes)
            if at + run_bytes >= end:
                return
        layout = <Layout *> calloc(1, sizeof(Layout))
        if layout == NULL:
            return
        while at < end:
            is_hole = is_hole and run_bytes >= HOLE_BYTES_MIN
            if is_hole != was_hole and at > from_at:
                layout_add(layout, request, from_at, at - from_at,
                           NULL if was_hole else io.data + (from_at - io.offset))
                from_at = at
            was_hole = is_hole
            at += min(run_bytes, end - at)
            # Where no more can be told apart, or nothing be learned, the rest is data.
            if at < end and (layout.runs >= READ_RUNS_MAX - 2
                             or self.volume.extent(at, end - at, &run_bytes, &is_hole)):
                run_bytes = end - at
                is_hole = False
        if layout.runs == 0 and not was_hole:
            free(layout)
            return
        layout_add(layout, request, from_at, end - from_at,
                   NULL if was_hole else io.data + (from_at - io.offset))
        request.layout = layout
        if layout.data_end > layout.data_start:
            io.data += layout.data_start - io.offset
            io.length = layout.data_end - layout.data_start
            io.offset = layout.data_start
        else:
            io.length = HOLE_PROBE_BYTES

    # Only data is remembered: that it has become a hole since is no harm, the other way it is.
    cdef bint is_known_data(self, uint64_t start, uint64_t end) noexcept nogil:
        return (start >= self.known_data_start and end <= self.known_data_end
                and now_ns() - self.known_data_ns < KNOWN_DATA_NS)

    cdef void note_data(self, uint64_t start, uint64_t end) noexcept nogil:
        cdef int64_t now = now_ns()
        if (now - self.known_data_ns < KNOWN_DATA_NS and start <= self.known_data_end
                and end >= self.known_data_start):
            start = min(start, self.known_data_start)
            end = max(end, self.known_data_end)
        else:
            self.known_data_ns = now
        self.known_data_start = start
        self.known_data_end = end

    cdef int parse_filter(self, Header *header, const uint8_t *data,
                          Request *request) noexcept nogil:
        cdef uint64_t at = NBD_STATUS_FILTER_BYTES
        cdef uint32_t number = 0
        request.contexts = (<uint32_t> 1 << self.rules.context_count) - 1
        if not self.is_extended or not header.payload_bytes:
            return 0
        request.why = b"the payload is not a length and numbers of selected contexts, each once"
        if header.payload_bytes <= NBD_STATUS_FILTER_BYTES or header.payload_bytes % 4:
            return EINVAL
        memcpy(&header.length, data, NBD_STATUS_FILTER_BYTES)
        header.length = be64toh(header.length)
        request.contexts = 0
        while at < header.payload_bytes:
            memcpy(&number, data + at, 4)
            number = be32toh(number) - 1
            if (number >= <uint32_t> self.rules.context_count
                    or request.contexts & <uint32_t> 1 << number):
                return EINVAL
            request.contexts |= <uint32_t> 1 << number
            at += 4
        return 0

    cdef Step take_status(self, const Header *header, Request *request) noexcept nogil:
        request.reply = self.new_chunk(self.rules.context_count * STATUS_BYTES_MAX)
        if request.reply == NULL:
            return CONNECTION_LOST
        request.io.offset = header.offset
        request.io.length = header.length
        request.flags = header.flags
        if self.has_lookups:
            self.submitted += 1
            request.transmission = <void *> self
            request.item.run = run_status
            request.item.owner = request
            self.lookups.push(&request.item)
            return GO_ON
        self.tell_status(request)
        return self.finish(request)

    # One chunk for each context that is asked for, all in one piece of memory.
    cdef void tell_status(self, Request *request) noexcept nogil:
        cdef int number
        cdef int error
        cdef size_t used = 0
        cdef size_t total = 0
        for number in range(self.rules.context_count):
            if not request.contexts & <uint32_t> 1 << number:
                continue
            if is_withdrawn(self.contexts_at[number]):
                request.why = b"a selected metadata context is gone; connect again without it"
                error = ESHUTDOWN
            else:
                error = self.tell_context(request, number, request.reply.data + total, &used)
            if error:
                answer(request, error)
                return
            total += used
        answer_chunks(request, request.reply.data, total)

    cdef int tell_context(self, Request *request, int number, uint8_t *at,
                          size_t *used) noexcept nogil:
        cdef ExtentList found
        cdef uint32_t[2] prefix
        cdef size_t head_bytes = self.read_head_bytes - NBD_DATA_PREFIX_BYTES
        cdef size_t prefix_bytes = NBD_STATUS_PREFIX_BYTES
        cdef uint16_t kind = NBD_REPLY_TYPE_BLOCK_STATUS
        cdef bint is_last = request.contexts >> number == 1
        cdef int error
        if self.is_extended:
            prefix_bytes = NBD_EXTENDED_STATUS_PREFIX_BYTES
            kind = NBD_REPLY_TYPE_BLOCK_STATUS_EXT
        found.at = at + head_bytes + prefix_bytes
        found.is_extended = self.is_extended
        found.count = 0
        found.most = 1 if request.flags & NBD_CMD_FLAG_REQ_ONE else STATUS_EXTENTS_MAX
        error = (<MetaContext> self.contexts_at[number]).extents(
            request.io.offset, request.io.length, &found)
        if error:
            return error
        prefix[0] = htobe32(number + 1)
        prefix[1] = htobe32(found.count)
        memcpy(at + head_bytes, prefix, prefix_bytes)
        used[0] = head_bytes + prefix_bytes + found.count * (
            NBD_EXTENDED_EXTENT_BYTES if self.is_extended else NBD_EXTENT_BYTES)
        write_chunk_head(at, request, NBD_REPLY_FLAG_DONE if is_last else 0, kind,
                         used[0] - head_bytes)
        return 0


# On a thread of the pool; the connection waits for it before it ends.
cdef void run_status(void *owner) noexcept nogil:
    cdef Request *request = <Request *> owner
    (<Transmission> request.transmission).tell_status(request)
    request_answered(request)
