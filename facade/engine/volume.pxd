# The volume interface: every layer of a volume's stack is a Volume on a Volume.
#
# A request is an Io. submit() either finishes it at once and returns 0 or a positive errno, or
# returns IO_PENDING and io.complete(io, error) is called exactly once, from any thread. That call
# may come before submit() has returned, so after IO_PENDING the submitter touches nothing of the
# request that its own `complete` may have freed. Until the end io and io.data stay valid and
# unchanged. `complete` is never called for a request that submit() finished at once, must not
# block, and must not submit to the same VolumeStack.
# With IO_NOWAIT submit() may also return EAGAIN, having done nothing: the request would have had to
# wait for a disk, a link or another request. It is then to be submitted again without the flag, on
# a thread that may wait. The flag is a wish: a layer that cannot tell waits all the same.
# Bounds (offset + length <= size_bytes) are checked once, at the border (NBD server, Python
# methods); layers below trust them. A request of length 0 never gets this far.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum IoOp:
    IO_READ = 0
    IO_WRITE = 1
    IO_ZERO = 2      # reads back as zeroes; may punch a hole unless IO_NO_HOLE
    IO_TRIM = 3      # reads back as zeroes too, as every layer and both sides do
    IO_FLUSH = 4     # covers every write acknowledged before it was submitted, on any connection

cdef enum IoFlag:
    IO_FUA = 1       # durable before it is answered
    IO_NO_HOLE = 2   # IO_ZERO only: keep the space allocated
    IO_NOWAIT = 4    # answer EAGAIN rather than wait

cdef enum:
    IO_PENDING = -1

ctypedef void (*io_complete_t)(Io *io, int error) noexcept nogil

cdef struct Io:
    uint8_t op
    uint8_t flags
    uint64_t offset          # bytes
    uint64_t length          # bytes; 0 for IO_FLUSH
    uint8_t *data            # length bytes for IO_READ (filled) and IO_WRITE (source), else NULL
    io_complete_t complete   # never NULL at submit(); run() sets its own
    void *owner              # the submitter's own, untouched by layers

cdef class Volume:
    cdef readonly uint64_t size_bytes
    cdef readonly str name

    # 0 or errno when done, or IO_PENDING.
    cdef int submit(self, Io *io) noexcept nogil

    # Whether submit(io) with IO_NOWAIT would answer EAGAIN, as far as can be told beforehand: for
    # a layer that has to know before it does its own part of a write. True when in doubt.
    cdef bint may_wait(self, const Io *io) noexcept nogil

    # What the data at `offset` is: sets run_bytes (> 0, at most `length`) and is_hole (reads as
    # zeroes). 0 or errno. A layer that cannot know says data. length > 0.
    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil

    # submit() and wait for the end: for copiers, tests and control code. 0 or errno. Replaces
    # io.complete and io.owner while it runs, and takes IO_NOWAIT off.
    cdef int run(self, Io *io) noexcept nogil
