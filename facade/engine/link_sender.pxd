# The sending side of a link: frames in one order, a bounded ring of bytes, acknowledgements.
#
# A frame is reserved (which gives it its place in the order), filled by whoever reserved it, sent
# by the sender thread in order, and acknowledged by the other side in order. One that carries an
# Io ends that Io when both the local side and the other side have it. When the link dies, every
# frame counts as ended on the other side: the bits of its blocks, set before, cover the difference.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from facade.engine.change_map cimport ChangeMap
from facade.engine.piece_map cimport PieceMap
from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io

cdef enum:
    RING_BYTES = 16 << 20        # sent data waits here; writers and the copier wait when full
    FRAMES_LIMIT = 8192          # frames not yet acknowledged
    SEND_LIMIT_BYTES = 1 << 20   # one send() call

cdef enum FrameWait:
    WAIT_LOCAL = 1
    WAIT_REMOTE = 2

cdef struct SentFrame:
    uint64_t position            # of its header in the ring, counted from the start of the link
    uint32_t reserved_bytes      # in the ring
    uint32_t size_bytes          # to send, header included; valid when ready
    bint ready
    uint8_t waiting              # FrameWait bits; the slot is free at 0
    int parity                   # epoch to leave at the end, -1 for none
    int error                    # of the local side
    Io *io                       # to complete at the end when submit() said IO_PENDING

cdef class LinkSender:
    cdef int fd
    cdef ChangeMap changes       # whose epochs frames leave
    cdef PieceMap pieces         # where answers to digests go; None: none were asked for
    cdef int64_t pieces_at       # atomic: the same, for the receiver; 0: none
    cdef uint8_t *ring
    cdef SentFrame *frames
    cdef pthread_mutex_t lock
    cdef pthread_cond_t work     # the sender thread waits here
    cdef pthread_cond_t space    # those who reserve wait here
    cdef pthread_cond_t acked_changed
    cdef bint sender_idle
    cdef int space_waiters
    cdef int ack_waiters
    cdef uint64_t next_seq       # to be given; the first is 1
    cdef uint64_t send_seq       # next to be sent
    cdef uint64_t acked_seq      # all up to here are done on the other side
    cdef uint64_t head           # ring positions: next free, next to send
    cdef uint64_t tail
    cdef int dead                # errno that ended the link; 0 while it lives
    cdef long progress_ms        # when the last acknowledgement or idle moment was
    cdef long advance_ms         # when the last acknowledgement of something new was
    cdef int64_t sent_count      # atomic: bytes
    cdef int64_t received_count  # likewise
    cdef long timeout_ms
    cdef long keepalive_ms
    cdef long stuck_limit_ms

    # Before digests are sent, once: where their answers go.
    cdef object expect_answers(self, PieceMap pieces)
    cdef int end_errno(self) noexcept nogil        # without lock: `dead`
    # Without lock; may wait for space. Returns seq > 0 and the place of the payload, or 0: dead.
    cdef uint64_t reserve(self, uint32_t payload_bytes, uint8_t waiting, int parity, Io *io,
                          uint8_t **payload) noexcept nogil
    # Without lock, never waits: 0 with *seq > 0, EAGAIN when there is no room, or the errno that
    # ended the link (with *seq = 0).
    cdef int try_reserve(self, uint32_t payload_bytes, uint8_t waiting, int parity, Io *io,
                         uint8_t **payload, uint64_t *seq) noexcept nogil
    # Without lock: whether such a frame would be placed, or refused by a dead link, at once.
    cdef bint has_room(self, uint64_t payload_bytes) noexcept nogil
    # Without lock: returns when there was room for such a frame, or the link is dead.
    cdef void wait_room(self, uint32_t payload_bytes) noexcept nogil
    cdef bint place_locked(self, uint64_t size, uint64_t *position) noexcept nogil
    # Without lock: the frame is filled and may go.
    cdef void fill(self, uint64_t seq, uint8_t kind, uint8_t flags, uint64_t offset,
                   uint64_t length, uint32_t payload_bytes) noexcept nogil
    # Without lock: the local side of the frame is done. IO_PENDING when the other side is not yet
    # (its Io is completed later), else the result.
    cdef int local_done(self, uint64_t seq, int error) noexcept nogil
    # Without lock: 0 when acknowledged, else the errno that ended the link.
    cdef int wait_acked(self, uint64_t seq) noexcept nogil
    cdef void kill(self, int error) noexcept nogil
    cdef void end_frames(self, uint64_t up_to) noexcept nogil
    cdef int send_loop(self) noexcept nogil
    cdef bint is_overdue(self, long now) noexcept nogil
    cdef void ping(self) noexcept nogil
    cdef int send_all(self, const uint8_t *data, size_t size) noexcept nogil
    cdef int receive_loop(self, uint8_t *buffer, size_t size, size_t *start,
                          size_t *end) noexcept nogil
