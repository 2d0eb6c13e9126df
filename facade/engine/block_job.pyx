"""What all jobs on ranges of volumes have in common. Guarantees: docs/blocks.md."""

import os

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.stdlib cimport posix_memalign

from facade.engine.syscalls cimport (
    atomic_add,
    atomic_load,
    atomic_store,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    start_detached_thread,
)
from facade.engine.volume cimport IO_READ, Io, Volume

from facade.errors import BlockIoFailed, BlockJobCancelled

cdef enum:
    BUFFER_ALIGN_BYTES = 4096

STEP_NAMES = ("read", "write", "zero", "flush", "extents", "digest", "buffers")


# The job is borrowed: run() returns only after it has seen the last helper go.
cdef void *helper_thread(void *argument) noexcept nogil:
    cdef Worker *worker = <Worker *> argument
    cdef void *job = worker.job
    (<BlockJob> job).work(worker)
    (<BlockJob> job).leave()
    return NULL


cdef class BlockJob:
    """Work on one or two ranges of volumes by several threads. Made by its subclasses only.

    `run` works and waits on the caller's thread; everything else may be called from any thread
    meanwhile. A job runs once. The volumes may be any layers and stay open until `run` returns.
    """

    def __cinit__(self) -> None:
        pthread_mutex_init(&self.asking, NULL)
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.ended, NULL)
        self.is_ready = True

    def __dealloc__(self) -> None:
        if self.is_ready:
            pthread_cond_destroy(&self.ended)
            pthread_mutex_destroy(&self.mutex)
            pthread_mutex_destroy(&self.asking)

    @property
    def done_bytes(self) -> int:
        """How far it is, holes included; never falls, and is total_bytes at a good end."""
        return atomic_load(&self.done)

    @property
    def read_bytes(self) -> int:
        """How much was read from volumes, of both sides together; holes are not read."""
        return atomic_load(&self.read_count)

    @property
    def progress(self) -> dict[str, int]:
        """`done_bytes` and `total_bytes`, for a progress bar."""
        return {"done_bytes": self.done_bytes, "total_bytes": self.total_bytes}

    def cancel(self) -> None:
        """Have `run` end early: no request begins after this, those in flight are waited for."""
        atomic_store(&self.is_cancelled, 1)

    def run(self) -> None:
        """Do the work; return when all of it is done.

        Raises BlockIoFailed with the failure of lowest offset (requests in flight have ended, no
        further ones begin, the volumes are as usable as before), BlockJobCancelled, and
        RuntimeError when the job has run already.
        """
        if self.is_begun:
            raise RuntimeError("a job runs once; make a new one")
        self.is_begun = True
        cdef Worker *workers = <Worker *> calloc(self.threads, sizeof(Worker))
        if workers == NULL:
            raise MemoryError
        with nogil:
            self.run_workers(workers)
            free(workers)
        if self.failure.error:
            raise_failure(self)
        if <uint64_t> atomic_load(&self.done) < self.total_bytes:
            raise BlockJobCancelled(done_bytes=self.done_bytes, total_bytes=self.total_bytes)
        self.is_complete = True

    cdef object set_ranges(self, Volume left, object left_offset, Volume right,
                           object right_offset, object length, object threads):
        if length is None:
            length = left.size_bytes - left_offset
        check_inside(left, left_offset, length)
        if right is not None:
            check_inside(right, right_offset, length)
        if threads is None:
            threads = min(len(os.sched_getaffinity(0)), WORKERS_MAX)
        if not 1 <= threads <= WORKERS_MAX:
            raise ValueError(f"threads is {threads}: 1 to {WORKERS_MAX}")
        self.left_volume = left
        self.right_volume = right
        self.volumes[LEFT] = <void *> left
        self.volumes[RIGHT] = <void *> right
        self.offsets[LEFT] = left_offset
        self.offsets[RIGHT] = right_offset
        self.total_bytes = length
        # A thread without a chunk would be for nothing; one chunk more for a first short one.
        self.threads = min(threads, length // CHUNK_BYTES + 1)

    cdef int open_worker(self, Worker *worker) noexcept nogil:
        return 0

    cdef void close_worker(self, Worker *worker) noexcept nogil:
        pass

    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil:
        self.advance(end - start)
        return 0

    cdef int finish(self) noexcept nogil:
        return 0

    # A hole is asked about anew for each chunk, for a write may have filled it since; what was data
    # is read in any case. Finding the end of a long run of data takes long in some file systems
    # (tmpfs looks at every page), so one worker does it for all.
    cdef int find_extent(self, int side, uint64_t at, uint64_t length,
                         uint64_t *run, bint *is_hole) noexcept nogil:
        cdef uint64_t offset = self.offsets[side] + at
        cdef DataRun *known = &self.data_runs[side]
        cdef uint64_t found = 0
        cdef int error = 0
        is_hole[0] = False
        pthread_mutex_lock(&self.asking)
        if known.start <= offset < known.end:
            found = known.end - offset
        else:
            error = (<Volume> self.volumes[side]).extent(offset, self.total_bytes - at, &found,
                                                         is_hole)
            if error == 0 and not is_hole[0]:
                known.start = offset
                known.end = offset + found
        pthread_mutex_unlock(&self.asking)
        run[0] = min(found, length)
        return self.fail(error, STEP_EXTENT, side, at) if error else 0

    cdef int read_side(self, int side, uint64_t at, uint64_t length, uint8_t *data) noexcept nogil:
        cdef int error = self.run_side(side, IO_READ, STEP_READ, at, length, data)
        if error == 0:
            atomic_add(&self.read_count, length)
        return error

    cdef int run_side(self, int side, int op, int step, uint64_t at, uint64_t length,
                      uint8_t *data) noexcept nogil:
        cdef Io io
        cdef int error
        io.op = op
        io.flags = 0
        io.offset = self.offsets[side] + at if length else 0
        io.length = length
        io.data = data
        io.complete = NULL
        io.owner = NULL
        error = (<Volume> self.volumes[side]).run(&io)
        return self.fail(error, step, side, at) if error else 0

    cdef void advance(self, uint64_t length) noexcept nogil:
        atomic_add(&self.done, length)

    # Chunks are taken in rising order and finished unless the job is cancelled, so the failure of
    # lowest offset is the same however many threads there are.
    cdef int fail(self, int error, int step, int side, uint64_t at) noexcept nogil:
        pthread_mutex_lock(&self.mutex)
        if self.failure.error == 0 or at < self.failure.at:
            self.failure.error = error
            self.failure.step = step
            self.failure.side = side
            self.failure.at = at
        pthread_mutex_unlock(&self.mutex)
        atomic_store(&self.is_failed, 1)
        return error

    cdef bint should_stop(self) noexcept nogil:
        return atomic_load(&self.is_cancelled) != 0

    cdef void work(self, Worker *worker) noexcept nogil:
        cdef int64_t number
        cdef uint64_t start
        cdef uint64_t end
        cdef int error = open_buffers(worker)
        if error == 0:
            error = self.open_worker(worker)
        # Where a helper cannot begin the others do its share.
        if error and worker.is_caller:
            self.fail(error, STEP_BEGIN, LEFT, 0)
        while error == 0 and not atomic_load(&self.is_failed) and not self.should_stop():
            number = atomic_add(&self.next_chunk, 1) - 1
            start = <uint64_t> number * CHUNK_BYTES
            end = start + CHUNK_BYTES - self.skew
            start = start - self.skew if start > self.skew else 0
            if start >= self.total_bytes:
                break
            error = self.run_chunk(worker, start, min(end, self.total_bytes))
        self.close_worker(worker)
        free(worker.left)
        free(worker.right)

    cdef void leave(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)
        self.helpers -= 1
        if self.helpers == 0:
            pthread_cond_signal(&self.ended)
        pthread_mutex_unlock(&self.mutex)

    # The caller's thread is the first worker; where no helper can be started it is the only one.
    cdef void run_workers(self, Worker *workers) noexcept nogil:
        cdef int number
        for number in range(self.threads):
            workers[number].job = <void *> self
            workers[number].is_caller = number == 0
        for number in range(1, self.threads):
            pthread_mutex_lock(&self.mutex)
            self.helpers += 1
            pthread_mutex_unlock(&self.mutex)
            if start_detached_thread(helper_thread, &workers[number], WORKER_STACK_BYTES):
                self.leave()
                break
        self.work(&workers[0])
        pthread_mutex_lock(&self.mutex)
        while self.helpers:
            pthread_cond_wait(&self.ended, &self.mutex)
        pthread_mutex_unlock(&self.mutex)
        if self.failure.error == 0 and <uint64_t> atomic_load(&self.done) == self.total_bytes:
            self.finish()


cdef int open_buffers(Worker *worker) noexcept nogil:
    cdef void *buffer = NULL
    if posix_memalign(&buffer, BUFFER_ALIGN_BYTES, PIECE_BYTES):
        return ENOMEM
    worker.left = <uint8_t *> buffer
    if posix_memalign(&buffer, BUFFER_ALIGN_BYTES, PIECE_BYTES):
        return ENOMEM
    worker.right = <uint8_t *> buffer
    return 0


cdef object check_inside(Volume volume, object offset, object length):
    if offset < 0 or length < 0 or offset + length > volume.size_bytes:
        raise ValueError(f"range of {length} bytes at {offset} is outside the "
                         f"{volume.size_bytes} bytes of {volume.name}; name a length that fits")


cdef object raise_failure(BlockJob job):
    cdef Volume volume = job.right_volume if job.failure.side == RIGHT else job.left_volume
    raise BlockIoFailed(
        volume=volume.name,
        operation=STEP_NAMES[job.failure.step],
        offset_bytes=job.offsets[job.failure.side] + job.failure.at,
        errno=job.failure.error,
        reason=os.strerror(job.failure.error),
    )
