"""The copier of a synchronisation."""

import os

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from facade.engine.keyed_digest cimport (
    DIGEST_BYTES,
    SEED_BYTES,
    close_digester,
    digest_piece,
    open_digester,
)
from facade.engine.link_sender cimport WAIT_REMOTE
from facade.engine.link_wire cimport DIGEST_PIECE_BYTES, FRAME_DIGEST, FRAME_WRITE, FRAME_ZERO
from facade.engine.piece_map cimport PieceMap
from facade.engine.replication cimport ReplicationLayer
from facade.engine.syscalls cimport is_zero, pthread_mutex_lock, pthread_mutex_unlock
from facade.engine.volume cimport IO_READ, Io


cdef inline uint64_t pieces_in(uint64_t length) noexcept nogil:
    return (length + DIGEST_PIECE_BYTES - 1) // DIGEST_PIECE_BYTES


cdef class Copier:
    """Goes through the list that ChangeMap.plan_copy() made. One thread uses it."""

    def __cinit__(self):
        self.digester.context = NULL
        self.scratch = NULL

    def __init__(self, ReplicationLayer layer not None, const uint8_t[::1] seed=None):
        """`seed`: the digests' (32 bytes), when the other side compares them; else none are sent.

        A sender is attached to the layer. Raises MemoryError, ValueError.
        """
        self.layer = layer
        if seed is None:
            return
        if seed.shape[0] != SEED_BYTES:
            raise ValueError(f"the seed has {seed.shape[0]} bytes; it is {SEED_BYTES}")
        self.scratch = <uint8_t *> malloc(COPY_CHUNK_BYTES)
        if self.scratch == NULL or open_digester(&self.digester, &seed[0]):
            raise MemoryError
        self.pieces = PieceMap(layer.changes.size_bytes)
        layer.sender.expect_answers(self.pieces)
        self.compares = True

    def __dealloc__(self):
        close_digester(&self.digester)
        free(self.scratch)

    def copy(self, uint64_t limit_bytes) -> int:
        """Go on for about `limit_bytes`; returns the bytes covered, 0 when all is done.

        Raises OSError: the volume below cannot be read, or the link is gone.
        """
        cdef uint64_t done = 0, one
        cdef int error = 0
        with nogil:
            while done < limit_bytes and not error:
                if self.phase == PHASE_BLOCKS:
                    one = self.copy_blocks(&error)
                    if one == 0 and not error:
                        error = self.end_phase()
                        self.phase = PHASE_PIECES
                        self.next_piece = 0
                        continue
                else:
                    one = self.copy_pieces(&error)
                    if one == 0:
                        break
                done += one
                if not error:
                    error = self.judge()
        if error:
            raise OSError(error, os.strerror(error), self.layer.name)
        return done

    # Digests that find most pieces different cost more than they save. Each sample's answers are
    # waited for: a source that is faster than its target would have digested all before the first.
    cdef int judge(self) noexcept nogil:
        cdef int error
        if not self.compares or self.compared_bytes < self.judged_bytes + SAMPLE_BYTES:
            return 0
        error = self.end_phase()
        self.judged_bytes = self.compared_bytes
        if not error and (self.pieces.count_wanted() * DIGEST_PIECE_BYTES
                          > self.compared_bytes // 100 * PAYS_PERCENT):
            self.compares = False
        return error

    # Every answer to the digests is here when the last of them is acknowledged.
    cdef int end_phase(self) noexcept nogil:
        cdef int error
        if not self.last_seq:
            return 0
        if not self.layer.enter_users():
            return ESHUTDOWN
        error = self.layer.sender.wait_acked(self.last_seq)
        self.layer.leave_users()
        return error

    cdef bint is_hole(self, uint64_t offset, uint64_t length) noexcept nogil:
        # Looking for the end of a run of data may cost time that grows with the run, so it is
        # remembered: reading data that has become a hole since is right too. A hole is looked for
        # each time, under the lock of its range.
        cdef uint64_t run = 0
        cdef bint hole = False
        if offset + length <= self.data_until:
            return False
        if self.layer.lower.extent(offset, self.layer.size_bytes - offset, &run, &hole):
            return False
        if not hole:
            self.data_until = offset + run
        return hole and run >= length

    cdef int read_below(self, uint64_t offset, uint64_t length, uint8_t *data) noexcept nogil:
        cdef Io io
        io.op = IO_READ
        io.flags = 0
        io.offset = offset
        io.length = length
        io.data = data
        io.complete = NULL
        io.owner = NULL
        return self.layer.lower.run(&io)

    cdef uint64_t copy_blocks(self, int *error) noexcept nogil:
        cdef uint64_t first = 0, count, offset, length
        cdef uint64_t limit = COPY_CHUNK_BYTES >> self.layer.changes.block_shift
        cdef int parity = -1
        cdef bint as_digests = self.compares
        pthread_mutex_lock(&self.layer.changes.lock)
        if not self.layer.sending:
            error[0] = ESHUTDOWN
            pthread_mutex_unlock(&self.layer.changes.lock)
            return 0
        count = self.layer.changes.take_todo_locked(self.next_block, limit if limit else 1, &first)
        if count:
            parity = self.layer.changes.enter_locked(first, first + count - 1)
            self.layer.users += 1
        pthread_mutex_unlock(&self.layer.changes.lock)
        if not count:
            return 0
        self.next_block = first + count
        offset = first << self.layer.changes.block_shift
        length = min(count << self.layer.changes.block_shift,
                     self.layer.changes.size_bytes - offset)
        as_digests = as_digests and length <= COPY_CHUNK_BYTES
        return self.copy_range(offset, length, parity, as_digests, error)

    # A user of the sender, in the epoch `parity`; ends both.
    cdef uint64_t copy_range(self, uint64_t offset, uint64_t length, int parity, bint as_digests,
                             int *error) noexcept nogil:
        cdef uint64_t first = offset >> self.layer.changes.block_shift
        cdef uint64_t last = (offset + length - 1) >> self.layer.changes.block_shift
        cdef uint64_t size = pieces_in(length) * DIGEST_BYTES if as_digests else length
        cdef uint8_t *place = NULL
        # Room in the ring first: whoever waits for it must hold no lock that a writer wants.
        cdef uint64_t seq = self.layer.sender.reserve(<uint32_t> size, WAIT_REMOTE, parity, NULL,
                                                      &place)
        if seq:
            self.layer.locks.lock(first, last)
            self.send_range(seq, place, offset, length, as_digests, error)
            self.layer.locks.unlock(first, last)
        else:
            self.layer.changes.leave(parity)
            error[0] = ESHUTDOWN
        self.layer.leave_users()
        return 0 if error[0] else length

    # Under the lock of the range, its place in the order taken: read it and fill the frame.
    cdef void send_range(self, uint64_t seq, uint8_t *place, uint64_t offset, uint64_t length,
                         bint as_digests, int *error) noexcept nogil:
        cdef uint8_t *data = self.scratch if as_digests else place
        cdef uint64_t at = 0
        if self.is_hole(offset, length):
            self.layer.sender.fill(seq, FRAME_ZERO, 0, offset, length, 0)
            return
        error[0] = self.read_below(offset, length, data)
        if error[0] == 0 and is_zero(data, length):
            self.layer.sender.fill(seq, FRAME_ZERO, 0, offset, length, 0)
            return
        while as_digests and at < length and error[0] == 0:
            error[0] = digest_piece(&self.digester, data + at,
                                    min(length - at, <uint64_t> DIGEST_PIECE_BYTES), place)
            place += DIGEST_BYTES
            at += DIGEST_PIECE_BYTES
        if error[0]:
            # The place in the order is taken: what cannot be read ends the link.
            self.layer.note_failure(error[0])
            self.layer.sender.kill(error[0])
        elif as_digests:
            self.compared_bytes += length
            self.last_seq = seq
            self.layer.sender.fill(seq, FRAME_DIGEST, 0, offset, length,
                                   <uint32_t> (pieces_in(length) * DIGEST_BYTES))
        else:
            self.layer.sender.fill(seq, FRAME_WRITE, 0, offset, length, <uint32_t> length)

    cdef uint64_t copy_pieces(self, int *error) noexcept nogil:
        cdef uint32_t shift = self.layer.changes.block_shift
        cdef uint64_t count = 0
        cdef uint64_t first = 0
        cdef uint64_t offset
        cdef uint64_t length
        cdef int parity = -1
        while count == 0:
            if self.pieces is None or self.next_piece >= self.pieces.pieces:
                return 0
            count = self.pieces.take(self.next_piece, COPY_CHUNK_BYTES // DIGEST_PIECE_BYTES,
                                     &first)
            self.next_piece = first + count
        offset = first * DIGEST_PIECE_BYTES
        length = min(count * DIGEST_PIECE_BYTES, self.layer.changes.size_bytes - offset)
        pthread_mutex_lock(&self.layer.changes.lock)
        if self.layer.sending:
            parity = self.layer.changes.enter_locked(offset >> shift,
                                                     (offset + length - 1) >> shift)
            self.layer.users += 1
        else:
            error[0] = ESHUTDOWN
        pthread_mutex_unlock(&self.layer.changes.lock)
        return 0 if error[0] else self.copy_range(offset, length, parity, False, error)
