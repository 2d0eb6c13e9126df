"""The link's frames: packing, unpacking and checking, without sockets."""

from libc.errno cimport EPROTO
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from facade.engine.syscalls cimport be32toh, be64toh, crc32c, crc32c_init, htobe32, htobe64

crc32c_init()

HEADER_SIZE_BYTES = HEADER_BYTES
PAYLOAD_LIMIT = PAYLOAD_LIMIT_BYTES
VERSION = LINK_VERSION
CONTROL = FRAME_CONTROL
MAP = FRAME_MAP
LAST = FRAME_LAST


cdef void pack_header(uint8_t *out, const FrameHeader *header,
                      const uint8_t *payload) noexcept nogil:
    cdef uint32_t v32
    cdef uint64_t v64
    v32 = htobe32(FRAME_MAGIC)
    memcpy(out, &v32, 4)
    out[4] = header.type
    out[5] = header.flags
    out[6] = 0
    out[7] = 0
    v64 = htobe64(header.seq)
    memcpy(out + 8, &v64, 8)
    v64 = htobe64(header.offset)
    memcpy(out + 16, &v64, 8)
    v64 = htobe64(header.length)
    memcpy(out + 24, &v64, 8)
    v32 = htobe32(header.payload_bytes)
    memcpy(out + 32, &v32, 4)
    v32 = crc32c(0, out, 36)
    if header.payload_bytes:
        v32 = crc32c(v32, payload, header.payload_bytes)
    v32 = htobe32(v32)
    memcpy(out + 36, &v32, 4)


cdef int unpack_header(const uint8_t *data, FrameHeader *header) noexcept nogil:
    cdef uint32_t v32 = 0
    cdef uint64_t v64 = 0
    memcpy(&v32, data, 4)
    if be32toh(v32) != FRAME_MAGIC or data[6] or data[7]:
        return EPROTO
    header.type = data[4]
    header.flags = data[5]
    if header.type < FRAME_CONTROL or header.type > FRAME_DIFFER:
        return EPROTO
    memcpy(&v64, data + 8, 8)
    header.seq = be64toh(v64)
    memcpy(&v64, data + 16, 8)
    header.offset = be64toh(v64)
    memcpy(&v64, data + 24, 8)
    header.length = be64toh(v64)
    memcpy(&v32, data + 32, 4)
    header.payload_bytes = be32toh(v32)
    if header.payload_bytes > PAYLOAD_LIMIT_BYTES:
        return EPROTO
    memcpy(&v32, data + 36, 4)
    header.crc = be32toh(v32)
    return 0


cdef bint check_frame(const uint8_t *data, const FrameHeader *header) noexcept nogil:
    cdef uint32_t crc = crc32c(0, data, 36)
    if header.payload_bytes:
        crc = crc32c(crc, data + HEADER_BYTES, header.payload_bytes)
    return crc == header.crc


def pack_frame(uint8_t kind, const uint8_t[::1] payload not None, uint64_t seq=0,
               uint64_t offset=0, uint64_t length=0, uint8_t flags=0) -> bytes:
    """One whole frame. Raises ValueError for a payload over the limit."""
    if payload.shape[0] > PAYLOAD_LIMIT_BYTES:
        raise ValueError(f"payload of {payload.shape[0]} bytes: at most {PAYLOAD_LIMIT_BYTES}")
    cdef FrameHeader header
    header.type = kind
    header.flags = flags
    header.seq = seq
    header.offset = offset
    header.length = length
    header.payload_bytes = <uint32_t> payload.shape[0]
    header.crc = 0
    cdef uint8_t out[HEADER_BYTES]
    pack_header(out, &header, &payload[0] if payload.shape[0] else NULL)
    return (<bytes> out[:HEADER_BYTES]) + bytes(payload)


def payload_bytes(const uint8_t[::1] header not None) -> int:
    """How many bytes follow this header. Raises ValueError for what is no header of ours."""
    cdef FrameHeader parsed
    if header.shape[0] < HEADER_BYTES or unpack_header(&header[0], &parsed):
        raise ValueError("not a frame of this link protocol")
    return parsed.payload_bytes


def unpack_frame(const uint8_t[::1] frame not None) -> tuple[int, int, int, int, int, bytes]:
    """(type, flags, seq, offset, length, payload) of one whole frame. Raises ValueError."""
    cdef FrameHeader parsed
    if frame.shape[0] < HEADER_BYTES or unpack_header(&frame[0], &parsed):
        raise ValueError("not a frame of this link protocol")
    if <uint64_t> frame.shape[0] != <uint64_t> HEADER_BYTES + parsed.payload_bytes:
        raise ValueError(f"frame of {frame.shape[0]} bytes for {parsed.payload_bytes} of payload")
    if not check_frame(&frame[0], &parsed):
        raise ValueError("the frame's checksum is wrong")
    return (parsed.type, parsed.flags, parsed.seq, parsed.offset, parsed.length,
            bytes(frame[HEADER_BYTES:]))
