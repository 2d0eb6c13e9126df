# Replies of one NBD connection on their way to the client.
#
# A request that is done goes into the queue; whoever puts one there and finds nobody sending, sends
# what is queued. The connection's own thread may wait for the client while it sends. A thread that
# completes a pending request must not (it serves other volumes too): what the socket does not take
# at once stays queued, and the connection's thread is woken to send it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from facade.engine.io_pool cimport PoolItem
from facade.engine.nbd_buffers cimport Chunk
from facade.engine.nbd_transport cimport Transport, wire_is_unsent
from facade.engine.nbd_wire cimport NBD_HEAD_BYTES_MAX, NBD_READ_HEAD_BYTES_MAX
from facade.engine.syscalls cimport iovec, pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io

cdef enum:
    REQUESTS_MAX = 128            # in flight on one connection; past it, it is not read from
    SEND_TICK_S = 2               # how long one system call waits for the client
    CLIENT_TIMEOUT_MS = 60000     # in so long, what a client is in the middle of has to end, or
    PACE_BYTES_MIN = 262144       # so much of it to have come or gone; else it is given up
    READ_RUNS_MAX = 32            # of data and holes told apart in one read; the rest is data

# The reply to a read that met holes: heads and data in the order in which they are sent.
cdef struct Layout:
    int runs
    uint64_t data_start           # where the volume is read, from the first data to the last
    uint64_t data_end             # not after data_start: there is no data
    int count
    iovec[2 * READ_RUNS_MAX] pieces
    uint64_t bytes                # of all pieces
    uint8_t *last_head            # of the last chunk, which carries the DONE flag
    size_t head_bytes             # of heads in use
    uint8_t[READ_RUNS_MAX * NBD_READ_HEAD_BYTES_MAX] heads

cdef struct Request:
    Io io
    Outbox *outbox
    uint64_t cookie               # as the client sent it, never converted
    uint64_t offset               # as the client sent it; io's may be another
    uint64_t left_bytes           # of a long request, after io: what further pieces are to do
    bint wants_flush              # ... and after the last of them a flush
    bint is_structured            # the client understands chunks
    bint is_extended              # ... and has them with extended headers
    bint is_read                  # a reply without error carries data
    bint head_room                # io.data has room for the head right before it
    bint is_laid_out              # the reply is the layout's
    const char *why               # what was wrong with the request, or NULL
    uint8_t[NBD_HEAD_BYTES_MAX] head       # what follows is valid once answered
    uint32_t head_bytes           # in `head`, or right before the body where there is room
    uint8_t *body                 # follows the head
    uint64_t body_bytes
    uint64_t sent_bytes           # of head and body
    Chunk *payload                # holds the data of a write, or NULL
    Chunk *reply                  # holds the data of a read, or NULL
    Layout *layout                # of a read that met holes, or NULL
    uint16_t flags                # of a block status, as the client sent them
    uint32_t contexts             # of a block status: bit n asks for context n + 1
    void *transmission            # of a block status: who tells it
    PoolItem item                 # of a block status: its place in the pool's queue
    Request *next

# How fast a client sends the request, or takes the reply, that it is in the middle of.
cdef struct Pace:
    long since_ms                 # of now_ms(); 0: it is in the middle of nothing
    uint64_t bytes                # since then

# Note what has come or gone. False: too slow for too long.
cdef bint pace_kept(Pace *pace, uint64_t bytes) noexcept nogil

cdef struct Queue:
    Request *first
    Request *last

cdef struct Outbox:
    int fd                        # the client's socket, owned by who made the Outbox
    Transport *transport          # TLS over it, or NULL; likewise
    int event_fd                  # wakes the connection's thread from poll(); -1 until needed
    int64_t completed             # atomic: pending requests that have ended
    pthread_mutex_t mutex         # guards what follows
    pthread_cond_t changed        # for the connection's thread alone
    bint waiting                  # the connection's thread waits on `changed`
    bint sending                  # somebody is sending
    uint64_t sent_bytes           # taken by the socket, ever; who sends adds to it
    int error                     # errno that ended the connection's sending side, or 0
    Queue queue                   # answered, not yet sent
    Queue returned                # sent or dropped: the connection's thread may use them again
    Pace pace                     # at which replies are taken; the connection's thread's own
    bint has_long                 # there may be some; the connection's thread's own
    Queue unfinished              # a piece of them has ended: their thread submits the next

cdef int outbox_init(Outbox *outbox, int fd, Transport *transport) noexcept nogil
cdef void outbox_destroy(Outbox *outbox) noexcept nogil

# Io.complete of every request: answer it and send what can be sent without waiting. One that has
# more to do is not answered: it is left to the connection's thread.
cdef void request_completed(Io *io, int error) noexcept nogil

# The same for a request that is answered already.
cdef void request_answered(Request *request) noexcept nogil

# For the connection's thread: queue `batch` (which becomes empty) and send, waiting for the client.
# The errno that ended the sending side, or 0.
cdef int outbox_send(Outbox *outbox, Queue *batch) noexcept nogil

# For the connection's thread: requests that are free again, as a list linked by `next`.
cdef Request *outbox_returned(Outbox *outbox) noexcept nogil

# For the connection's thread: the next of the unfinished requests, or NULL.
cdef Request *outbox_unfinished(Outbox *outbox) noexcept nogil

# For the connection's thread: wait until requests are returned, or `submitted` have completed and
# nothing is left to send; sends meanwhile. True: there are unfinished ones, which come first.
cdef bint outbox_wait(Outbox *outbox, int64_t submitted, bint for_all) noexcept nogil

# For the connection's thread, with requests pending: wait until the client has sent something, and
# send meanwhile what completing threads could not. 1: there may be input, or are unfinished
# requests; 0: timed out; -1: lost.
cdef int outbox_await_input(Outbox *outbox, int timeout_ms) noexcept nogil

# Whether replies wait for the socket: queued, or encrypted already.
cdef inline bint outbox_has_unsent(const Outbox *outbox) noexcept nogil:
    return (outbox.queue.first != NULL
            or (outbox.error == 0 and wire_is_unsent(outbox.transport)))

cdef inline void queue_push(Queue *queue, Request *request) noexcept nogil:
    request.next = NULL
    if queue.first == NULL:
        queue.first = request
    else:
        queue.last.next = request
    queue.last = request

# Move all of `source` to the end of `target`.
cdef inline void queue_move(Queue *target, Queue *source) noexcept nogil:
    if source.first == NULL:
        return
    if target.first == NULL:
        target.first = source.first
    else:
        target.last.next = source.first
    target.last = source.last
    source.first = NULL
    source.last = NULL
