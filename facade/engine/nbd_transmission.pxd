# The transmission phase of one NBD connection: requests in, replies out, without the GIL.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from facade.engine.io_pool cimport IoPool
from facade.engine.nbd_buffers cimport Chunk
from facade.engine.nbd_connection cimport Connection, Step
from facade.engine.nbd_outbox cimport Request
from facade.engine.nbd_rules cimport Header, Rules
from facade.engine.volume cimport Volume

cdef enum:
    SEND_AT_BYTES = 65536         # replies gathered beyond this are sent before going on
    CONTEXTS_MAX = 16             # metadata contexts of one connection
    # Only longer reads leave out holes: asking where they are must not slow small ones. Not less
    # than INLINE_BYTES_MAX, whose replies have no chunk of memory of their own.
    HOLE_READ_BYTES = 65536
    HOLE_BYTES_MIN = 4096         # shorter holes are sent as data
    HOLE_PROBE_BYTES = 4096       # read of a hole, so that a failing volume fails there as well
    KNOWN_DATA_S = 5              # for so long, what was data is not asked about again
    CACHE_BYTES_MAX = 4194304     # what one NBD_CMD_CACHE brings in, from its beginning
    # Longer zeroes and trims go to the volume in pieces, one after the other: between two of them
    # other requests have their turn and layers can change.
    LONG_PIECE_BYTES = 67108864


cdef class Transmission(Connection):
    cdef Volume volume
    cdef IoPool lookups                  # of the volume, or None
    cdef bint has_lookups                # it is not None
    cdef Rules rules
    cdef tuple contexts                  # keeps alive what the next line points to
    cdef void *contexts_at[CONTEXTS_MAX]   # MetaContext, borrowed: the nogil loop counts no owners
    cdef bint expect_large               # the last request had a large payload
    cdef bint is_broken                  # the connection ended, but not as the client said
    cdef uint64_t known_data_start       # found to be data at known_data_ns; empty: nothing known
    cdef uint64_t known_data_end
    cdef int64_t known_data_ns
    cdef readonly uint64_t requests      # taken so far
    cdef readonly uint64_t read_bytes    # asked for so far
    cdef readonly uint64_t write_bytes   # likewise

    cdef Step serve(self) noexcept nogil
    cdef Step take_requests(self) noexcept nogil
    cdef Step take_large(self, const Header *header) noexcept nogil
    cdef Step take_one(self, Header *header, uint8_t *data, Chunk *payload) noexcept nogil
    # Zeroes and trims longer than a piece.
    cdef Step take_long(self, Request *request) noexcept nogil
    # 0 or errno when all is done, IO_PENDING when a piece is on its way.
    cdef int submit_pieces(self, Request *request) noexcept nogil
    cdef bint has_client_gone(self) noexcept nogil
    # Memory for what the volume reads; False: the connection cannot go on.
    cdef bint prepare_read(self, const Header *header, Request *request) noexcept nogil
    # Plan the reply of a long read around its holes, if there are any.
    cdef void lay_out(self, Request *request) noexcept nogil
    cdef bint is_known_data(self, uint64_t start, uint64_t end) noexcept nogil
    cdef void note_data(self, uint64_t start, uint64_t end) noexcept nogil
    # Queue what is answered; send when there is much of it.
    cdef Step finish(self, Request *request) noexcept nogil
    # Block status: looking may take long and meet the disk, so where the volume has a pool it is
    # done there.
    # The payload of a block status: its length and which contexts it asks for. 0 or errno.
    cdef int parse_filter(self, Header *header, const uint8_t *data,
                          Request *request) noexcept nogil
    cdef Step take_status(self, const Header *header, Request *request) noexcept nogil
    cdef void tell_status(self, Request *request) noexcept nogil
    # Write one context's chunk to `at`. 0 or errno; `used` is the chunk's length.
    cdef int tell_context(self, Request *request, int number, uint8_t *at,
                          size_t *used) noexcept nogil
