"""The request stream of NBD under arbitrary bytes, with a model of what must come of it.

One input is a client's whole conversation. It is sent through a socket to a Transmission over a
volume of this module, which refuses to be asked for what is not its own; all replies are then read
and held against the protocol and against a model of the volume's content.
"""

import socket

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset

from facade.engine.nbd_context cimport AllocationContext
from facade.engine.nbd_transmission cimport Transmission
from facade.engine.syscalls cimport MSG_DONTWAIT, be16toh, be32toh, be64toh, htobe32, htobe64, recv
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_PENDING,
    IO_READ,
    IO_WRITE,
    Io,
    Volume,
)

SO_SNDBUFFORCE = 32

cdef enum:
    VOLUME_BYTES = 131072 + 700
    BLOCK_BYTES = 4096
    BLOCKS = 33                   # the last one is short
    STREAM_BYTES_MAX = 393216     # what one input becomes at most
    REPLY_BYTES_MAX = 1048576     # what it asks for at most; both fit into a socket
    SENT_MAX = 256                # requests of one input
    SOCKET_BYTES = 4194304
    RECORD_BYTES = 7
    CONTEXTS = 2                  # of metadata, where there are any
    EVERY_CONTEXT = 3             # their bits
    PAYLOAD_MAX = 33554432
    PAYLOAD_LEN = 32              # a request's flag: its length is that of its payload

# The numbers of requests, as the protocol has them.
cdef enum:
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    ZERO = 6
    STATUS = 7

# An input's first byte.
cdef enum:
    IS_STRUCTURED = 1
    IS_READ_ONLY = 2
    CAN_ZERO_FAST = 4
    HAS_CONTEXT = 8
    IS_ASYNC = 16                 # the volume answers IO_PENDING
    IS_RAW = 32                   # the rest is the stream itself, not records of requests
    HAS_LEFTOVER = 64             # part of the stream came with the handshake
    IS_EXTENDED = 128             # headers are extended ones, and with them replies

# Bits of a record's third byte; the lowest four are the units of offset and length.
cdef enum:
    FROM_END = 48
    IS_FAR = 64
    IS_BROKEN = 128

cdef struct Sent:
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint64_t offset
    uint64_t length               # of the effect
    uint64_t payload_bytes
    const uint8_t *payload
    bint is_filter_wrong          # of block status: its payload is not what it should be
    uint32_t contexts             # of block status: those that were asked for
    bint is_answered
    uint32_t error
    uint64_t told_to              # of a read: up to where the reply has come
    uint8_t *found                # of a read: its data
    uint32_t told_contexts        # of block status: those that were told about

cdef struct Arena:
    uint8_t *pattern              # of what is written; each request takes it from elsewhere
    uint8_t *initial
    uint8_t *content
    uint8_t *model
    uint8_t *stream
    uint8_t *replies
    uint8_t *found
    bint[BLOCKS] initial_holes
    bint[BLOCKS] holes
    Sent[SENT_MAX] sent
    int count
    size_t stream_bytes
    bint is_changed               # content or model are no longer the initial ones
    const char *wrong             # the first thing that must not be

cdef Arena arena
cdef uint64_t COOKIE_STEP = 0x9E3779B97F4A7C15
cdef uint64_t FAR = 0x8000000000000000
cdef uint64_t[4] UNITS = [1, 512, 4096, 65536]


