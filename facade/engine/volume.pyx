"""The base of every layer: requests, the wait for their end, and the methods Python sees."""

import os
from errno import EINVAL as PY_EINVAL
from errno import EOPNOTSUPP as PY_EOPNOTSUPP

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOSYS

from facade.engine.syscalls cimport (
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_t,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)


cdef struct Waiter:
    pthread_mutex_t mutex
    pthread_cond_t ended
    bint done
    int error                # valid once done


cdef void wake_waiter(Io *io, int error) noexcept nogil:
    cdef Waiter *waiter = <Waiter *> io.owner
    pthread_mutex_lock(&waiter.mutex)
    waiter.error = error
    waiter.done = True
    pthread_cond_signal(&waiter.ended)
    pthread_mutex_unlock(&waiter.mutex)


cdef class Volume:
    """A range of bytes that can be read, written, zeroed, trimmed and flushed.

    The Python methods are for tests and control code: they check bounds, release the GIL and wait.
    All raise OSError with the volume's errno (EINVAL when the range is not inside the volume).
    """

    cdef int submit(self, Io *io) noexcept nogil:
        return ENOSYS

    cdef bint may_wait(self, const Io *io) noexcept nogil:
        return True

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        run_bytes[0] = length
        is_hole[0] = False
        return 0

    cdef int run(self, Io *io) noexcept nogil:
        cdef Waiter waiter
        cdef io_complete_t complete = io.complete
        cdef void *owner = io.owner
        cdef int error
        pthread_mutex_init(&waiter.mutex, NULL)
        pthread_cond_init(&waiter.ended, NULL)
        waiter.done = False
        waiter.error = 0
        io.complete = wake_waiter
        io.owner = &waiter
        io.flags &= ~IO_NOWAIT
        error = self.submit(io)
        if error == IO_PENDING:
            pthread_mutex_lock(&waiter.mutex)
            while not waiter.done:
                pthread_cond_wait(&waiter.ended, &waiter.mutex)
            error = waiter.error
            pthread_mutex_unlock(&waiter.mutex)
        pthread_cond_destroy(&waiter.ended)
        pthread_mutex_destroy(&waiter.mutex)
        io.complete = complete
        io.owner = owner
        return error

    def pread(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at byte `offset`."""
        check_range(self, offset, length)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        if length:
            run_or_raise(self, IO_READ, 0, offset, length, <uint8_t *> PyBytes_AS_STRING(data))
        return data

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview, fua: bool = False) -> None:
        """Write `data` at byte `offset`; with `fua` it is durable when this returns."""
        cdef const uint8_t[::1] view = data
        cdef uint64_t length = view.shape[0]
        check_range(self, offset, length)
        if length:
            run_or_raise(self, IO_WRITE, IO_FUA if fua else 0, offset, length,
                         <uint8_t *> &view[0])

    def zero(self, offset: int, length: int, fua: bool = False, no_hole: bool = False) -> None:
        """Make the range read as zeroes; with `no_hole` its space stays allocated."""
        check_range(self, offset, length)
        if length:
            run_or_raise(self, IO_ZERO, (IO_FUA if fua else 0) | (IO_NO_HOLE if no_hole else 0),
                         offset, length, NULL)

    def trim(self, offset: int, length: int, fua: bool = False) -> None:
        """Give the range's space back; it reads as zeroes afterwards."""
        check_range(self, offset, length)
        if length:
            run_or_raise(self, IO_TRIM, IO_FUA if fua else 0, offset, length, NULL)

    def flush(self) -> None:
        """Return once every write acknowledged before is durable."""
        run_or_raise(self, IO_FLUSH, 0, 0, 0, NULL)

    def lengthen(self, size_bytes: int | None) -> int:
        """Make what is behind the volume at least so long, durably; the volume does not see it yet.

        None: as long as it has become. Returns the size to go on with. A layer refuses: it comes
        off first. Raises OSError; then nothing has changed.
        """
        raise OSError(PY_EOPNOTSUPP, "a layer cannot be resized; disengage it first", self.name)

    def shorten(self, size_bytes: int) -> None:
        """Cut off, durably, what lies past this size, if anything does.

        Raises OSError; `lengthen(None)` says then whether it is cut off.
        """
        raise OSError(PY_EOPNOTSUPP, "a layer cannot be resized; disengage it first", self.name)

    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """Say where data is: `(offset, length, is_hole)` in order, neighbours never alike."""
        check_range(self, offset, length)
        cdef uint64_t at = offset
        cdef uint64_t end = at + <uint64_t> length
        cdef uint64_t run_bytes = 0
        cdef bint is_hole = False
        cdef int error
        found: list[tuple[int, int, bool]] = []
        while at < end:
            with nogil:
                error = self.extent(at, end - at, &run_bytes, &is_hole)
            if error:
                raise OSError(error, os.strerror(error), self.name)
            if found and found[-1][2] == is_hole:
                found[-1] = (found[-1][0], found[-1][1] + run_bytes, bool(is_hole))
            else:
                found.append((at, run_bytes, bool(is_hole)))
            at += run_bytes
        return found


cdef object check_range(Volume volume, offset, length):
    if offset < 0 or length < 0 or offset + length > volume.size_bytes:
        raise OSError(PY_EINVAL, f"range of {length} bytes at {offset} is outside the volume's "
                      f"{volume.size_bytes} bytes", volume.name)


cdef object run_or_raise(Volume volume, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length,
                         uint8_t *data):
    cdef Io io
    cdef int error
    io.op = op
    io.flags = flags
    io.offset = offset
    io.length = length
    io.data = data
    io.complete = wake_waiter
    io.owner = NULL
    with nogil:
        error = volume.run(&io)
    if error:
        raise OSError(error, os.strerror(error), volume.name)
