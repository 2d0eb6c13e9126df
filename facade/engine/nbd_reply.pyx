"""Replies as the protocol words them: simple ones, and chunks of structured ones."""

from libc.errno cimport (
    EACCES,
    EDQUOT,
    EFBIG,
    EINVAL,
    EIO,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    EROFS,
    ESHUTDOWN,
)
from libc.string cimport memcpy, strlen

from facade.engine.nbd_wire cimport (
    NBD_CHUNK_BYTES,
    NBD_DATA_PREFIX_BYTES,
    NBD_ERROR_PREFIX_BYTES,
    NBD_EXTENDED_CHUNK_BYTES,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_HOLE_PREFIX_BYTES,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_SIMPLE_REPLY_BYTES,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from facade.engine.syscalls cimport htobe32, htobe64


# The protocol knows eight errors; whatever else a layer says is its nearest one.
cdef uint32_t wire_error(int error) noexcept nogil:
    if error in (0, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, EOPNOTSUPP, ESHUTDOWN):
        return error
    if error == EROFS or error == EACCES:
        return EPERM
    if error == EDQUOT or error == EFBIG:
        return ENOSPC
    if error == ENOSYS:
        return EOPNOTSUPP
    return EIO


# What an error of the volume means to a person, where the request's check said nothing.
cdef const char *sentence(uint32_t error) noexcept nogil:
    if error == EPERM:
        return b"the volume takes no writes now: it is read-only or a replication target"
    if error == ENOSPC:
        return b"no space is left behind the volume; make room there and write again"
    if error == ENOMEM:
        return b"the engine is short of memory; send fewer or smaller requests at a time"
    if error == ESHUTDOWN:
        return b"the volume is being closed; connect again when it is served"
    if error == EOPNOTSUPP:
        return b"the volume cannot do this"
    if error == EINVAL:
        return b"the volume refused the request as malformed"
    if error == EOVERFLOW:
        return b"the request is too long; send shorter ones"
    return b"the volume failed to read or write; the engine's log says why"


cdef inline void put16(uint8_t *at, uint16_t value) noexcept nogil:
    at[0] = value >> 8
    at[1] = value & 255


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htobe32(value)
    memcpy(at, &value, 4)


cdef inline void put64(uint8_t *at, uint64_t value) noexcept nogil:
    value = htobe64(value)
    memcpy(at, &value, 8)


cdef size_t write_chunk_head(uint8_t *at, const Request *request, uint16_t flags, uint16_t kind,
                             uint64_t length) noexcept nogil:
    put16(at + 4, flags)
    put16(at + 6, kind)
    memcpy(at + 8, &request.cookie, 8)
    if request.is_extended:
        put32(at, NBD_EXTENDED_REPLY_MAGIC)
        put64(at + 16, request.offset)
        put64(at + 24, length)
        return NBD_EXTENDED_CHUNK_BYTES
    put32(at, NBD_STRUCTURED_REPLY_MAGIC)
    put32(at + 16, length)
    return NBD_CHUNK_BYTES


cdef void answer(Request *request, int error) noexcept nogil:
    cdef uint8_t *head = &request.head[0]
    request.sent_bytes = 0
    if request.is_structured and (error or request.is_read or request.is_extended):
        answer_structured(request, error)
        return
    request.head_bytes = NBD_SIMPLE_REPLY_BYTES
    request.body = request.io.data
    request.body_bytes = request.io.length if request.is_read and error == 0 else 0
    if request.head_room:
        if error:
            request.head_room = False
        else:
            head = request.body - NBD_SIMPLE_REPLY_BYTES
    put32(head, NBD_SIMPLE_REPLY_MAGIC)
    put32(head + 4, wire_error(error))
    memcpy(head + 8, &request.cookie, 8)


# An error, or a read: whatever carries data, or words. With extended headers everything.
cdef void answer_structured(Request *request, int error) noexcept nogil:
    cdef uint8_t *head = &request.head[0]
    if error:
        answer_error(request, wire_error(error))
    elif request.layout != NULL:
        request.is_laid_out = True
        request.head_bytes = 0
        request.body_bytes = request.layout.bytes
    elif not request.is_read or request.io.length == 0:
        request.body_bytes = 0
        request.head_bytes = write_chunk_head(head, request, NBD_REPLY_FLAG_DONE,
                                              NBD_REPLY_TYPE_NONE, 0)
    else:
        request.head_bytes = NBD_DATA_PREFIX_BYTES + (
            NBD_EXTENDED_CHUNK_BYTES if request.is_extended else NBD_CHUNK_BYTES)
        request.body = request.io.data
        request.body_bytes = request.io.length
        if request.head_room:
            head = request.body - request.head_bytes
        # All data is here: nothing can go wrong any more, so the one chunk is the last.
        write_chunk_head(head, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA,
                         NBD_DATA_PREFIX_BYTES + request.io.length)
        put64(head + request.head_bytes - NBD_DATA_PREFIX_BYTES, request.io.offset)


cdef void answer_error(Request *request, uint32_t error) noexcept nogil:
    cdef const char *why = request.why if request.why != NULL else sentence(error)
    cdef uint16_t length = strlen(why)
    cdef uint8_t *prefix = &request.head[0]
    request.head_room = False
    request.body = <uint8_t *> why
    request.body_bytes = length
    prefix += write_chunk_head(prefix, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                               NBD_ERROR_PREFIX_BYTES + length)
    put32(prefix, error)
    put16(prefix + 4, length)
    request.head_bytes = prefix + NBD_ERROR_PREFIX_BYTES - &request.head[0]


cdef void answer_chunks(Request *request, uint8_t *body, uint64_t body_bytes) noexcept nogil:
    request.sent_bytes = 0
    request.head_bytes = 0
    request.body = body
    request.body_bytes = body_bytes


cdef void layout_add(Layout *layout, const Request *request, uint64_t offset, uint64_t length,
                     uint8_t *data) noexcept nogil:
    cdef uint8_t *head = &layout.heads[layout.head_bytes]
    cdef uint8_t *end = head
    if layout.last_head != NULL:
        put16(layout.last_head + 4, 0)
    layout.last_head = head
    layout.runs += 1
    if data == NULL:
        end += write_chunk_head(head, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_HOLE,
                                NBD_HOLE_PREFIX_BYTES)
        put64(end, offset)
        put32(end + 8, length)
        end += NBD_HOLE_PREFIX_BYTES
    else:
        end += write_chunk_head(head, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA,
                                NBD_DATA_PREFIX_BYTES + length)
        put64(end, offset)
        end += NBD_DATA_PREFIX_BYTES
    layout_piece(layout, head, end - head)
    layout.head_bytes += end - head
    if data == NULL:
        return
    layout_piece(layout, data, length)
    if layout.data_end == layout.data_start:
        layout.data_start = offset
    layout.data_end = offset + length


cdef void layout_piece(Layout *layout, uint8_t *data, uint64_t length) noexcept nogil:
    layout.pieces[layout.count].iov_base = data
    layout.pieces[layout.count].iov_len = length
    layout.count += 1
    layout.bytes += length
