"""A backing that loses at a power cut what a real disk may lose: for tests, and users' trials."""

import os
import threading

from libc.errno cimport EAGAIN, EINVAL, EIO, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from facade.engine.syscalls cimport (
    atomic_add,
    atomic_load,
    atomic_store,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    usleep,
)
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NOWAIT,
    IO_READ,
    IO_TRIM,
    IO_WRITE,
    IO_ZERO,
)

EXIT_STATUS_POWER_CUT = EXIT_STATUS


# SplitMix64: one well mixed number for each (seed, index), so that no generator is carried about.
cdef inline uint64_t mix(uint64_t seed, uint64_t index) noexcept nogil:
    cdef uint64_t x = seed + (index + 1) * <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EB
    return x ^ (x >> 31)


cdef class PowerSupply:
    """The power of some PowerCutVolumes; `cut` takes it from all of them at one moment.

    With `cut_at` it is cut at the n-th change (write, zero, trim or flush) of all of them together,
    of which the n-th itself gets EIO and may be on the disk or not. With `exits` the process then
    ends at once, with EXIT_STATUS_POWER_CUT. Flushes take `flush_delay_us`, so that others' writes
    can come between.
    """

    def __init__(self, cut_at: int = 0, seed: int = 0, exits: bool = False,
                 flush_delay_us: int = 0) -> None:
        self.volumes = []
        self.cut_lock = threading.Lock()
        self.cut_at = cut_at
        self.seed = seed
        self.exits = exits
        self.flush_delay_us = flush_delay_us

    @property
    def changes(self) -> int:
        """Changes that were asked of all volumes so far."""
        return atomic_load(&self.change_count)

    @property
    def is_off(self) -> bool:
        """Whether the power was cut, and the volumes below are what the next start finds."""
        return atomic_load(&self.off_state) == POWER_GONE

    def cut(self, seed: int | None = None) -> None:
        """Lose a part of what is not flushed, chosen by `seed`; every request fails from now on.

        When this returns the volumes below hold what a start after the cut would find.
        """
        if seed is not None:
            self.seed = seed
        with self.cut_lock:
            if self.is_off:
                return
            # Whoever finds it on has its volume's mutex and ends before that volume's turn.
            atomic_store(&self.off_state, POWER_GOING)
            for index, volume in enumerate(self.volumes):
                lose(volume, mix(self.seed, index))
            if self.exits:
                os._exit(EXIT_STATUS)
            atomic_store(&self.off_state, POWER_GONE)

    def cut_after(self, changes: int) -> None:
        """Have the power cut at the n-th change from now on, in place of any moment set before."""
        atomic_store(&self.cut_at, atomic_load(&self.change_count) + <int64_t> changes)

    cdef bint is_the_moment(self) noexcept nogil:
        cdef int64_t number = atomic_add(&self.change_count, 1)
        return number == atomic_load(&self.cut_at)

    cdef void cut_now(self) noexcept nogil:
        with gil:
            self.cut()


cdef object lose(PowerCutVolume volume, uint64_t seed):
    cdef int error
    with nogil:
        pthread_mutex_lock(&volume.mutex)
        error = volume.keep_some(seed)
        while volume.first != NULL:
            volume.forget_first()
        pthread_mutex_unlock(&volume.mutex)
    if error:
        raise OSError(error, os.strerror(error), volume.name)