cdef void lay_ground() except *:
    cdef int at, block
    arena.pattern = <uint8_t *> malloc(STREAM_BYTES_MAX + 256)
    arena.initial = <uint8_t *> malloc(VOLUME_BYTES)
    arena.content = <uint8_t *> malloc(VOLUME_BYTES)
    arena.model = <uint8_t *> malloc(VOLUME_BYTES)
    arena.stream = <uint8_t *> malloc(STREAM_BYTES_MAX)
    arena.replies = <uint8_t *> malloc(REPLY_BYTES_MAX)
    arena.found = <uint8_t *> malloc(REPLY_BYTES_MAX)
    for at in range(STREAM_BYTES_MAX + 256):
        arena.pattern[at] = (at * 7 + at // 256 + 1) & 255
    for at in range(VOLUME_BYTES):
        block = at // BLOCK_BYTES
        arena.initial_holes[block] = block % 5 in (1, 2) or block > 24
        arena.initial[at] = 0 if arena.initial_holes[block] else (at * 3 + block + 1) & 255


cdef void restore() except *:
    memcpy(arena.content, arena.initial, VOLUME_BYTES)
    memcpy(arena.model, arena.initial, VOLUME_BYTES)
    memcpy(arena.holes, arena.initial_holes, sizeof(arena.holes))
    arena.is_changed = False


lay_ground()
restore()


cdef void complain(const char *what) noexcept nogil:
    if arena.wrong == NULL:
        arena.wrong = what


cdef class CheckedVolume(Volume):
    """A volume in memory that notes every request which the border should not have let through."""

    cdef bint is_async
    cdef int fail_every          # 0: never
    cdef int submits

    def __init__(self) -> None:
        self.size_bytes = VOLUME_BYTES
        self.name = "checked"

    cdef int submit(self, Io *io) noexcept nogil:
        cdef int error
        if io.complete == NULL:
            complain(b"a request without an end")
        if io.op > IO_FLUSH:
            complain(b"an operation that there is not")
            return 22
        if io.op != IO_FLUSH and (io.length == 0 or io.offset >= VOLUME_BYTES
                                  or io.length > VOLUME_BYTES - io.offset):
            complain(b"a range outside the volume reached it")
            return 22
        if io.op == IO_READ or io.op == IO_WRITE:
            if io.data == NULL:
                complain(b"a request without memory")
                return 22
        self.submits += 1
        if self.fail_every and self.submits % self.fail_every == 0:
            error = 5
        else:
            error = self.perform(io)
        if not self.is_async:
            return error
        io.complete(io, error)
        return IO_PENDING

    cdef int perform(self, Io *io) noexcept nogil:
        if io.op == IO_READ:
            memcpy(io.data, arena.content + io.offset, io.length)
        elif io.op == IO_WRITE:
            arena.is_changed = True
            memcpy(arena.content + io.offset, io.data, io.length)
            self.mark(io, False)
        elif io.op != IO_FLUSH:
            arena.is_changed = True
            memset(arena.content + io.offset, 0, io.length)
            self.mark(io, True)
        return 0

    cdef void mark(self, Io *io, bint is_hole) noexcept nogil:
        cdef uint64_t first = io.offset // BLOCK_BYTES
        cdef uint64_t end = (io.offset + io.length + BLOCK_BYTES - 1) // BLOCK_BYTES
        cdef uint64_t block
        for block in range(first, end):
            if not is_hole:
                arena.holes[block] = False
            elif (block * BLOCK_BYTES >= io.offset
                  and (block + 1) * BLOCK_BYTES <= io.offset + io.length):
                arena.holes[block] = True

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        cdef uint64_t at = offset
        if length == 0 or offset >= VOLUME_BYTES or length > VOLUME_BYTES - offset:
            complain(b"an extent outside the volume was asked for")
            return 22
        is_hole[0] = arena.holes[at // BLOCK_BYTES]
        while at < offset + length and arena.holes[at // BLOCK_BYTES] == is_hole[0]:
            at = (at // BLOCK_BYTES + 1) * BLOCK_BYTES
        run_bytes[0] = min(at, offset + length) - offset
        return 0


# ---- from an input to a stream


cdef inline int header_bytes(int options) noexcept nogil:
    return 32 if options & IS_EXTENDED else 28


cdef inline uint32_t request_magic(int options) noexcept nogil:
    return 0x21e41c71 if options & IS_EXTENDED else 0x25609513


# The length takes all that the kind of header has for it.
cdef void put_header(uint8_t *at, uint16_t flags, uint16_t command, uint64_t cookie,
                     uint64_t offset, uint64_t length, bint is_broken, int options) except *:
    cdef uint32_t v32 = htobe32(request_magic(options) ^ (1 if is_broken else 0))
    cdef uint64_t v64
    memcpy(at, &v32, 4)
    at[4], at[5] = flags >> 8, flags & 255
    at[6], at[7] = command >> 8, command & 255
    memcpy(at + 8, &cookie, 8)
    v64 = htobe64(offset)
    memcpy(at + 16, &v64, 8)
    if options & IS_EXTENDED:
        v64 = htobe64(length)
        memcpy(at + 24, &v64, 8)
    else:
        v32 = htobe32(<uint32_t> length)
        memcpy(at + 24, &v32, 4)


# What block status may have behind it: the length of its effect, and numbers of contexts, which
# may be one twice. One of three numbers is no context.
cdef uint64_t put_filter(uint8_t *at, uint64_t length, int count, int first, int step) except *:
    cdef uint64_t v64 = htobe64(length)
    cdef uint32_t v32
    cdef int number
    memcpy(at, &v64, 8)
    for number in range(count):
        v32 = htobe32(1 + (number * step + first) % (CONTEXTS + 1))
        memcpy(at + 8 + 4 * number, &v32, 4)
    return 8 + 4 * count


# Requests of seven bytes each: command, flags, units, offset, length. A write with an extended
# header has the flag that says so unless the record has it too. The command's highest bits are how
# many numbers a filter has.
cdef void write_records(const uint8_t *data, size_t size, int options) except *:
    cdef size_t at = 0
    cdef size_t used = 0
    cdef int number = 0
    cdef uint8_t shape
    cdef uint16_t command
    cdef uint16_t flags
    cdef int head = header_bytes(options)
    cdef bint is_extended = options & IS_EXTENDED != 0
    cdef uint64_t cookie = 1
    cdef uint64_t offset, length, payload
    cdef uint8_t[64] filter_bytes
    while at + RECORD_BYTES <= size and used + head <= STREAM_BYTES_MAX:
        shape = data[at + 2]
        command = data[at] & 31
        offset = (data[at + 3] << 8 | data[at + 4]) * UNITS[shape & 3]
        length = (data[at + 5] << 8 | data[at + 6]) * UNITS[shape >> 2 & 3]
        if shape & FROM_END == FROM_END:
            if shape >> 2 & 3 == 3:
                # To the volume's end, give or take a few bytes.
                length = offset + (data[at + 6] & 7) - 3
            offset = VOLUME_BYTES - offset
        if shape & IS_FAR:
            offset ^= FAR
        flags = data[at + 1]
        payload = 0
        if is_extended:
            if shape & IS_FAR and data[at + 6] & 1:
                length ^= FAR
            if command == WRITE:
                flags ^= PAYLOAD_LEN
            if command == STATUS and flags & PAYLOAD_LEN:
                length = put_filter(filter_bytes, length, data[at] >> 5, data[at + 5] & 3,
                                    data[at + 5] >> 2 & 1)
            if flags & PAYLOAD_LEN:
                payload = length
        elif command == WRITE:
            payload = length
        put_header(arena.stream + used, flags, command, cookie, offset, length,
                   shape & IS_BROKEN != 0, options)
        cookie += COOKIE_STEP
        used += head
        # What does not fit is cut: the client vanishes within its payload.
        payload = min(payload, <uint64_t> STREAM_BYTES_MAX - used)
        if command == STATUS:
            memcpy(arena.stream + used, filter_bytes, payload)
        else:
            memcpy(arena.stream + used, arena.pattern + (number * 13 & 255), payload)
        used += payload
        number += 1
        at += RECORD_BYTES
    arena.stream_bytes = used


# One header, as it stands.
cdef void read_header(const uint8_t *at, Sent *one, int options) except *:
    memset(one, 0, sizeof(Sent))
    memcpy(&one.flags, at + 4, 2)
    memcpy(&one.command, at + 6, 2)
    memcpy(&one.cookie, at + 8, 8)
    one.flags = be16toh(one.flags)
    one.command = be16toh(one.command)
    one.offset = get64(at + 16)
    one.told_to = one.offset
    one.contexts = EVERY_CONTEXT
    if options & IS_EXTENDED:
        one.length = get64(at + 24)
        one.payload_bytes = one.length if one.flags & PAYLOAD_LEN else 0
        one.payload = at + 32
    else:
        one.length = get32(at + 24)
        one.payload_bytes = one.length if one.command == WRITE else 0
        one.payload = at + 28


cdef void read_filter(Sent *one, int options) except *:
    cdef uint64_t at = 8
    cdef uint32_t number
    one.is_filter_wrong = (one.payload_bytes < 12 or one.payload_bytes % 4 != 0
                           or not options & HAS_CONTEXT)
    if one.is_filter_wrong:
        return
    one.length = get64(one.payload)
    one.contexts = 0
    while at < one.payload_bytes:
        number = get32(one.payload + at)
        if not 1 <= number <= CONTEXTS or one.contexts & 1 << (number - 1):
            one.is_filter_wrong = True
            return
        one.contexts |= 1 << (number - 1)
        at += 4


# Find the requests that the server has to answer; the stream ends where they would be too many.
cdef void read_stream(int options) except *:
    cdef size_t at = 0
    cdef uint64_t replies = 0
    cdef uint64_t found = 0
    cdef int head = header_bytes(options)
    cdef size_t end
    cdef Sent *one
    arena.count = 0
    while at + head <= arena.stream_bytes:
        if get32(arena.stream + at) != request_magic(options):
            return
        one = &arena.sent[arena.count]
        read_header(arena.stream + at, one, options)
        if one.command == DISC or one.payload_bytes > PAYLOAD_MAX:
            return
        end = at + head + one.payload_bytes
        if end > arena.stream_bytes:
            return
        if one.command == STATUS and one.payload_bytes:
            read_filter(one, options)
        replies += 4096
        if one.command == READ and one.length <= VOLUME_BYTES:
            replies += one.length
            one.found = arena.found + found
            found += one.length
        if arena.count == SENT_MAX - 1 or replies > REPLY_BYTES_MAX:
            arena.stream_bytes = at
            return
        arena.count += 1
        at = end


# ---- from replies to a verdict


# The request that a reply is for: the first of its cookie that is not answered yet.
cdef Sent *find_sent(const uint8_t *cookie) except *:
    cdef uint64_t wanted
    cdef int number
    memcpy(&wanted, cookie, 8)
    for number in range(arena.count):
        if arena.sent[number].cookie == wanted and not arena.sent[number].is_answered:
            return &arena.sent[number]
    complain(b"a reply that no request asked for")
    return NULL


cdef uint32_t get32(const uint8_t *at) except *:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return be32toh(value)


cdef uint64_t get64(const uint8_t *at) except *:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return be64toh(value)


cdef void take_run(Sent *one, uint64_t offset, uint64_t length, const uint8_t *data) except *:
    if one.command != READ or one.found == NULL:
        complain(b"data for what is no read")
    elif offset != one.told_to or length == 0 or length > one.offset + one.length - offset:
        complain(b"data of a read out of its place")
    elif data == NULL:
        memset(one.found + (offset - one.offset), 0, length)
        one.told_to += length
    else:
        memcpy(one.found + (offset - one.offset), data, length)
        one.told_to += length


# Extents of one context: how they are laid out depends on the headers.
cdef void take_extents(Sent *one, const uint8_t *payload, uint64_t length, int options) except *:
    cdef bint is_extended = options & IS_EXTENDED != 0
    cdef size_t prefix = 8 if is_extended else 4
    cdef size_t extent = 16 if is_extended else 8
    cdef size_t at = prefix
    cdef uint64_t covered = 0
    cdef uint64_t run, kind
    cdef uint32_t number
    if one.command != STATUS or length < prefix + extent or (length - prefix) % extent:
        complain(b"a malformed block status")
        return
    if is_extended and get32(payload + 4) != (length - prefix) // extent:
        complain(b"a block status that counts its extents wrongly")
    number = get32(payload)
    if not 1 <= number <= CONTEXTS or not one.contexts & 1 << (number - 1):
        complain(b"block status of a context that was not asked for")
        return
    if one.told_contexts & 1 << (number - 1):
        complain(b"block status of one context twice")
    one.told_contexts |= 1 << (number - 1)
    if one.flags & 8 and length != prefix + extent:
        complain(b"more than the one extent asked for")
    while at < length:
        run = get64(payload + at) if is_extended else get32(payload + at)
        kind = get64(payload + at + 8) if is_extended else get32(payload + at + 4)
        if run == 0 or kind & ~<uint64_t> 3:
            complain(b"an extent of nothing, or of an unknown kind")
        if run > one.length - covered:
            complain(b"extents past the end of what was asked for")
            return
        covered += run
        at += extent


# One chunk or simple reply at `at`; its length, or 0 when it is none.
cdef size_t take_reply(const uint8_t *at, size_t left, int options) except *:
    cdef Sent *one
    if left < 16:
        return 0
    one = find_sent(at + 8)
    if one == NULL:
        return 0
    if get32(at) == <uint32_t> 0x67446698 and not options & IS_EXTENDED:
        return take_simple(one, at, left, options)
    return take_chunk(one, at, left, options)


cdef size_t take_simple(Sent *one, const uint8_t *at, size_t left, int options) except *:
    one.error = get32(at + 4)
    one.is_answered = True
    if one.command != READ or one.error:
        if options & IS_STRUCTURED and (one.error or one.command == STATUS):
            complain(b"a simple reply where chunks were agreed on")
        return 16
    if options & IS_STRUCTURED:
        complain(b"a simple reply to a read where chunks were agreed on")
    if one.length == 0:
        return 16
    if left < 16 + one.length:
        return 0
    take_run(one, one.offset, one.length, at + 16)
    return 16 + one.length


cdef size_t take_chunk(Sent *one, const uint8_t *at, size_t left, int options) except *:
    cdef bint is_extended = options & IS_EXTENDED != 0
    cdef size_t head = 32 if is_extended else 20
    cdef uint64_t length
    cdef uint16_t kind
    cdef const uint8_t *payload = at + head
    if left < head or not options & IS_STRUCTURED:
        return 0
    if get32(at) != <uint32_t> (0x6e8a278c if is_extended else 0x668e33ef):
        return 0
    length = get64(at + 24) if is_extended else get32(at + 16)
    if length > left - head or at[4] or at[5] > 1:
        return 0
    if is_extended and get64(at + 16) != one.offset:
        complain(b"a chunk with another offset than its request")
    kind = at[6] << 8 | at[7]
    if at[5]:
        one.is_answered = True
    if kind == 0:
        if length or not at[5]:
            complain(b"a chunk of nothing that carries something, or is not the last")
    elif kind == 1 and length > 8:
        take_run(one, get64(payload), length - 8, payload + 8)
    elif kind == 2 and length == 12:
        take_run(one, get64(payload), get32(payload + 8), NULL)
    elif kind == (6 if is_extended else 5):
        take_extents(one, payload, length, options)
    elif (kind == 32769 and length >= 6
          and length - 6 == <uint64_t> (payload[4] << 8 | payload[5])):
        one.error = get32(payload)
        if one.error == 0:
            complain(b"an error chunk without an error")
    else:
        complain(b"a malformed chunk")
    return head + length


cdef bint is_outside(const Sent *one) except *:
    return one.offset > VOLUME_BYTES or one.length > VOLUME_BYTES - one.offset


# What an answered request should have done, in the order in which they were sent.
cdef void apply(Sent *one, int options) except *:
    if not one.is_answered:
        complain(b"a request without an answer")
        return
    if one.error:
        if one.error not in (1, 5, 12, 22, 28, 75, 95, 108):
            complain(b"an error that the protocol does not know")
        return
    if one.command > STATUS or one.command == DISC:
        complain(b"success for what is no request")
    elif one.command == FLUSH:
        if one.offset or one.length:
            complain(b"a flush of a range succeeded")
    elif is_outside(one):
        complain(b"success outside the volume")
    elif one.payload_bytes and one.command not in (WRITE, STATUS):
        complain(b"success of what cannot have a payload")
    elif one.command == READ:
        if one.told_to != one.offset + one.length:
            complain(b"a read whose reply is not whole")
        elif one.length and memcmp(one.found, arena.model + one.offset, one.length):
            complain(b"a read of something else than was written")
    elif one.command == STATUS:
        if one.is_filter_wrong:
            complain(b"block status of a payload that cannot be")
        if one.told_contexts != one.contexts or not options & HAS_CONTEXT:
            complain(b"block status without a context that was asked for")
    elif one.command in (WRITE, TRIM, ZERO):
        if options & IS_READ_ONLY:
            complain(b"a change of a read-only export")
        arena.is_changed = True
        if one.command == WRITE and one.payload_bytes != one.length:
            complain(b"a write without its data succeeded")
        elif one.command == WRITE:
            memcpy(arena.model + one.offset, one.payload, one.length)
        else:
            memset(arena.model + one.offset, 0, one.length)


cdef bint cookies_are_unique() except *:
    cdef int one, other
    for one in range(arena.count):
        for other in range(one):
            if arena.sent[one].cookie == arena.sent[other].cookie:
                return False
    return True


cdef void judge(size_t reply_bytes, int options) except *:
    cdef size_t at = 0
    cdef size_t used
    cdef int number
    cdef bint is_clear = cookies_are_unique()
    while at < reply_bytes and arena.wrong == NULL:
        used = take_reply(arena.replies + at, reply_bytes - at, options)
        if used == 0:
            complain(b"a malformed reply")
            return
        at += used
    for number in range(arena.count):
        if not arena.sent[number].is_answered:
            complain(b"a request without an answer")
        # Where two have one cookie nobody can say which reply is whose.
        if is_clear:
            apply(&arena.sent[number], options)
    if is_clear and arena.is_changed and memcmp(arena.model, arena.content, VOLUME_BYTES):
        complain(b"the volume holds something else than was acknowledged")


def fuzz_one(data: bytes) -> None:
    """Play one conversation. Raises AssertionError when anything about it was wrong."""
    cdef const uint8_t *at = data
    cdef size_t size = len(data)
    cdef int options
    cdef ssize_t count
    cdef size_t reply_bytes = 0
    cdef CheckedVolume volume
    if size < 2:
        return
    options = at[0]
    if options & IS_EXTENDED:
        options |= IS_STRUCTURED      # they come along
    if not options & IS_STRUCTURED:
        options &= ~HAS_CONTEXT       # the handshake does not let it come to that
    if arena.is_changed:
        restore()
    arena.wrong = NULL
    if options & IS_RAW:
        arena.stream_bytes = min(size - 2, <size_t> STREAM_BYTES_MAX)
        memcpy(arena.stream, at + 2, arena.stream_bytes)
    else:
        write_records(at + 2, size - 2, options)
    read_stream(options)
    volume = CheckedVolume()
    volume.is_async = options & IS_ASYNC != 0
    volume.fail_every = at[1] & 15
    stream = <bytes> arena.stream[:arena.stream_bytes]
    leftover = stream[:at[1] * 16] if options & HAS_LEFTOVER else b""
    client, server = socket.socketpair()
    with client, server:
        for one in (client, server):
            one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES)
        client.sendall(stream[len(leftover):])
        client.shutdown(socket.SHUT_WR)
        transmission = Transmission(
            server.fileno(), volume, bool(options & IS_READ_ONLY), leftover,
            structured=bool(options & IS_STRUCTURED),
            extended=bool(options & IS_EXTENDED),
            can_zero_fast=bool(options & CAN_ZERO_FAST),
            contexts=(AllocationContext(volume),) * CONTEXTS if options & HAS_CONTEXT else (),
        )
        transmission.run()
        while reply_bytes < REPLY_BYTES_MAX:
            count = recv(client.fileno(), arena.replies + reply_bytes,
                         REPLY_BYTES_MAX - reply_bytes, MSG_DONTWAIT)
            if count <= 0:
                break
            reply_bytes += count
    judge(reply_bytes, options)
    if arena.wrong != NULL:
        raise AssertionError((<bytes> arena.wrong).decode())
