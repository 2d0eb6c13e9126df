# The moving parts of one NBD connection: its requests, buffers, and the waiting for its socket.
# What the requests mean is nbd_transmission's.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from facade.engine.nbd_buffers cimport BufferPool, Chunk
from facade.engine.nbd_outbox cimport Outbox, Pace, Queue, Request
from facade.engine.nbd_tls cimport TlsSession
from facade.engine.nbd_transport cimport Transport

cdef enum:
    INLINE_BYTES_MAX = 65536      # a larger write is received straight into a chunk of its own
    IDLE_RELEASE_S = 2            # a connection that was silent for so long holds no buffers

# Whether to go on serving the connection.
cdef enum Step:
    GO_ON
    CLIENT_LEFT              # it said so, or closed its end between two requests
    CLIENT_BROKE_RULES
    CONNECTION_LOST


cdef class Connection:
    cdef int fd
    cdef Outbox outbox
    cdef TlsSession session              # TLS with the client, or None; has what comes next
    cdef Transport *transport            # NULL without TLS
    cdef bint outbox_ready
    cdef bint is_structured              # the client understands chunks
    cdef bint is_extended                # ... and has them with extended headers
    cdef size_t request_bytes            # of a request's header
    cdef size_t read_head_bytes          # of the head before the data of a read
    cdef BufferPool pool
    cdef Queue batch                     # answered, not yet handed to the outbox
    cdef uint64_t batch_bytes
    cdef int64_t submitted               # requests that were IO_PENDING, ever
    cdef Request *requests_at            # memory of REQUESTS_MAX of them; NULL until the first
    cdef int begun_requests              # of these, how many were ever used since it was clean
    cdef Request *free_requests
    cdef int used_requests
    cdef Chunk *input                    # what was received; NULL until the first receive
    cdef size_t input_start              # first byte not yet taken
    cdef size_t input_end
    cdef Chunk *output                   # data of small reads, or NULL
    cdef size_t output_end
    cdef Pace pace                       # of the request that is arriving
    cdef bint is_timed                   # recv() wakes up after IDLE_RELEASE_S
    cdef int spin_misses                 # waits in a row for which asking again was in vain
    cdef int spin_rest                   # waits left that sleep at once
    cdef bint is_draining                # no more requests are taken

    # A request that is not in use, waiting for one if need be; NULL: the connection cannot go on.
    cdef Request *new_request(self) noexcept nogil
    # A chunk with one user, likewise.
    cdef Chunk *new_chunk(self, size_t size_bytes) noexcept nogil
    # Set io.data of a read; False: the connection cannot go on.
    cdef bint give_read_buffer(self, Request *request) noexcept nogil
    # Wait for a request to be answered, or for memory of a size.
    cdef Step wait_for_room(self, size_t wanted_bytes) noexcept nogil
    # Hand the batch to the outbox and take back what has been sent.
    cdef Step send_batch(self) noexcept nogil
    # The same, and send what others left in the outbox.
    cdef Step flush_outbox(self) noexcept nogil
    cdef void reclaim(self) noexcept nogil
    # Receive into the input, at most `most` bytes.
    cdef Step fill_input(self, size_t most) noexcept nogil
    cdef bint make_input_room(self) noexcept nogil
    # Bytes received, 0 when the client has closed its end, -1 when the connection is lost.
    # `is_within`: in the middle of a request, where the client has only so much time.
    # `is_whole`: nothing less than all of it is of use.
    cdef ssize_t receive(self, uint8_t *data, size_t room, bint is_within,
                         bint is_whole) noexcept nogil
    # Likewise without sleeping; -1 with EAGAIN when nothing came.
    cdef ssize_t receive_soon(self, uint8_t *data, size_t room) noexcept nogil
    cdef void set_timed(self, bint is_timed) noexcept nogil
    cdef void release_idle(self) noexcept nogil
    # Wait until nothing is in flight and every reply is sent, or cannot be.
    cdef void drain(self) noexcept nogil
    # Submit the next piece of every long request whose last one has ended; a subclass's own.
    cdef void go_on_with_long(self) noexcept nogil

# The monotonic clock.
cdef int64_t now_ns() noexcept nogil
