# Foreign C that Cython's own libc and posix declarations lack, fenced in one place.

from libc.stdint cimport uint32_t
from posix.time cimport timespec

cdef extern from "crc32c.h" nogil:
    void crc32c_init "trellis_crc32c_init" ()
    uint32_t crc32c "trellis_crc32c" (uint32_t crc, const void *data, size_t size)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int clock_id)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    ssize_t pread(int fd, void *buf, size_t n, long offset)
    ssize_t pwrite(int fd, const void *buf, size_t n, long offset)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t sock_send "send" (int fd, const void *buf, size_t n, int flags)
    ssize_t sock_recv "recv" (int fd, void *buf, size_t n, int flags)
    int sock_shutdown "shutdown" (int fd, int how)
    int MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_RDWR

cdef extern from "<endian.h>" nogil:
    unsigned short htobe16(unsigned short)
    unsigned int htobe32(unsigned int)
    unsigned long htobe64(unsigned long)
    unsigned short be16toh(unsigned short)
    unsigned int be32toh(unsigned int)
    unsigned long be64toh(unsigned long)

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>
    #include <errno.h>
    /* A condition variable on the monotonic clock, and a wait of at most `ms` milliseconds. */
    static void trellis_cond_init(pthread_cond_t *c)
    {
        pthread_condattr_t a;
        pthread_condattr_init(&a);
        pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
        pthread_cond_init(c, &a);
        pthread_condattr_destroy(&a);
    }
    static int trellis_cond_wait_ms(pthread_cond_t *c, pthread_mutex_t *m, long ms)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += ms / 1000;
        t.tv_nsec += (ms % 1000) * 1000000L;
        if (t.tv_nsec >= 1000000000L) { t.tv_sec++; t.tv_nsec -= 1000000000L; }
        return pthread_cond_timedwait(c, m, &t);
    }
    static long trellis_now_ms(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000L + t.tv_nsec / 1000000L;
    }
    static int trellis_is_zero(const void *data, size_t size)
    {
        const unsigned char *p = (const unsigned char *)data;
        size_t head = size < 16 ? size : 16;
        for (size_t i = 0; i < head; i++)
            if (p[i]) return 0;
        return size <= 16 || memcmp(p, p + 16, size - 16) == 0;
    }
    """
    void cond_init "trellis_cond_init" (pthread_cond_t *c) noexcept nogil
    int cond_wait_ms "trellis_cond_wait_ms" (pthread_cond_t *c, pthread_mutex_t *m, long ms) noexcept nogil
    long now_ms "trellis_now_ms" () noexcept nogil
    bint is_zero "trellis_is_zero" (const void *data, size_t size) noexcept nogil
