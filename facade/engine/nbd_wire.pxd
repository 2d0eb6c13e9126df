# Numbers of the NBD protocol's transmission phase and our limits in it; nbd_wire.py has those of
# the handshake. All integers on the wire are big-endian.

cdef enum:
    NBD_REQUEST_MAGIC = 0x25609513
    NBD_SIMPLE_REPLY_MAGIC = 0x67446698
    # magic, flags (16 bits), type (16 bits), cookie (64 bits), offset (64 bits), length
    NBD_REQUEST_BYTES = 28
    # magic, error, cookie (64 bits)
    NBD_SIMPLE_REPLY_BYTES = 16

cdef enum:
    NBD_CMD_READ = 0
    NBD_CMD_WRITE = 1
    NBD_CMD_DISC = 2
    NBD_CMD_FLUSH = 3
    NBD_CMD_TRIM = 4
    NBD_CMD_WRITE_ZEROES = 6

cdef enum:
    NBD_CMD_FLAG_FUA = 1
    NBD_CMD_FLAG_NO_HOLE = 2

cdef enum:
    # Largest payload of one request, either way (nbd_wire.MAX_PAYLOAD_BYTES).
    NBD_MAX_PAYLOAD_BYTES = 33554432
