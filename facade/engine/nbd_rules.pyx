"""The rules for requests: which flags and ranges each may have, and why not."""

from libc.errno cimport EINVAL, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM
from libc.string cimport memcpy

from facade.engine.nbd_wire cimport (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_CACHE,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_MAX_PAYLOAD_BYTES,
    NBD_REQUEST_MAGIC,
)
from facade.engine.syscalls cimport be16toh, be32toh, be64toh
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NO_HOLE,
    IO_READ,
    IO_TRIM,
    IO_WRITE,
    IO_ZERO,
)


cdef bint has_magic(const uint8_t *data, bint is_extended) noexcept nogil:
    cdef uint32_t magic = 0
    memcpy(&magic, data, 4)
    if is_extended:
        return be32toh(magic) == <uint32_t> NBD_EXTENDED_REQUEST_MAGIC
    return be32toh(magic) == <uint32_t> NBD_REQUEST_MAGIC


cdef void parse_header(const uint8_t *data, bint is_extended, Header *header) noexcept nogil:
    cdef uint32_t short_length = 0
    memcpy(&header.flags, data + 4, 2)
    memcpy(&header.command, data + 6, 2)
    memcpy(&header.cookie, data + 8, 8)
    memcpy(&header.offset, data + 16, 8)
    header.flags = be16toh(header.flags)
    header.command = be16toh(header.command)
    header.offset = be64toh(header.offset)
    header.payload_bytes = 0
    if is_extended:
        memcpy(&header.length, data + 24, 8)
        header.length = be64toh(header.length)
        if header.flags & NBD_CMD_FLAG_PAYLOAD_LEN:
            header.payload_bytes = header.length
    else:
        memcpy(&short_length, data + 24, 4)
        header.length = be32toh(short_length)
        if header.command == NBD_CMD_WRITE:
            header.payload_bytes = header.length


cdef inline uint16_t known_flags(const Rules *rules, uint16_t command) noexcept nogil:
    if command == NBD_CMD_READ and rules.is_structured:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF
    if command == NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO
    if command == NBD_CMD_BLOCK_STATUS:
        return (NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE
                | (NBD_CMD_FLAG_PAYLOAD_LEN if rules.is_extended else 0))
    if command == NBD_CMD_WRITE and rules.is_extended:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN
    return NBD_CMD_FLAG_FUA


cdef int check(const Rules *rules, uint64_t size_bytes, const Header *header,
               const char **why) noexcept nogil:
    cdef uint16_t command = header.command
    cdef bint is_outside = (header.offset > size_bytes
                            or header.length > size_bytes - header.offset)
    if header.flags & ~known_flags(rules, command):
        why[0] = b"a flag of the request is not known, or not for this request"
        return EINVAL
    if command == NBD_CMD_READ:
        if header.length > NBD_MAX_PAYLOAD_BYTES:
            why[0] = b"the read is longer than 32 MiB, the limit; send several"
            return EOVERFLOW if rules.is_structured else EINVAL
    elif command == NBD_CMD_FLUSH:
        why[0] = b"a flush has neither offset nor length; send zeroes"
        return EINVAL if header.offset or header.length else 0
    elif command == NBD_CMD_WRITE or command == NBD_CMD_WRITE_ZEROES or command == NBD_CMD_TRIM:
        if rules.read_only:
            why[0] = b"the export is read-only"
            return EPERM
        if (command == NBD_CMD_WRITE and rules.is_extended
                and not header.flags & NBD_CMD_FLAG_PAYLOAD_LEN):
            why[0] = b"a write with an extended header has data behind it; set PAYLOAD_LEN"
            return EINVAL
        if is_outside and command != NBD_CMD_TRIM:
            why[0] = b"the range reaches past the volume's end; ask for its size again"
            return ENOSPC
        if header.flags & NBD_CMD_FLAG_FAST_ZERO and (
                not rules.can_zero_fast or header.flags & NBD_CMD_FLAG_NO_HOLE):
            why[0] = b"zeroing here may be as slow as writing; write, or zero without FAST_ZERO"
            return EOPNOTSUPP
    elif command == NBD_CMD_BLOCK_STATUS:
        if not rules.context_count:
            why[0] = b"no metadata context was selected in the handshake; select one and connect"
            return EINVAL
        if not header.length:
            why[0] = b"block status of no byte at all; ask for at least one"
            return EINVAL
    elif command != NBD_CMD_CACHE:
        why[0] = b"the request's type is not known"
        return EINVAL
    why[0] = b"the range reaches past the volume's end; ask for its size again"
    return EINVAL if is_outside else 0


cdef void translate(const Header *header, Io *io) noexcept nogil:
    io.offset = header.offset
    io.length = header.length
    io.data = NULL
    io.flags = 0
    if header.command == NBD_CMD_READ or header.command == NBD_CMD_CACHE:
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