cdef class PowerCutVolume(Volume):
    """Passes to `lower` only what is flushed, or written with FUA; see PowerSupply for the cut."""

    def __cinit__(self) -> None:
        self.first = NULL
        self.last = NULL
        pthread_mutex_init(&self.mutex, NULL)
        self.is_ready = True

    def __init__(self, lower: Volume, supply: PowerSupply | None = None) -> None:
        self.lower = lower
        self.size_bytes = lower.size_bytes
        self.name = lower.name
        self.supply = supply or PowerSupply()
        self.supply.volumes.append(self)

    def __dealloc__(self) -> None:
        while self.first != NULL:
            self.forget_first()
        if self.is_ready:
            pthread_mutex_destroy(&self.mutex)

    @property
    def held_changes(self) -> int:
        """Writes and zeroes that are not below, or that went there ahead of others by FUA."""
        cdef uint64_t count
        with nogil:
            pthread_mutex_lock(&self.mutex)
            count = self.held_count
            pthread_mutex_unlock(&self.mutex)
        return count

    @property
    def held_bytes(self) -> int:
        """Bytes of data in them."""
        cdef uint64_t size_bytes
        with nogil:
            pthread_mutex_lock(&self.mutex)
            size_bytes = self.held_size_bytes
            pthread_mutex_unlock(&self.mutex)
        return size_bytes

    cdef int submit(self, Io *io) noexcept nogil:
        cdef int error
        if io.flags & IO_NOWAIT:
            return EAGAIN
        if io.op == IO_READ:
            pthread_mutex_lock(&self.mutex)
            error = EIO
            if not atomic_load(&self.supply.off_state):
                error = self.read_version(io.offset, io.length, self.number, io.data)
            pthread_mutex_unlock(&self.mutex)
            return error
        if io.op == IO_FLUSH:
            return self.flush_held()
        if io.op == IO_WRITE or io.op == IO_ZERO or io.op == IO_TRIM:
            return self.change_held(io)
        return EINVAL

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        cdef HeldChange *change
        cdef int error = EIO
        pthread_mutex_lock(&self.mutex)
        if not atomic_load(&self.supply.off_state):
            error = self.lower.extent(offset, length, run_bytes, is_hole)
        if error == 0 and is_hole[0]:
            # What is held in a hole is data; what is zeroed over data may be called data too.
            change = self.first
            while change != NULL:
                if change.data == NULL or change.offset >= offset + run_bytes[0] or \
                        change.offset + change.length <= offset:
                    pass
                elif change.offset <= offset:
                    is_hole[0] = False
                    run_bytes[0] = min(run_bytes[0], change.offset + change.length - offset)
                    break
                else:
                    run_bytes[0] = change.offset - offset
                change = change.next
        pthread_mutex_unlock(&self.mutex)
        return error

    cdef int flush_held(self) noexcept nogil:
        cdef uint64_t up_to
        cdef int error = EIO
        cdef Io below
        pthread_mutex_lock(&self.mutex)
        up_to = self.number
        pthread_mutex_unlock(&self.mutex)
        if self.supply.is_the_moment():
            self.supply.cut_now()
            return EIO
        if self.supply.flush_delay_us:
            usleep(self.supply.flush_delay_us)
        pthread_mutex_lock(&self.mutex)
        if not atomic_load(&self.supply.off_state):
            error = self.pass_down(up_to)
            if error == 0:
                memset(&below, 0, sizeof(below))
                below.op = IO_FLUSH
                error = self.lower.run(&below)
        pthread_mutex_unlock(&self.mutex)
        return error

    cdef int change_held(self, Io *io) noexcept nogil:
        cdef bint is_cut = self.supply.is_the_moment()
        cdef uint64_t first = io.offset // SECTOR_BYTES_MIN * SECTOR_BYTES_MIN
        cdef uint64_t end = io.offset + io.length
        cdef int error = EIO
        end = (end + SECTOR_BYTES_MIN - 1) // SECTOR_BYTES_MIN * SECTOR_BYTES_MIN
        end = min(end, self.size_bytes)
        if io.flags & IO_FUA and self.supply.flush_delay_us and not is_cut:
            usleep(self.supply.flush_delay_us)
        pthread_mutex_lock(&self.mutex)
        if not atomic_load(&self.supply.off_state):
            error = self.hold_change(io)
            if error == 0 and io.flags & IO_FUA and not is_cut:
                error = self.write_version(first, end - first, self.number, IO_FUA)
                self.last.is_durable = error == 0
        pthread_mutex_unlock(&self.mutex)
        if is_cut:
            self.supply.cut_now()
            return EIO
        return error

    cdef int hold_change(self, const Io *io) noexcept nogil:
        cdef HeldChange *change
        cdef int error
        if self.held_count >= HELD_CHANGES_MAX or self.held_size_bytes >= HELD_BYTES_MAX:
            error = self.pass_down(self.number)
            if error:
                return error
        change = <HeldChange *> malloc(sizeof(HeldChange))
        if change == NULL:
            return ENOMEM
        memset(change, 0, sizeof(HeldChange))
        if io.op == IO_WRITE:
            change.data = <uint8_t *> malloc(io.length)
            if change.data == NULL:
                free(change)
                return ENOMEM
            memcpy(change.data, io.data, io.length)
            self.held_size_bytes += io.length
        self.number += 1
        change.number = self.number
        change.offset = io.offset
        change.length = io.length
        if self.first == NULL:
            self.first = change
        else:
            self.last.next = change
        self.last = change
        self.held_count += 1
        return 0

    # In order, and at least up to the last one that FUA has put below: an older one must not come
    # over it there.
    cdef int pass_down(self, uint64_t up_to) noexcept nogil:
        cdef HeldChange *change = self.first
        cdef Io below
        cdef int error
        while change != NULL:
            if change.is_durable:
                up_to = max(up_to, change.number)
            change = change.next
        while self.first != NULL and self.first.number <= up_to:
            memset(&below, 0, sizeof(below))
            below.op = IO_WRITE if self.first.data != NULL else IO_TRIM
            below.offset = self.first.offset
            below.length = self.first.length
            below.data = self.first.data
            error = self.lower.run(&below)
            if error:
                return error
            self.forget_first()
        return 0

    # Put below what the range held right after change `number`.
    cdef int write_version(self, uint64_t offset, uint64_t length, uint64_t number,
                           uint8_t flags) noexcept nogil:
        cdef uint8_t *data = <uint8_t *> malloc(min(length, <uint64_t> PIECE_BYTES))
        cdef uint64_t done = 0
        cdef Io below
        cdef int error = 0
        if data == NULL:
            return ENOMEM
        while done < length and error == 0:
            memset(&below, 0, sizeof(below))
            below.op = IO_WRITE
            below.flags = flags
            below.offset = offset + done
            below.length = min(length - done, <uint64_t> PIECE_BYTES)
            below.data = data
            error = self.read_version(below.offset, below.length, number, data)
            if error == 0:
                error = self.lower.run(&below)
            done += below.length
        free(data)
        return error

    cdef int read_version(self, uint64_t offset, uint64_t length, uint64_t number,
                          uint8_t *data) noexcept nogil:
        cdef HeldChange *change = self.first
        cdef uint64_t first, end
        cdef Io below
        cdef int error
        memset(&below, 0, sizeof(below))
        below.op = IO_READ
        below.offset = offset
        below.length = length
        below.data = data
        error = self.lower.run(&below)
        while error == 0 and change != NULL and change.number <= number:
            first = max(offset, change.offset)
            end = min(offset + length, change.offset + change.length)
            if first < end:
                if change.data == NULL:
                    memset(data + (first - offset), 0, end - first)
                else:
                    memcpy(data + (first - offset), change.data + (first - change.offset),
                           end - first)
            change = change.next
        return error

    # The cut: each change whole, lost or torn; how likely which is the seed's choice too. In order,
    # so that a sector ends as the newest version of it that was kept.
    cdef int keep_some(self, uint64_t seed) noexcept nogil:
        cdef uint64_t sector_bytes = SECTOR_BYTES_MIN
        cdef uint64_t whole_of_8 = mix(seed, 1) % 9
        cdef uint64_t dice
        cdef HeldChange *change = self.first
        cdef int error = 0
        if mix(seed, 0) & 1:
            sector_bytes = SECTOR_BYTES_MAX
        while change != NULL and error == 0:
            dice = mix(seed, change.number + 2)
            if change.is_durable or dice % 8 < whole_of_8:
                error = self.keep_sectors(change, 0, 0)
            elif dice & (1 << 20):
                error = self.keep_sectors(change, sector_bytes, dice)
            change = change.next
        return error

    # `sector_bytes` 0: all of it, else each sector by the dice.
    cdef int keep_sectors(self, const HeldChange *change, uint64_t sector_bytes,
                          uint64_t dice) noexcept nogil:
        cdef uint64_t unit = sector_bytes if sector_bytes else SECTOR_BYTES_MIN
        cdef uint64_t first = change.offset // unit * unit
        cdef uint64_t end = (change.offset + change.length + unit - 1) // unit * unit
        cdef uint64_t at = first
        cdef uint64_t piece
        cdef int error = 0
        end = min(end, self.size_bytes)
        while at < end and error == 0:
            piece = min(end - at, unit) if sector_bytes else end - at
            if sector_bytes == 0 or mix(dice, at // unit) & 1:
                error = self.write_version(at, piece, change.number, 0)
            at += piece
        return error

    cdef void forget_first(self) noexcept nogil:
        cdef HeldChange *gone = self.first
        self.first = gone.next
        if self.first == NULL:
            self.last = NULL
        self.held_count -= 1
        if gone.data != NULL:
            self.held_size_bytes -= gone.length
        free(gone.data)
        free(gone)
