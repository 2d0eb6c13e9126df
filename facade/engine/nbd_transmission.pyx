"""The request loop of one NBD connection: what each request asks for, and its answer."""

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t
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
from facade.engine.nbd_outbox cimport READ_RUNS_MAX, Layout, Request, queue_push, request_answered
from facade.engine.nbd_reply cimport answer, answer_chunks, layout_add, write_chunk_head
from facade.engine.nbd_rules cimport check, has_magic, parse_header, translate
from facade.engine.nbd_transport cimport TlsSession
from facade.engine.nbd_wire cimport (
    NBD_CHUNK_BYTES,
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_EXTENT_BYTES,
    NBD_MAX_PAYLOAD_BYTES,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REQUEST_BYTES,
    NBD_STATUS_CHUNK_BYTES,
)
from facade.engine.syscalls cimport atomic_load, htobe32
from facade.engine.volume cimport IO_PENDING, IO_READ, IO_WRITE, Io
from facade.engine.volume_stack cimport VolumeStack

cdef enum:
    # Received at first when another large write is likely: what lands in the input is copied.
    LARGE_PEEK_BYTES = 4096
    STATUS_BYTES_MAX = NBD_STATUS_CHUNK_BYTES + STATUS_EXTENTS_MAX * NBD_EXTENT_BYTES
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
                 *, structured: bool = False, can_zero_fast: bool = False,
                 contexts: tuple[MetaContext, ...] = (),
                 session: TlsSession | None = None) -> None:
        """`leftover` is what the client sent beyond the handshake, at most 64 KiB.

        `structured` says that structured replies were agreed on, `contexts` which metadata contexts
        were selected: they are numbered from 1, as many as CONTEXTS_MAX. `can_zero_fast` is where
        zeroes that may punch holes are punched and not written. `session` is TLS over that socket.
        """
        cdef MetaContext context
        Connection.__init__(self, fd, leftover, structured, session)
        if len(contexts) > CONTEXTS_MAX:
            raise ValueError(f"{len(contexts)} metadata contexts; at most {CONTEXTS_MAX}")
        self.volume = volume
        self.io_pool = (<VolumeStack> volume).pool if isinstance(volume, VolumeStack) else None
        self.has_pool = self.io_pool is not None
        self.rules.read_only = read_only
        self.rules.is_structured = structured
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

    # One request, whole, with the data of a write in `payload` at `data`.
    cdef Step take_one(self, const Header *header, uint8_t *data, Chunk *payload) noexcept nogil:
        cdef Request *request = self.new_request()
        cdef int error
        if request == NULL:
            return CONNECTION_LOST
        self.requests += 1
        request.cookie = header.cookie
        request.is_read = header.command == NBD_CMD_READ
        translate(header, &request.io)
        error = check(&self.rules, self.volume.size_bytes, header, &request.why)
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
            error = self.volume.submit(&request.io)
            if error == IO_PENDING:
                self.submitted += 1
                return GO_ON
        answer(request, error)
        return self.finish(request)

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
        cdef uint64_t size_bytes = self.volume.size_bytes
        cdef uint64_t from_at = at       # where what is not yet laid out begins
        cdef uint64_t run_bytes = 0
        cdef bint is_hole = False
        cdef bint was_hole = False
        cdef Layout *layout
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
                layout_add(layout, request.cookie, from_at, at - from_at,
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
        layout_add(layout, request.cookie, from_at, end - from_at,
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

    cdef Step take_status(self, const Header *header, Request *request) noexcept nogil:
        request.reply = self.new_chunk(self.rules.context_count * STATUS_BYTES_MAX)
        if request.reply == NULL:
            return CONNECTION_LOST
        request.io.offset = header.offset
        request.io.length = header.length
        request.flags = header.flags
        if self.has_pool:
            self.submitted += 1
            request.transmission = <void *> self
            request.item.run = run_status
            request.item.owner = request
            self.io_pool.push(&request.item)
            return GO_ON
        self.tell_status(request)
        return self.finish(request)

    # One chunk for each selected context, all in one piece of memory.
    cdef void tell_status(self, Request *request) noexcept nogil:
        cdef int number
        cdef int error
        cdef size_t used = 0
        cdef size_t total = 0
        for number in range(self.rules.context_count):
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
        cdef uint32_t word = htobe32(number + 1)
        cdef bint is_last = number == self.rules.context_count - 1
        cdef int error
        found.at = at + NBD_STATUS_CHUNK_BYTES
        found.count = 0
        found.most = 1 if request.flags & NBD_CMD_FLAG_REQ_ONE else STATUS_EXTENTS_MAX
        error = (<MetaContext> self.contexts_at[number]).extents(
            request.io.offset, request.io.length, &found)
        if error:
            return error
        used[0] = NBD_STATUS_CHUNK_BYTES + found.count * NBD_EXTENT_BYTES
        write_chunk_head(at, NBD_REPLY_FLAG_DONE if is_last else 0, NBD_REPLY_TYPE_BLOCK_STATUS,
                         request.cookie, used[0] - NBD_CHUNK_BYTES)
        memcpy(at + NBD_CHUNK_BYTES, &word, 4)
        return 0


# On a thread of the pool; the connection waits for it before it ends.
cdef void run_status(void *owner) noexcept nogil:
    cdef Request *request = <Request *> owner
    (<Transmission> request.transmission).tell_status(request)
    request_answered(request)
