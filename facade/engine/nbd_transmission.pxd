# The transmission phase of one NBD connection: requests in, replies out, without the GIL.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from facade.engine.nbd_buffers cimport Chunk
from facade.engine.nbd_connection cimport Connection, Step
from facade.engine.volume cimport Io, Volume

cdef enum:
    SEND_AT_BYTES = 65536         # replies gathered beyond this are sent before going on

# A request's header, in the machine's byte order but for the cookie.
cdef struct Header:
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint64_t offset
    uint32_t length


cdef class Transmission(Connection):
    cdef Volume volume
    cdef bint read_only
    cdef bint expect_large               # the last request was a large write
    cdef readonly uint64_t requests      # taken so far
    cdef readonly uint64_t read_bytes    # asked for so far
    cdef readonly uint64_t write_bytes   # likewise

    cdef Step serve(self) noexcept nogil
    cdef Step take_requests(self) noexcept nogil
    cdef Step take_large_write(self, const Header *header) noexcept nogil
    cdef Step take_one(self, const Header *header, uint8_t *data, Chunk *payload) noexcept nogil
    # 0 or the errno that refuses the request before it reaches the volume.
    cdef int check(self, const Header *header) noexcept nogil
