"""The backing file or block device of a volume, through the page cache."""

import array
import fcntl
import os
import stat
from errno import EBUSY as PY_EBUSY
from errno import EINVAL as PY_EINVAL
from errno import EIO as PY_EIO
from errno import EPERM as PY_EPERM
from errno import EWOULDBLOCK as PY_EWOULDBLOCK
from pathlib import Path

from libc.errno cimport (
    EAGAIN,
    EINTR,
    EINVAL,
    EIO,
    ENOSYS,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESHUTDOWN,
    errno,
)
from libc.stdint cimport uint8_t

from facade.engine.syscalls cimport (
    BLKZEROOUT,
    CLOCK_MONOTONIC,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    RAMFS_MAGIC,
    RWF_NOWAIT,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    TMPFS_MAGIC,
    atomic_add,
    atomic_load,
    atomic_store,
    clock_gettime,
    close,
    fallocate,
    fdatasync,
    fstatfs,
    ioctl,
    iovec,
    lseek,
    pread,
    preadv2,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pwrite,
    statfs_t,
    timespec,
)
from facade.engine.volume cimport (
    IO_FLUSH,
    IO_FUA,
    IO_NO_HOLE,
    IO_NOWAIT,
    IO_READ,
    IO_TRIM,
    IO_WRITE,
    IO_ZERO,
)

# ioctl(BLKGETSIZE64), which has no name in Python: _IOR(0x12, 114, size_t).
BLKGETSIZE64 = 0x80081272

cdef enum:
    ZERO_PIECE_BYTES = 262144    # zeroes are written in pieces of this size where that is needed
    DEVICE_ALIGN_BYTES = 4096    # block devices zero whole blocks; no logical block is larger
    NANOSECONDS_PER_S = 1000000000
    NANOSECONDS_PER_MS = 1000000


cdef extern from *:
    """
    /* Never written: untouched pages of it are all the kernel's one page of zeroes. */
    static unsigned char trellis_zeroes[262144];
    """
    const uint8_t *ZEROES "trellis_zeroes"


cdef inline bint is_unsupported(int error) noexcept nogil:
    return error == EOPNOTSUPP or error == ENOSYS or error == ENOTTY


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * NANOSECONDS_PER_S + now.tv_nsec


