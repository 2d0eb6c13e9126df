# The link's frames, bytes in and messages out; docs/link.md has them byte by byte.
#
# A frame is a 40-byte header and a payload, all integers big-endian:
#    0 u32 magic 0x544C4E4B ("TLNK")   4 u8 type   5 u8 flags   6 u16 zero
#    8 u64 seq     16 u64 offset (bytes)   24 u64 length (bytes of the volume)
#   32 u32 payload bytes   36 u32 CRC-32C of bytes 0..35 and the payload

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    FRAME_MAGIC = 0x544C4E4B
    HEADER_BYTES = 40
    PAYLOAD_LIMIT_BYTES = 1 << 20     # of any frame; a longer one ends the link
    LINK_VERSION = 1
    DIGEST_PIECE_BYTES = 4096         # of the volume, that one digest stands for
    DIGEST_RANGE_BYTES = 1 << 20      # the most that one frame of digests is about
    DIFFER_BYTES_MAX = 32             # a bit for each piece of that

cdef enum FrameType:
    FRAME_CONTROL = 1    # JSON payload
    FRAME_WRITE = 2      # payload is the data at offset
    FRAME_ZERO = 3       # offset, length; no payload
    FRAME_FLUSH = 4      # acknowledged once all before it is durable
    FRAME_ACK = 5        # all frames up to seq are done, in order
    FRAME_PING = 6
    FRAME_ERROR = 7      # offset holds an errno: the frame after seq could not be applied
    FRAME_MAP = 8        # payload is a piece of a bitmap, offset its place in bytes
    FRAME_DIGEST = 9     # payload is a digest of each piece of the range
    FRAME_DIFFER = 10    # payload has a bit for each piece of the range; set: it differs

cdef enum FrameFlag:
    FRAME_FUA = 1
    FRAME_NO_HOLE = 2
    FRAME_LAST = 4       # FRAME_MAP: the last piece

cdef struct FrameHeader:
    uint8_t type
    uint8_t flags
    uint64_t seq
    uint64_t offset
    uint64_t length
    uint32_t payload_bytes
    uint32_t crc

# Writes the 40 bytes, CRC included, for a payload that stands at `payload`.
cdef void pack_header(uint8_t *out, const FrameHeader *header,
                      const uint8_t *payload) noexcept nogil
# 0 or EPROTO: wrong magic, unknown type, over-long payload. The CRC is checked by check_frame().
cdef int unpack_header(const uint8_t *data, FrameHeader *header) noexcept nogil
# True when the CRC of header bytes and payload is right.
cdef bint check_frame(const uint8_t *data, const FrameHeader *header) noexcept nogil
