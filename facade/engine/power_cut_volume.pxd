# A backing whose power can be cut: what is not flushed is held apart from the volume below.
#
# Reads see what is held. A flush hands down everything that was acknowledged before it; FUA hands
# down its own write, rounded to whole sectors, and nothing else. At the cut every sector that was
# changed since becomes one of the contents that it has had since the last flush (a FUA write to it
# is the oldest that may come): so writes are lost, reordered and torn, as a disk's cache and the
# page cache do it, but no sector is half of two writes.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from facade.engine.syscalls cimport pthread_mutex_t
from facade.engine.volume cimport Io, Volume

cdef enum:
    SECTOR_BYTES_MIN = 512           # never torn
    SECTOR_BYTES_MAX = 4096
    HELD_BYTES_MAX = 67108864        # of data, in memory; past it all goes down, unflushed
    HELD_CHANGES_MAX = 16384         # likewise; a read looks at each of them
    PIECE_BYTES = 1048576            # handed down at a time
    EXIT_STATUS = 77                 # of a process that ends with its power

cdef enum PowerState:
    POWER_ON = 0
    POWER_GOING = 1                  # requests fail, and volumes lose their part one by one
    POWER_GONE = 2

# A write or zero that was acknowledged and may be lost.
cdef struct HeldChange:
    uint64_t number                  # rises from 1 in the order of acceptance
    uint64_t offset                  # bytes
    uint64_t length
    uint8_t *data                    # NULL: zeroes
    bint is_durable                  # FUA: it is below already and cannot be lost
    HeldChange *next


# What the backings of one host hang on: they lose power together.
cdef class PowerSupply:
    cdef readonly list volumes
    cdef readonly uint64_t seed
    cdef readonly bint exits         # the process ends at the cut
    cdef unsigned int flush_delay_us
    cdef int64_t change_count        # atomic; writes, zeroes, trims, flushes of all its volumes
    cdef int64_t cut_at              # atomic; the change at which power is cut; 0: only by cut()
    cdef int64_t off_state           # atomic; a PowerState
    cdef object cut_lock             # one cut()

    cdef bint is_the_moment(self) noexcept nogil
    cdef void cut_now(self) noexcept nogil


cdef class PowerCutVolume(Volume):
    cdef readonly Volume lower
    cdef readonly PowerSupply supply
    cdef pthread_mutex_t mutex       # guards what follows; held during requests below
    cdef bint is_ready               # the mutex exists
    cdef HeldChange *first
    cdef HeldChange *last
    cdef uint64_t number             # of the last change
    cdef uint64_t held_count
    cdef uint64_t held_size_bytes

    # All under the mutex. 0 or errno.
    cdef int hold_change(self, const Io *io) noexcept nogil
    cdef int pass_down(self, uint64_t up_to) noexcept nogil
    cdef int write_version(self, uint64_t offset, uint64_t length, uint64_t number,
                           uint8_t flags) noexcept nogil
    cdef int read_version(self, uint64_t offset, uint64_t length, uint64_t number,
                          uint8_t *data) noexcept nogil
    cdef int keep_some(self, uint64_t seed) noexcept nogil
    cdef int keep_sectors(self, const HeldChange *change, uint64_t sector_bytes,
                          uint64_t dice) noexcept nogil
    cdef void forget_first(self) noexcept nogil
    # Without it.
    cdef int flush_held(self) noexcept nogil
    cdef int change_held(self, Io *io) noexcept nogil