cdef class FileVolume(Volume):
    """Serves one image file or block device; its bytes are the volume's bytes.

    Holds an advisory lock (flock) on it, so that no second engine serves it for writing, while
    quiet volumes can be read by anyone. Flush is fdatasync; FUA is the write, then the same. Once
    a flush has failed, every request is answered with EIO until the volume is opened anew: the
    kernel drops what it could not write, so a later success would be a lie.
    """

    def __cinit__(self) -> None:
        self.fd = -1
        self.turn.running = False
        self.turn.begun = 0
        self.turn.done = 0
        self.failed_state = 0
        pthread_mutex_init(&self.turn.mutex, NULL)
        pthread_cond_init(&self.turn.ended, NULL)
        self.turn_ready = True

    def __init__(self, path: Path | str, name: str = "", read_only: bool = False) -> None:
        """Open and lock `path`.

        Raises OSError: EBUSY when another process serves it (or a device is mounted), EINVAL when
        it is neither file nor block device, else what open(2) says.
        """
        self.path = str(path)
        self.name = name or Path(path).name
        self.read_only = read_only
        self.is_device = stat.S_ISBLK(os.stat(self.path).st_mode)
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        if self.is_device and not read_only:
            flags |= os.O_EXCL
        self.fd = os.open(self.path, flags)
        try:
            lock_file(self.fd, self.path, read_only)
            self.size_bytes = measure_size(self.fd, self.path, self.is_device)
            self.punch_state = not read_only and can_punch_holes(self)
            self.zero_range_state = not read_only
            self.is_in_memory = not self.is_device and lies_in_memory(self.fd)
            self.refuses_nowait = self.is_in_memory
        except BaseException:
            self.close()
            raise

    def __dealloc__(self) -> None:
        if self.fd >= 0:
            close(self.fd)
        if self.turn_ready:
            pthread_cond_destroy(&self.turn.ended)
            pthread_mutex_destroy(&self.turn.mutex)

    @property
    def failed(self) -> bool:
        """Whether a flush has failed; then every request answers EIO."""
        return atomic_load(&self.failed_state) != 0

    @property
    def can_punch(self) -> bool:
        """Whether holes can be punched: then a trim is worth advertising."""
        return atomic_load(&self.punch_state) != 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def close(self) -> None:
        """Give up file and lock. No request may be in flight (VolumeStack.close sees to that).

        Does not flush. Closing again does nothing.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def lengthen(self, size_bytes: int | None) -> int:
        """Make the file at least so long; what is added is a hole. None only measures.

        Raises OSError: EINVAL when a device has another size, EPERM when read-only, EIO when the
        volume has failed, else the system's reason.
        """
        found = measure_size(self.fd, self.path, self.is_device)
        if size_bytes is None:
            return found
        if self.failed:
            raise OSError(PY_EIO, "a flush has failed; open the volume anew", self.path)
        if self.is_device and size_bytes != found:
            raise OSError(PY_EINVAL, f"the device has {found} bytes, which is not changed here",
                          self.path)
        if self.read_only and size_bytes != found:
            raise OSError(PY_EPERM, "the volume is read-only", self.path)
        if size_bytes > found:
            set_length(self, size_bytes, found)
        return size_bytes

    def shorten(self, size_bytes: int) -> None:
        """Cut off what the file has past this size; a device has what it has.

        Raises OSError; then it is cut off only if `lengthen(None)` says so.
        """
        found = measure_size(self.fd, self.path, self.is_device)
        if size_bytes < found and not self.is_device and not self.read_only:
            # What cannot be written is told before anything is given up, not after.
            self.flush()
            set_length(self, size_bytes, None)

    cdef int submit(self, Io *io) noexcept nogil:
        cdef int error
        if self.fd < 0:
            return ESHUTDOWN
        if atomic_load(&self.failed_state):
            return EIO
        if io.op == IO_READ:
            if io.flags & IO_NOWAIT:
                return self.read_cached(io)
            return self.read_all(io)
        if self.read_only:
            return 0 if io.op == IO_FLUSH else EPERM
        if io.flags & IO_NOWAIT and self.may_wait(io):
            return EAGAIN
        if io.op == IO_WRITE:
            error = self.write_timed(io)
        elif io.op == IO_ZERO:
            error = self.zero_range(io.offset, io.length, io.flags & IO_NO_HOLE)
        elif io.op == IO_TRIM:
            error = self.zero_range(io.offset, io.length, False)
        elif io.op == IO_FLUSH:
            return self.make_durable()
        else:
            return EINVAL
        if error == 0 and io.flags & IO_FUA:
            error = self.make_durable()
        return error

    cdef int extent(self, uint64_t offset, uint64_t length, uint64_t *run_bytes,
                    bint *is_hole) noexcept nogil:
        cdef int64_t found
        run_bytes[0] = length
        is_hole[0] = False
        if self.fd < 0:
            return ESHUTDOWN
        if self.is_device:
            return 0
        found = lseek(self.fd, offset, SEEK_DATA)
        if found < 0 and errno != ENXIO:
            return 0 if errno == EINVAL else errno
        if found < 0:
            # No data up to the file's end; but what it has lost since it was opened is no hole.
            found = lseek(self.fd, 0, SEEK_END)
            if found <= <int64_t> offset:
                return EIO
            is_hole[0] = True
            run_bytes[0] = min(length, <uint64_t> found - offset)
        elif <uint64_t> found >= offset + length:
            is_hole[0] = True
        elif <uint64_t> found > offset:
            is_hole[0] = True
            run_bytes[0] = <uint64_t> found - offset
        else:
            found = lseek(self.fd, offset, SEEK_HOLE)
            if found > <int64_t> offset and <uint64_t> found < offset + length:
                run_bytes[0] = <uint64_t> found - offset
        return 0

    cdef int read_all(self, Io *io) noexcept nogil:
        cdef uint64_t done = 0
        cdef ssize_t count
        while done < io.length:
            count = pread(self.fd, io.data + done, io.length - done, io.offset + done)
            if count > 0:
                done += count
            elif count == 0:
                return EIO      # the file was made shorter behind our back
            elif errno != EINTR:
                return errno
        return 0

    cdef bint may_wait(self, const Io *io) noexcept nogil:
        if io.length > INLINE_BYTES_MAX:
            return True
        if self.is_in_memory:
            return False
        if io.op == IO_WRITE:
            return io.flags & IO_FUA or now_ns() < atomic_load(&self.slow_until_ns)
        return True

    cdef int read_cached(self, Io *io) noexcept nogil:
        cdef iovec piece
        cdef ssize_t count
        if io.length > INLINE_BYTES_MAX:
            return EAGAIN
        if atomic_load(&self.refuses_nowait):
            return self.read_all(io) if self.is_in_memory else EAGAIN
        if (atomic_load(&self.cold_reads) >= COLD_READS_MIN
                and atomic_add(&self.cold_reads, 1) % COLD_PROBE):
            return EAGAIN
        piece.iov_base = io.data
        piece.iov_len = io.length
        count = preadv2(self.fd, &piece, 1, io.offset, RWF_NOWAIT)
        if count == <ssize_t> io.length:
            if atomic_load(&self.cold_reads):
                atomic_store(&self.cold_reads, 0)
            return 0
        atomic_add(&self.cold_reads, 1)
        if count < 0 and errno == EOPNOTSUPP:
            atomic_store(&self.refuses_nowait, 1)
        # Some of it, none, or an error: whoever may wait reads it all and says which.
        return EAGAIN

    # A write into the page cache, whose time tells whether the next one may be made to wait.
    cdef int write_timed(self, Io *io) noexcept nogil:
        cdef int64_t begun_ns
        cdef int64_t ended_ns
        cdef int error
        if self.is_in_memory or io.length > INLINE_BYTES_MAX:
            return self.write_all(io.data, io.length, io.offset)
        begun_ns = now_ns()
        error = self.write_all(io.data, io.length, io.offset)
        ended_ns = now_ns()
        if ended_ns - begun_ns > SLOW_WRITE_NS:
            atomic_store(&self.slow_until_ns, ended_ns + SLOW_MS * NANOSECONDS_PER_MS)
        return error

    cdef int write_all(self, const void *data, uint64_t length, uint64_t offset) noexcept nogil:
        cdef uint64_t done = 0
        cdef ssize_t count
        while done < length:
            count = pwrite(self.fd, <const uint8_t *> data + done, length - done, offset + done)
            if count > 0:
                done += count
            elif count == 0:
                return EIO
            elif errno != EINTR:
                return errno
        return 0

    # On a device the unaligned ends are written and only whole blocks are left to the kernel.
    cdef int zero_range(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil:
        cdef uint64_t end = offset + length
        cdef uint64_t first = offset
        cdef uint64_t last = end
        cdef int error
        if self.is_device:
            first = (offset + DEVICE_ALIGN_BYTES - 1) // DEVICE_ALIGN_BYTES * DEVICE_ALIGN_BYTES
            last = end // DEVICE_ALIGN_BYTES * DEVICE_ALIGN_BYTES
            if first >= last:
                return self.write_zeroes(offset, length)
            error = self.write_zeroes(offset, first - offset)
            if error:
                return error
            error = self.write_zeroes(last, end - last)
            if error:
                return error
        error = self.zero_fast(first, last - first, keep)
        if is_unsupported(error) or error == EINVAL:
            error = self.write_zeroes(first, last - first)
        return error

    # The fastest way this file or device knows; EOPNOTSUPP when it knows none.
    cdef int zero_fast(self, uint64_t offset, uint64_t length, bint keep) noexcept nogil:
        cdef uint64_t[2] device_range
        cdef int error
        if not keep and atomic_load(&self.punch_state):
            error = allocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
            if not is_unsupported(error):
                return error
            atomic_store(&self.punch_state, 0)
        if atomic_load(&self.zero_range_state):
            if self.is_device:
                device_range[0] = offset
                device_range[1] = length
                error = 0 if ioctl(self.fd, BLKZEROOUT, device_range) == 0 else errno
            else:
                error = allocate(self.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset,
                                 length)
            if not is_unsupported(error):
                return error
            atomic_store(&self.zero_range_state, 0)
        return EOPNOTSUPP

    cdef int write_zeroes(self, uint64_t offset, uint64_t length) noexcept nogil:
        cdef uint64_t done = 0
        cdef uint64_t piece
        cdef int error
        while done < length:
            piece = min(length - done, <uint64_t> ZERO_PIECE_BYTES)
            error = self.write_all(ZEROES, piece, offset + done)
            if error:
                return error
            done += piece
        return 0

    # A call is covered by the first fdatasync that begins after it, whoever runs that.
    cdef int make_durable(self) noexcept nogil:
        cdef uint64_t wanted
        cdef uint64_t mine
        cdef int error
        pthread_mutex_lock(&self.turn.mutex)
        wanted = self.turn.begun + 1
        while self.turn.done < wanted and not atomic_load(&self.failed_state):
            if self.turn.running:
                pthread_cond_wait(&self.turn.ended, &self.turn.mutex)
                continue
            self.turn.running = True
            self.turn.begun += 1
            mine = self.turn.begun
            pthread_mutex_unlock(&self.turn.mutex)
            error = 0
            while fdatasync(self.fd) != 0:
                error = errno
                if error != EINTR:
                    break
                error = 0
            pthread_mutex_lock(&self.turn.mutex)
            self.turn.running = False
            self.turn.done = mine
            if error:
                atomic_store(&self.failed_state, 1)
            pthread_cond_broadcast(&self.turn.ended)
        error = EIO if atomic_load(&self.failed_state) else 0
        pthread_mutex_unlock(&self.turn.mutex)
        return error


cdef int allocate(int fd, int mode, uint64_t offset, uint64_t length) noexcept nogil:
    while fallocate(fd, mode, offset, length) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef object lock_file(int fd, str path, bint shared):
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != PY_EWOULDBLOCK:
            raise
        raise OSError(PY_EBUSY, "served by another engine already (it holds the file's lock); end "
                      "that one or choose another file", path) from None


cdef object measure_size(int fd, str path, bint is_device):
    if is_device:
        size = array.array("Q", [0])
        fcntl.ioctl(fd, BLKGETSIZE64, size)
        return size[0]
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(PY_EINVAL, "neither a file nor a block device", path)
    return status.st_size


# Durable, or (with `before`) back at what it was. The volume's own flush: it also tells of data
# that could not be written, and nobody else would hear of that again.
cdef object set_length(FileVolume volume, size_bytes, before):
    try:
        os.ftruncate(volume.fd, size_bytes)
        volume.flush()
    except OSError:
        if before is not None:
            os.ftruncate(volume.fd, before)
        raise


cdef object lies_in_memory(int fd):
    cdef statfs_t found
    if fstatfs(fd, &found) != 0:
        return False
    return found.f_type == TMPFS_MAGIC or found.f_type == RAMFS_MAGIC


cdef object can_punch_holes(FileVolume volume):
    if volume.is_device:
        device = os.fstat(volume.fd).st_rdev
        queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
        if not queue.is_dir():     # a partition has its disk's queue
            queue = queue.parent.resolve().parent / "queue"
        try:
            return int((queue / "write_zeroes_max_bytes").read_text()) > 0
        except (OSError, ValueError):
            return False
    # Past the end of the file there is nothing to punch: this only asks whether it could be done.
    return allocate(volume.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (volume.size_bytes + 4095) // 4096 * 4096, 4096) == 0
