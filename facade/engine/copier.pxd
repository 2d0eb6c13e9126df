# The copier: makes the blocks on a set's list equal on the other side, while writes go on.
#
# It goes through the list once. A block is sent whole, or (where both sides agreed on digests and
# while that pays) as the digests of its pieces, in its place in the order: the target compares them
# with what it has at that moment and asks for the pieces that differ. Writes of applications after
# that moment are sent anyway. Then it sends the pieces that were asked for.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from facade.engine.keyed_digest cimport Digester
from facade.engine.piece_map cimport PieceMap
from facade.engine.replication cimport ReplicationLayer
from facade.engine.volume cimport Io

cdef enum:
    COPY_CHUNK_BYTES = 512 << 10       # one frame: of data, or of digests of so much
    SAMPLE_BYTES = 32 << 20            # after each so much it is judged whether digests pay
    # Digests pay while at most so many of a hundred pieces differ; beyond, reading twice does not.
    PAYS_PERCENT = 60

cdef enum Phase:
    PHASE_BLOCKS = 0
    PHASE_PIECES = 1

cdef class Copier:
    cdef ReplicationLayer layer
    cdef Digester digester
    cdef readonly bint compares        # digests are sent
    cdef PieceMap pieces               # that were asked for; None without digests
    cdef uint8_t *scratch              # COPY_CHUNK_BYTES, what is digested
    cdef Phase phase
    cdef uint64_t next_block
    cdef uint64_t next_piece
    cdef uint64_t data_until           # data, not hole, up to this offset
    cdef uint64_t last_seq             # of the last frame of digests
    cdef readonly uint64_t compared_bytes
    cdef uint64_t judged_bytes         # of these, when it was judged last

    # Bytes covered, 0 when the phase has no more; `error` is set when it failed.
    cdef uint64_t copy_blocks(self, int *error) noexcept nogil
    cdef uint64_t copy_pieces(self, int *error) noexcept nogil
    # Take the range's place in the order and send it. Bytes covered, 0 when that failed.
    cdef uint64_t copy_range(self, uint64_t offset, uint64_t length, int parity, bint as_digests,
                             int *error) noexcept nogil
    cdef void send_range(self, uint64_t seq, uint8_t *place, uint64_t offset, uint64_t length,
                         bint as_digests, int *error) noexcept nogil
    cdef int read_below(self, uint64_t offset, uint64_t length, uint8_t *data) noexcept nogil
    cdef bint is_hole(self, uint64_t offset, uint64_t length) noexcept nogil
    # Wait until every digest sent is answered. 0 or errno.
    cdef int end_phase(self) noexcept nogil
    # Whether digests pay. 0 or errno.
    cdef int judge(self) noexcept nogil
