# Numbers of the NBD protocol's transmission phase and our limits in it; nbd_wire.py has those of
# the handshake. All integers on the wire are big-endian.

cdef enum:
    NBD_REQUEST_MAGIC = 0x25609513
    NBD_SIMPLE_REPLY_MAGIC = 0x67446698
    NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef
    NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71
    NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c
    # magic, flags (16 bits), type (16 bits), cookie (64 bits), offset (64 bits), length
    NBD_REQUEST_BYTES = 28
    # the same with 64 bits of length: of the payload where PAYLOAD_LEN is set, else of the effect
    NBD_EXTENDED_REQUEST_BYTES = 32
    # magic, error, cookie (64 bits)
    NBD_SIMPLE_REPLY_BYTES = 16
    # magic, flags (16 bits), type (16 bits), cookie (64 bits), length of what follows
    NBD_CHUNK_BYTES = 20
    # with extended headers the request's offset (64 bits) comes before that length (64 bits)
    NBD_EXTENDED_CHUNK_BYTES = 32
    # what follows a chunk's head, before its variable part
    NBD_DATA_PREFIX_BYTES = 8          # offset (64 bits); the data follows
    NBD_HOLE_PREFIX_BYTES = 12         # offset (64 bits), length; nothing follows
    NBD_ERROR_PREFIX_BYTES = 6         # error, length of the message (16 bits); that follows
    NBD_STATUS_PREFIX_BYTES = 4        # context's number; extents follow
    NBD_EXTENDED_STATUS_PREFIX_BYTES = 8   # context's number, number of extents
    NBD_EXTENT_BYTES = 8               # length, flags
    NBD_EXTENDED_EXTENT_BYTES = 16     # the same, 64 bits each
    # the longest head that a reply has before its body
    NBD_HEAD_BYTES_MAX = NBD_EXTENDED_CHUNK_BYTES + NBD_DATA_PREFIX_BYTES
    # and the longest of a chunk in a read
    NBD_READ_HEAD_BYTES_MAX = NBD_EXTENDED_CHUNK_BYTES + NBD_HOLE_PREFIX_BYTES
    # payload of BLOCK_STATUS: length of the effect (64 bits), then contexts' numbers
    NBD_STATUS_FILTER_BYTES = 8

cdef enum:
    NBD_CMD_READ = 0
    NBD_CMD_WRITE = 1
    NBD_CMD_DISC = 2
    NBD_CMD_FLUSH = 3
    NBD_CMD_TRIM = 4
    NBD_CMD_CACHE = 5
    NBD_CMD_WRITE_ZEROES = 6
    NBD_CMD_BLOCK_STATUS = 7

cdef enum:
    NBD_CMD_FLAG_FUA = 1
    NBD_CMD_FLAG_NO_HOLE = 2
    NBD_CMD_FLAG_DF = 4
    NBD_CMD_FLAG_REQ_ONE = 8
    NBD_CMD_FLAG_FAST_ZERO = 16
    NBD_CMD_FLAG_PAYLOAD_LEN = 32

cdef enum:
    NBD_REPLY_FLAG_DONE = 1

cdef enum:
    NBD_REPLY_TYPE_NONE = 0
    NBD_REPLY_TYPE_OFFSET_DATA = 1
    NBD_REPLY_TYPE_OFFSET_HOLE = 2
    NBD_REPLY_TYPE_BLOCK_STATUS = 5
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
    NBD_REPLY_TYPE_ERROR = 32769

cdef enum:
    # Of base:allocation; a dirty bitmap's one flag is 1 too.
    NBD_STATE_HOLE = 1
    NBD_STATE_ZERO = 2
    NBD_STATE_DIRTY = 1

cdef enum:
    # Largest payload of one request, either way (nbd_wire.MAX_PAYLOAD_BYTES).
    NBD_MAX_PAYLOAD_BYTES = 33554432
