# What a request of the transmission phase may ask for, before the volume is asked.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from facade.engine.volume cimport Io

# A request's header, in the machine's byte order but for the cookie.
cdef struct Header:
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint64_t offset
    uint64_t length          # of what the request is about
    uint64_t payload_bytes   # that follow the header

# What was agreed in the handshake.
cdef struct Rules:
    bint read_only
    bint is_structured       # replies may be chunks
    bint is_extended         # headers are extended, both ways, and replies always chunks
    bint can_zero_fast       # zeroing that may punch holes needs no writing
    int context_count        # metadata contexts that the client has selected

cdef bint has_magic(const uint8_t *data, bint is_extended) noexcept nogil
cdef void parse_header(const uint8_t *data, bint is_extended, Header *header) noexcept nogil

# 0, or the errno that refuses the request before it reaches the volume, with `why` in words.
cdef int check(const Rules *rules, uint64_t size_bytes, const Header *header,
               const char **why) noexcept nogil

# The volume's request; data stays NULL.
cdef void translate(const Header *header, Io *io) noexcept nogil
