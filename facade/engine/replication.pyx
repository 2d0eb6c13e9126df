"""The replication layer of one volume: tracking, sending, copying, cleaning."""

import os
import threading

from libc.errno cimport EAGAIN, EIO, EPERM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from facade.engine.change_map cimport ChangeMap
from facade.engine.syscalls cimport (
    atomic_load,
    atomic_store,
    cond_init,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_wait,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from facade.engine.link_sender cimport WAIT_LOCAL, WAIT_REMOTE, LinkSender
from facade.engine.link_wire cimport (
    FRAME_FLUSH,
    FRAME_FUA,
    FRAME_NO_HOLE,
    FRAME_WRITE,
    FRAME_ZERO,
)
from facade.engine.range_locks cimport RangeLocks
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NO_HOLE,
    IO_NOWAIT,
    IO_READ,
    IO_WRITE,
    Io,
    Volume,
)

cdef enum:
    WRITE_PIECE_BYTES = 512 << 10      # one frame of an application's write


cdef class ReplicationLayer(Volume):
    """Tracks changes of `lower` in `changes`; sends them while a LinkSender is attached.

    `on_bitmap_failed(errno) -> bool` is called when the bitmap volume fails: True says that this is
    durably on record elsewhere (everything then counts as dirty after a crash), and the layer goes
    on with the map in memory; False makes the write fail with EIO.
    """

    def __cinit__(self):
        cond_init(&self.idle)

    def __init__(self, Volume lower not None, ChangeMap changes not None, on_bitmap_failed):
        self.lower = lower
        self.changes = changes
        self.size_bytes = lower.size_bytes
        self.name = lower.name
        self.locks = RangeLocks()
        self.on_bitmap_failed = on_bitmap_failed
        self.settle_lock = threading.Lock()

    def __dealloc__(self):
        pthread_cond_destroy(&self.idle)

    # ---- control: Python --------------------------------------------------------------------

    def attach(self, LinkSender sender not None) -> None:
        """From now on every change is also sent. The caller has ended any earlier sender."""
        self.detach(self.sender)
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            while self.users:
                pthread_cond_wait(&self.idle, &self.changes.lock)
            pthread_mutex_unlock(&self.changes.lock)
        self.sender = sender
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            self.sending = True
            pthread_mutex_unlock(&self.changes.lock)

    def detach(self, LinkSender sender) -> bool:
        """Changes are only tracked from now on; the sender stays alive until nobody uses it.

        Does nothing and returns False when `sender` is not the one that is attached.
        """
        if self.sender is not sender:
            return False
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            self.sending = False
            pthread_mutex_unlock(&self.changes.lock)
        return True

    @property
    def is_sending(self) -> bool:
        """True while changes are sent."""
        cdef bint sending
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            sending = self.sending
            pthread_mutex_unlock(&self.changes.lock)
        return sending

    def set_target(self, bint target) -> None:
        """Refuse (True) or allow applications' writes; returns once none is in flight."""
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            self.target = target
            while target and self.writers:
                pthread_cond_wait(&self.idle, &self.changes.lock)
            pthread_mutex_unlock(&self.changes.lock)

    @property
    def is_target(self) -> bool:
        """True while applications' writes are refused."""
        cdef bint target
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            target = self.target
            pthread_mutex_unlock(&self.changes.lock)
        return target

    @property
    def app_writes(self) -> int:
        """Writes of applications since the layer was engaged."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.changes.lock)
            count = self.write_count
            pthread_mutex_unlock(&self.changes.lock)
        return count

    @property
    def volume_failed(self) -> bool:
        """Whether the volume below has failed a write or flush."""
        return atomic_load(&self.failed_state) != 0

    @property
    def failed_errno(self) -> int:
        """The errno of the last failed write, flush or copy; 0 before any."""
        return atomic_load(&self.last_error)

    def settle(self, double timeout_s) -> int | None:
        """Clear every bit whose block is the same on both sides; how many, None if it cannot be.

        Waits for the writes in flight, flushes both sides, clears. None: time-out or dead link.
        Raises OSError when the local flush fails: the volume has failed.
        """
        with self.settle_lock:
            if not self.enter_users():
                return None
            try:
                return self._settle(<long> (timeout_s * 1000))
            finally:
                with nogil:
                    self.leave_users()

    def _settle(self, long timeout_ms) -> int | None:
        cdef int error
        cdef uint64_t seq, cleared
        cdef uint8_t *place = NULL
        cdef Io io
        with nogil:
            error = self.changes.flip(timeout_ms)
        if error:
            return None
        with nogil:
            seq = self.sender.reserve(0, WAIT_REMOTE, -1, NULL, &place)
            if seq:
                self.sender.fill(seq, FRAME_FLUSH, 0, 0, 0, 0)
            io.op = IO_FLUSH
            io.flags = 0
            io.offset = 0
            io.length = 0
            io.data = NULL
            io.complete = NULL
            io.owner = NULL
            error = self.lower.run(&io)
        if error:
            self.note_failure(error)
            raise OSError(error, os.strerror(error), self.name)
        if not seq:
            return None
        with nogil:
            error = self.sender.wait_acked(seq)
            cleared = self.changes.clear_settled() if not error else 0
        return None if error else cleared

    def wait_epoch(self, double timeout_s) -> bool:
        """Wait until every write begun before now has ended; False after the time-out."""
        cdef long timeout_ms = <long> (timeout_s * 1000)
        cdef int error = 0
        with self.settle_lock, nogil:
            error = self.changes.flip(timeout_ms)
        return error == 0

    # ---- data path --------------------------------------------------------------------------

    cdef int submit(self, Io *io) noexcept nogil:
        if io.op == IO_READ:
            return self.lower.submit(io)
        if io.flags & IO_NOWAIT and self.may_wait(io):
            return EAGAIN
        if io.op == IO_FLUSH:
            return self.submit_flush(io)
        return self.submit_write(io)

    # A write goes on at once when the volume below takes it, its bits are durable and the link has
    # room. Another write may change that before this one is there: then it waits after all.
    cdef bint may_wait(self, const Io *io) noexcept nogil:
        cdef uint64_t first = io.offset >> self.changes.block_shift
        cdef uint64_t last = (io.offset + io.length - 1) >> self.changes.block_shift
        cdef bint is_free = True
        if io.op == IO_READ:
            return self.lower.may_wait(io)
        if io.op == IO_FLUSH or io.flags & IO_FUA or self.lower.may_wait(io):
            return True
        if first >= self.changes.blocks:
            return False
        last = min(last, self.changes.blocks - 1)
        pthread_mutex_lock(&self.changes.lock)
        if self.target:
            is_free = True
        elif not self.changes.is_stable_locked(first, last):
            is_free = False
        elif self.sending:
            is_free = (self.sender.has_room(io.length if io.op == IO_WRITE else 0)
                       and self.locks.are_free(first, last))
        pthread_mutex_unlock(&self.changes.lock)
        return not is_free

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        return self.lower.extent(offset, length, run_bytes, is_hole)

    cdef bint enter_users(self) noexcept nogil:
        cdef bint sending
        pthread_mutex_lock(&self.changes.lock)
        sending = self.sending
        if sending:
            self.users += 1
        pthread_mutex_unlock(&self.changes.lock)
        return sending

    cdef void leave_users(self) noexcept nogil:
        pthread_mutex_lock(&self.changes.lock)
        self.users -= 1
        if self.users == 0:
            pthread_cond_broadcast(&self.idle)
        pthread_mutex_unlock(&self.changes.lock)

    cdef int record_bitmap_failure(self, int error) noexcept nogil:
        cdef bint recorded = False
        with gil:
            try:
                recorded = bool(self.on_bitmap_failed(error))
            except Exception:
                recorded = False
            if recorded:
                self.changes.go_memory_only()
        return 0 if recorded else EIO

    cdef int local_write(self, Io *io) noexcept nogil:
        cdef Io below = io[0]
        cdef int error = self.lower.run(&below)
        if error == EIO:
            self.note_failure(error)
        elif error:
            atomic_store(&self.last_error, error)
        return error

    # The errno first: who sees that it has failed can say why.
    cdef void note_failure(self, int error) noexcept nogil:
        atomic_store(&self.last_error, error)
        atomic_store(&self.failed_state, 1)

    cdef int submit_write(self, Io *io) noexcept nogil:
        cdef uint64_t first = io.offset >> self.changes.block_shift
        cdef uint64_t last = (io.offset + io.length - 1) >> self.changes.block_shift
        cdef uint64_t ticket
        # A secondary may be longer than its set: what lies past the set's end is nobody's copy.
        if first >= self.changes.blocks:
            return EPERM if self.target else self.local_write(io)
        if last >= self.changes.blocks:
            last = self.changes.blocks - 1
        cdef int parity, error = 0
        cdef bint sending
        pthread_mutex_lock(&self.changes.lock)
        if self.target:
            pthread_mutex_unlock(&self.changes.lock)
            return EPERM
        ticket = self.changes.mark_locked(first, last)
        if self.target:
            # It became one while the mark waited; a bit too many is harmless.
            pthread_mutex_unlock(&self.changes.lock)
            return EPERM
        parity = self.changes.enter_locked(first, last)
        self.write_count += 1
        self.writers += 1
        sending = self.sending
        if sending:
            self.users += 1
        pthread_mutex_unlock(&self.changes.lock)
        if ticket:
            error = self.changes.wait_stable(ticket)
            if error:
                error = self.record_bitmap_failure(error)
        if error:
            self.changes.leave(parity)
        elif sending:
            error = self.write_both(io, parity)
        else:
            self.locks.lock(first, last)
            error = self.local_write(io)
            self.locks.unlock(first, last)
            self.changes.leave(parity)
        pthread_mutex_lock(&self.changes.lock)
        self.writers -= 1
        if sending:
            self.users -= 1
        if self.writers == 0 or self.users == 0:
            pthread_cond_broadcast(&self.idle)
        pthread_mutex_unlock(&self.changes.lock)
        return error

    cdef int write_both(self, Io *io, int parity) noexcept nogil:
        # A long write goes in pieces, each with its own lock and frame; frames are acknowledged in
        # order, so the last one carries the Io. The frame stands before the local write begins, so
        # that both run at the same time.
        cdef Io piece = io[0]
        cdef uint64_t end = io.offset + io.length, seq = 0
        cdef int error = 0, one = 0
        cdef bint is_last = False
        while not is_last:
            if io.op == IO_WRITE and end - piece.offset > WRITE_PIECE_BYTES:
                piece.length = WRITE_PIECE_BYTES
            else:
                piece.length = end - piece.offset
                is_last = True
            seq = self.send_piece(&piece, io if is_last else NULL, parity if is_last else -1, &one)
            if one and not error:
                error = one
            if not is_last:
                if seq:
                    self.sender.local_done(seq, 0)
                piece.offset += WRITE_PIECE_BYTES
                piece.data += WRITE_PIECE_BYTES
        if seq:
            return self.sender.local_done(seq, error)
        self.changes.leave(parity)
        return error

    cdef uint64_t send_piece(self, Io *piece, Io *whole, int parity, int *error) noexcept nogil:
        # Place in the order and local write under one lock of the range. Under the lock nothing
        # may wait for room in the ring (the copier waits for locks with its room taken), so
        # without room the lock is given back first. Returns the frame's seq, 0: the link is gone.
        cdef uint64_t first = piece.offset >> self.changes.block_shift
        cdef uint64_t last = (piece.offset + piece.length - 1) >> self.changes.block_shift
        cdef uint64_t seq = 0
        cdef uint32_t size = <uint32_t> piece.length if piece.op == IO_WRITE else 0
        cdef uint8_t flags = FRAME_FUA if piece.flags & IO_FUA else 0
        cdef uint8_t *place = NULL
        cdef int room = 0
        if piece.flags & IO_NO_HOLE:
            flags |= FRAME_NO_HOLE
        while True:
            self.locks.lock(first, last)
            room = self.sender.try_reserve(size, WAIT_LOCAL | WAIT_REMOTE, parity, whole,
                                           &place, &seq)
            if room != EAGAIN:
                break
            self.locks.unlock(first, last)
            self.sender.wait_room(size)
        if seq:
            if size:
                memcpy(place, piece.data, size)
                self.sender.fill(seq, FRAME_WRITE, flags, piece.offset, piece.length, size)
            else:
                self.sender.fill(seq, FRAME_ZERO, flags, piece.offset, piece.length, 0)
        error[0] = self.local_write(piece)
        if error[0] and seq:
            # The other side has, or will have, what this side could not write. Without a link the
            # bit stays until a copy makes the block equal.
            self.sender.kill(error[0])
        self.locks.unlock(first, last)
        return seq

    cdef int submit_flush(self, Io *io) noexcept nogil:
        # Every acknowledged write has its place in the send order already, so a flush frame sent
        # now comes after all of them.
        cdef uint64_t seq = 0
        cdef uint8_t *place = NULL
        cdef Io below = io[0]
        cdef int error
        cdef bint sending
        pthread_mutex_lock(&self.changes.lock)
        sending = self.sending
        if sending:
            self.users += 1
        pthread_mutex_unlock(&self.changes.lock)
        if sending:
            seq = self.sender.reserve(0, WAIT_LOCAL | WAIT_REMOTE, -1, io, &place)
            if seq:
                self.sender.fill(seq, FRAME_FLUSH, 0, 0, 0, 0)
        error = self.lower.run(&below)
        if error:
            self.note_failure(error)
            if seq:
                self.sender.kill(error)
        if seq:
            error = self.sender.local_done(seq, error)
        if sending:
            self.leave_users()
        return error
