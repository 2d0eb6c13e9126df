# Long work on ranges of volumes: workers on chunks, progress, cancelling, the first error.
#
# A job has one or two sides, each a range of `total_bytes` of a volume. Workers take chunks in
# rising order; a subclass's run_chunk() does one. Offsets that jobs pass about ("at", "start")
# count from the ranges' begin. Chunks do not depend on each other: results are those of one worker.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Volume

cdef enum:
    CHUNK_BYTES = 1 << 20          # a worker takes so much at a time; no block is larger
    PIECE_BYTES = 1 << 17          # of one request; two of them fit a processor's own cache
    WORKERS_MAX = 64
    BUFFERS_BYTES_MAX = WORKERS_MAX * 2 * PIECE_BYTES    # 16 MiB a job
    WORKER_STACK_BYTES = 262144    # a layer may call Python when its bitmap fails
    STOPPED = -1                   # run_chunk() ended early, by cancel()
    LEFT = 0                       # the sides; a job with one has the left one
    RIGHT = 1

cdef enum Step:                    # what failed
    STEP_READ = 0
    STEP_WRITE = 1
    STEP_ZERO = 2
    STEP_FLUSH = 3
    STEP_EXTENT = 4
    STEP_DIGEST = 5
    STEP_BEGIN = 6                 # no memory for buffers

cdef struct Worker:
    void *job                      # BlockJob, borrowed: run() outlives its workers
    bint is_caller                 # works on the thread that called run()
    uint8_t *left                  # PIECE_BYTES each, page-aligned
    uint8_t *right
    void *own                      # the subclass's, between open_worker() and close_worker()

# What find_extent() was last told is data, of one side: volume offsets.
cdef struct DataRun:
    uint64_t start
    uint64_t end                   # not beyond `start`: none

cdef struct Failure:
    int error                      # 0: none
    int step
    int side
    uint64_t at


cdef class BlockJob:
    cdef readonly uint64_t total_bytes
    cdef readonly int threads
    cdef Volume left_volume
    cdef Volume right_volume       # None in a job with one side
    cdef void *volumes[2]          # the same, to be used without the GIL
    cdef uint64_t[2] offsets       # where the sides begin in their volumes
    cdef uint64_t skew             # chunks end where (at + skew) is a multiple of CHUNK_BYTES
    cdef int64_t next_chunk        # atomic
    cdef int64_t done              # atomic; bytes
    cdef int64_t read_count        # atomic; bytes read from volumes
    cdef int64_t is_cancelled      # atomic
    cdef int64_t is_failed         # atomic
    cdef bint is_begun
    cdef readonly bint is_complete    # run() has returned without an error
    cdef pthread_mutex_t asking    # guards the data runs; one asks a volume, for all workers
    cdef DataRun[2] data_runs
    cdef pthread_mutex_t mutex     # guards what follows
    cdef pthread_cond_t ended
    cdef bint is_ready             # mutexes and condition exist
    cdef int helpers               # threads beside the caller's
    cdef Failure failure           # of all that happened, the one of lowest `at`

    # For subclasses: sets the sides; raises ValueError when a range is not inside its volume.
    cdef object set_ranges(self, Volume left, object left_offset, Volume right,
                           object right_offset, object length, object threads)
    # To be overridden. Each returns 0 or what fail() returned, or STOPPED when should_stop().
    # close_worker() is called also where open_worker() failed or was not reached.
    cdef int open_worker(self, Worker *worker) noexcept nogil
    cdef void close_worker(self, Worker *worker) noexcept nogil
    cdef int run_chunk(self, Worker *worker, uint64_t start, uint64_t end) noexcept nogil
    cdef int finish(self) noexcept nogil        # on the caller's thread after the last chunk

    # For run_chunk(). `run` gets at most `length`; 0 or errno, on record already.
    cdef int find_extent(self, int side, uint64_t at, uint64_t length,
                         uint64_t *run, bint *is_hole) noexcept nogil
    cdef int read_side(self, int side, uint64_t at, uint64_t length, uint8_t *data) noexcept nogil
    cdef int run_side(self, int side, int op, int step, uint64_t at, uint64_t length,
                      uint8_t *data) noexcept nogil
    cdef void advance(self, uint64_t length) noexcept nogil
    cdef int fail(self, int error, int step, int side, uint64_t at) noexcept nogil
    cdef bint should_stop(self) noexcept nogil

    cdef void work(self, Worker *worker) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef void run_workers(self, Worker *workers) noexcept nogil
