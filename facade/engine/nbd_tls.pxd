# TLS with NBD clients: the server's certificate, and the session with one client up to the point
# where its Transport serves the request loop.
from libc.stdint cimport int64_t

from facade.engine.nbd_transport cimport Transport
from facade.engine.openssl cimport SSL_CTX


cdef class TlsContext:
    cdef SSL_CTX *context


cdef class TlsSession:
    cdef Transport transport
    cdef TlsContext context            # kept alive

    # Wait for the socket to be readable until a moment of the monotonic clock. 1, 0 (too late), -1.
    cdef int await_input(self, int64_t until_ms) noexcept nogil
    # 0, or the errno of what went wrong; EPROTO: ask the error queue.
    cdef int accept(self, int64_t until_ms) noexcept nogil
