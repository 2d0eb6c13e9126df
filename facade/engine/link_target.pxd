# The receiving side of a link: applies frames strictly in order to the volume below.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from facade.engine.keyed_digest cimport Digester
from facade.engine.syscalls cimport pthread_mutex_t
from facade.engine.link_wire cimport FrameHeader
from facade.engine.volume cimport Volume

cdef enum:
    APPLY_BUFFER_BYTES = 4 << 20   # frames received and not yet applied
    STUCK_LIMIT_MS = 30000         # one frame that takes longer is no longer reported as alive

cdef class LinkTarget:
    cdef int fd
    cdef Volume lower
    cdef uint8_t *buffer
    cdef size_t start              # of what is received and not applied
    cdef size_t end
    cdef uint64_t applied_seq
    cdef int64_t acked_seq         # atomic
    cdef int64_t busy_since_ms     # atomic: a frame is being applied since then; 0: none is
    cdef pthread_mutex_t send_lock
    cdef Digester digester         # for comparing what the source has digested
    cdef bint compares             # both sides agreed on that
    cdef uint8_t *scratch          # DIGEST_RANGE_BYTES of our data; NULL without `compares`
    cdef bint is_cut               # an answer to digests was not sent: nothing may follow it
    cdef readonly int apply_errno  # of the volume below, when that ended the link
    cdef readonly uint64_t received_bytes
    cdef readonly uint64_t sent_bytes
    cdef readonly uint64_t applied_bytes

    # Applies until a control frame is next (CONTROL_ARRIVED), the link ends or an error.
    cdef int apply_loop(self) noexcept nogil
    cdef int apply_one(self, const FrameHeader *header, uint8_t *payload) noexcept nogil
    # Compare the digests of a range with those of our data and say which pieces differ. 0 or errno.
    cdef int compare_one(self, const FrameHeader *header, const uint8_t *digests) noexcept nogil
    cdef int send_frame(self, uint8_t kind, uint64_t seq, uint64_t offset) noexcept nogil
    cdef int send_bytes(self, const uint8_t *data, size_t size) noexcept nogil
