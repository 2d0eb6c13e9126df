# Everything the engine's Cython calls in libc and the kernel that Cython's own libc/posix packages
# lack, in one place; and the atomics, which C11 offers only as builtins.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport mode_t, off_t

cdef extern from "<fcntl.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE
    int fallocate(int fd, int mode, off_t offset, off_t length)

cdef extern from "<unistd.h>" nogil:
    enum:
        SEEK_DATA
        SEEK_END
        SEEK_HOLE
    ssize_t pread(int fd, void *data, size_t count, off_t offset)
    ssize_t pwrite(int fd, const void *data, size_t count, off_t offset)
    ssize_t read(int fd, void *data, size_t count)
    ssize_t write(int fd, const void *data, size_t count)
    off_t lseek(int fd, off_t offset, int whence)
    int fdatasync(int fd)
    int usleep(unsigned int microseconds)
    int close(int fd)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_DONTNEED
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/fs.h>" nogil:
    enum:
        BLKZEROOUT

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLOUT
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sys/uio.h>" nogil:
    enum:
        RWF_NOWAIT
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *pieces, int count, off_t offset, int flags)

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    enum:
        CLOCK_MONOTONIC
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(clockid_t clock, timespec *now)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_PEEK
        MSG_NOSIGNAL
        MSG_WAITALL
        SHUT_RDWR
        SOL_SOCKET
        SO_RCVTIMEO
        SO_SNDTIMEO
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ssize_t recv(int fd, void *data, size_t count, int flags)
    ssize_t send(int fd, const void *data, size_t count, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int length)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t *found)

cdef extern from "<linux/magic.h>" nogil:
    enum:
        TMPFS_MAGIC
        RAMFS_MAGIC

cdef extern from "<endian.h>" nogil:
    uint32_t htobe32(uint32_t value)
    uint64_t htobe64(uint64_t value)
    uint16_t be16toh(uint16_t value)
    uint32_t be32toh(uint32_t value)
    uint64_t be64toh(uint64_t value)

cdef extern from "crc32c.h" nogil:
    void crc32c_init "trellis_crc32c_init"()
    uint32_t crc32c "trellis_crc32c"(uint32_t crc, const void *data, size_t size)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *cond, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *cond)
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
    int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock,
                               const timespec *until)
    int pthread_cond_signal(pthread_cond_t *cond)
    int pthread_cond_broadcast(pthread_cond_t *cond)

cdef extern from *:
    """
    #include <stdint.h>
    static inline int64_t trellis_atomic_add(int64_t *at, int64_t by) {
        return __atomic_add_fetch(at, by, __ATOMIC_SEQ_CST);
    }
    static inline int64_t trellis_atomic_load(int64_t *at) {
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);
    }
    static inline void trellis_atomic_store(int64_t *at, int64_t value) {
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
    }
    static inline int64_t trellis_atomic_or(int64_t *at, int64_t bits) {
        return __atomic_or_fetch(at, bits, __ATOMIC_SEQ_CST);
    }
    static inline int64_t trellis_atomic_and(int64_t *at, int64_t bits) {
        return __atomic_and_fetch(at, bits, __ATOMIC_SEQ_CST);
    }
    """
    # Each returns the value after the change; all are sequentially consistent.
    int64_t atomic_add "trellis_atomic_add"(int64_t *at, int64_t by) noexcept nogil
    int64_t atomic_load "trellis_atomic_load"(int64_t *at) noexcept nogil
    void atomic_store "trellis_atomic_store"(int64_t *at, int64_t value) noexcept nogil
    int64_t atomic_or "trellis_atomic_or"(int64_t *at, int64_t bits) noexcept nogil
    int64_t atomic_and "trellis_atomic_and"(int64_t *at, int64_t bits) noexcept nogil

cdef extern from *:
    """
    #include <errno.h>
    static inline void trellis_set_errno(int number) { errno = number; }
    """
    # Cython takes an assignment to `errno` for a variable of the function's own.
    void set_errno "trellis_set_errno"(int number) noexcept nogil

cdef extern from *:
    """
    #include <pthread.h>
    #include <string.h>
    #include <time.h>
    /* A condition variable on the monotonic clock, and a wait of at most `ms` milliseconds. */
    static inline void trellis_cond_init(pthread_cond_t *c)
    {
        pthread_condattr_t a;
        pthread_condattr_init(&a);
        pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
        pthread_cond_init(c, &a);
        pthread_condattr_destroy(&a);
    }
    static inline int trellis_cond_wait_ms(pthread_cond_t *c, pthread_mutex_t *m, long ms)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += ms / 1000;
        t.tv_nsec += (ms % 1000) * 1000000L;
        if (t.tv_nsec >= 1000000000L) { t.tv_sec++; t.tv_nsec -= 1000000000L; }
        return pthread_cond_timedwait(c, m, &t);
    }
    static inline int trellis_start_detached_thread(void *(*run)(void *), void *argument,
                                                    size_t stack_bytes)
    {
        pthread_t thread;
        pthread_attr_t a;
        int error = pthread_attr_init(&a);
        if (error) return error;
        pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&a, stack_bytes);
        error = pthread_create(&thread, &a, run, argument);
        pthread_attr_destroy(&a);
        return error;
    }
    static inline long trellis_now_ms(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000L + t.tv_nsec / 1000000L;
    }
    static inline int trellis_is_zero(const void *data, size_t size)
    {
        const unsigned char *p = (const unsigned char *)data;
        size_t head = size < 16 ? size : 16;
        for (size_t i = 0; i < head; i++)
            if (p[i]) return 0;
        return size <= 16 || memcmp(p, p + 16, size - 16) == 0;
    }
    """
    void cond_init "trellis_cond_init"(pthread_cond_t *c) noexcept nogil
    # At most `ms` milliseconds; 0 or ETIMEDOUT.
    int cond_wait_ms "trellis_cond_wait_ms"(
        pthread_cond_t *c, pthread_mutex_t *m, long ms) noexcept nogil
    # A thread that nobody joins, with a stack of `stack_bytes`. 0 or errno.
    int start_detached_thread "trellis_start_detached_thread"(
        void *(*run)(void *) noexcept nogil, void *argument, size_t stack_bytes) noexcept nogil
    long now_ms "trellis_now_ms"() noexcept nogil
    bint is_zero "trellis_is_zero"(const void *data, size_t size) noexcept nogil
