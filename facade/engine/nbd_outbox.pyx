"""Sending replies: gathered into few system calls, from whichever thread completes a request."""

from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno
from libc.string cimport memcpy, memset

from facade.engine.nbd_reply cimport answer
from facade.engine.nbd_transport cimport transport_flush, wire_send
from facade.engine.nbd_wire cimport NBD_HEAD_BYTES_MAX
from facade.engine.syscalls cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    POLLIN,
    POLLOUT,
    atomic_add,
    atomic_load,
    atomic_store,
    close,
    eventfd,
    iovec,
    msghdr,
    now_ms,
    poll,
    pollfd,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    read,
    write,
)

cdef enum:
    PIECES_MAX = 2 * REQUESTS_MAX    # a head and a body for each, and more than one layout's


# What one sendmsg() is given. Heads without room before their data are copied side by side.
cdef struct Gather:
    iovec[PIECES_MAX] pieces
    int count
    uint8_t[REQUESTS_MAX * NBD_HEAD_BYTES_MAX] heads
    size_t head_bytes


cdef int64_t client_timeout_ms = CLIENT_TIMEOUT_MS     # atomic


def limit_client_silence(timeout_s: float) -> None:
    """Set how long clients of NBD connections may be in the middle of something without going on.

    Raises ValueError unless it is more than nothing and at most a minute, which it is at first.
    """
    if not 0 < timeout_s * 1000 <= CLIENT_TIMEOUT_MS:
        raise ValueError(f"a client's time-out of {timeout_s} s; it is more than 0 and at most "
                         f"{CLIENT_TIMEOUT_MS // 1000}")
    atomic_store(&client_timeout_ms, int(timeout_s * 1000))


cdef bint pace_kept(Pace *pace, uint64_t bytes) noexcept nogil:
    cdef long now = now_ms()
    if pace.since_ms == 0:
        pace.since_ms = now
    pace.bytes += bytes
    if now - pace.since_ms < atomic_load(&client_timeout_ms):
        return True
    if pace.bytes < PACE_BYTES_MIN:
        return False
    pace.since_ms = now
    pace.bytes = 0
    return True


cdef int outbox_init(Outbox *outbox, int fd, Transport *transport) noexcept nogil:
    memset(outbox, 0, sizeof(Outbox))
    outbox.fd = fd
    outbox.transport = transport
    outbox.event_fd = -1
    pthread_mutex_init(&outbox.mutex, NULL)
    pthread_cond_init(&outbox.changed, NULL)
    return 0


cdef void outbox_destroy(Outbox *outbox) noexcept nogil:
    if outbox.event_fd >= 0:
        close(outbox.event_fd)
    pthread_cond_destroy(&outbox.changed)
    pthread_mutex_destroy(&outbox.mutex)


cdef void request_completed(Io *io, int error) noexcept nogil:
    cdef Request *request = <Request *> io.owner
    if error == 0 and (request.left_bytes or request.wants_flush):
        leave_unfinished(request)
        return
    answer(request, error)
    request_answered(request)


cdef void leave_unfinished(Request *request) noexcept nogil:
    cdef Outbox *outbox = request.outbox
    cdef uint64_t one = 1
    pthread_mutex_lock(&outbox.mutex)
    queue_push(&outbox.unfinished, request)
    if outbox.event_fd >= 0:
        write(outbox.event_fd, &one, sizeof(one))
    if outbox.waiting:
        pthread_cond_signal(&outbox.changed)
    pthread_mutex_unlock(&outbox.mutex)


cdef void request_answered(Request *request) noexcept nogil:
    cdef Outbox *outbox = request.outbox
    cdef uint64_t one = 1
    pthread_mutex_lock(&outbox.mutex)
    queue_push(&outbox.queue, request)
    if not outbox.sending:
        flush(outbox, False)
        if outbox_has_unsent(outbox) and outbox.event_fd >= 0:
            write(outbox.event_fd, &one, sizeof(one))
    # Last but the unlocking: from here on the connection may be at its end.
    atomic_add(&outbox.completed, 1)
    if outbox.waiting:
        pthread_cond_signal(&outbox.changed)
    pthread_mutex_unlock(&outbox.mutex)


cdef int outbox_send(Outbox *outbox, Queue *batch) noexcept nogil:
    cdef int error
    pthread_mutex_lock(&outbox.mutex)
    queue_move(&outbox.queue, batch)
    # A completing thread that is sending takes these along; it never waits.
    if not outbox.sending and outbox_has_unsent(outbox):
        flush(outbox, True)
    error = outbox.error
    pthread_mutex_unlock(&outbox.mutex)
    return error


cdef Request *outbox_returned(Outbox *outbox) noexcept nogil:
    cdef Request *first
    pthread_mutex_lock(&outbox.mutex)
    first = outbox.returned.first
    outbox.returned.first = NULL
    outbox.returned.last = NULL
    pthread_mutex_unlock(&outbox.mutex)
    return first


cdef Request *outbox_unfinished(Outbox *outbox) noexcept nogil:
    cdef Request *first
    pthread_mutex_lock(&outbox.mutex)
    first = outbox.unfinished.first
    if first != NULL:
        outbox.unfinished.first = first.next
    pthread_mutex_unlock(&outbox.mutex)
    return first


cdef bint outbox_wait(Outbox *outbox, int64_t submitted, bint for_all) noexcept nogil:
    cdef bint is_quiet
    cdef bint has_unfinished = False
    pthread_mutex_lock(&outbox.mutex)
    while True:
        if not outbox.sending and outbox_has_unsent(outbox):
            flush(outbox, True)
        is_quiet = (atomic_load(&outbox.completed) == submitted and not outbox.sending
                    and not outbox_has_unsent(outbox))
        has_unfinished = outbox.unfinished.first != NULL
        if is_quiet or has_unfinished or (outbox.returned.first != NULL and not for_all):
            break
        outbox.waiting = True
        pthread_cond_wait(&outbox.changed, &outbox.mutex)
        outbox.waiting = False
    pthread_mutex_unlock(&outbox.mutex)
    return has_unfinished


cdef int outbox_await_input(Outbox *outbox, int timeout_ms) noexcept nogil:
    cdef pollfd[2] watched
    cdef uint64_t count = 0
    cdef bint is_full
    cdef int ready
    if outbox.event_fd < 0:
        pthread_mutex_lock(&outbox.mutex)
        outbox.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        pthread_mutex_unlock(&outbox.mutex)
        if outbox.event_fd < 0:
            return -1
    watched[0].fd = outbox.fd
    watched[1].fd = outbox.event_fd
    watched[1].events = POLLIN
    while True:
        # Before each wait: what got stuck earlier wakes nobody a second time.
        is_full = send_some(outbox)
        if outbox.error:
            return -1
        if not is_full:
            outbox.pace.since_ms = outbox.pace.bytes = 0
        elif not pace_kept(&outbox.pace, 0):
            end_sending(outbox, ETIMEDOUT)
            return -1
        if outbox.has_long and is_left_unfinished(outbox):
            return 1
        watched[0].events = POLLIN | POLLOUT if is_full else POLLIN
        ready = poll(watched, 2, timeout_ms)
        if ready < 0 and errno != EINTR:
            return -1
        if ready == 0:
            return 0
        if ready > 0 and watched[1].revents:
            read(outbox.event_fd, &count, sizeof(count))
        if ready > 0 and watched[0].revents & ~POLLOUT:
            return 1


# Send what the socket takes now; whether it is full, with more to send.
cdef bint send_some(Outbox *outbox) noexcept nogil:
    cdef bint is_full = False
    cdef uint64_t before
    pthread_mutex_lock(&outbox.mutex)
    if not outbox.sending and outbox_has_unsent(outbox):
        before = outbox.sent_bytes
        flush(outbox, False)
        outbox.pace.bytes += outbox.sent_bytes - before
        is_full = outbox_has_unsent(outbox)
    pthread_mutex_unlock(&outbox.mutex)
    return is_full


cdef void end_sending(Outbox *outbox, int error) noexcept nogil:
    pthread_mutex_lock(&outbox.mutex)
    if outbox.error == 0:
        outbox.error = error
    pthread_mutex_unlock(&outbox.mutex)


cdef bint is_left_unfinished(Outbox *outbox) noexcept nogil:
    cdef bint found
    pthread_mutex_lock(&outbox.mutex)
    found = outbox.unfinished.first != NULL
    pthread_mutex_unlock(&outbox.mutex)
    return found


# Send the queue until it is empty or (unless may_block) the socket is full. The mutex is held on
# entry and on return, and let go of in between.
cdef void flush(Outbox *outbox, bint may_block) noexcept nogil:
    cdef Queue batch
    cdef Queue sent
    cdef int error = 0
    outbox.sending = True
    sent.first = sent.last = NULL
    while outbox_has_unsent(outbox) and error == 0:
        batch = outbox.queue
        outbox.queue.first = outbox.queue.last = NULL
        if outbox.error == 0:
            pthread_mutex_unlock(&outbox.mutex)
            error = send_batch(outbox, &batch, &sent, may_block)
            pthread_mutex_lock(&outbox.mutex)
        if error == EAGAIN:
            if not may_block:
                queue_move(&batch, &outbox.queue)
                outbox.queue = batch
                batch.first = NULL
            else:
                error = ETIMEDOUT
        if error != EAGAIN and error:
            outbox.error = error
            error = 0
        queue_move(&sent, &batch)     # nobody is left to send these to
        queue_move(&outbox.returned, &sent)
    outbox.sending = False


# Send `batch`, moving what is sent to `sent`. 0, EAGAIN (the rest stays in batch) or errno.
cdef int send_batch(Outbox *outbox, Queue *batch, Queue *sent, bint may_block) noexcept nogil:
    cdef Gather gather
    cdef msghdr message
    cdef Pace pace
    cdef ssize_t count
    cdef int flags = MSG_NOSIGNAL if may_block else MSG_NOSIGNAL | MSG_DONTWAIT
    memset(&message, 0, sizeof(message))
    memset(&pace, 0, sizeof(pace))
    message.msg_iov = gather.pieces
    while batch.first != NULL:
        gather_batch(&gather, batch.first)
        message.msg_iovlen = gather.count
        count = wire_send(outbox.transport, outbox.fd, &message, flags)
        if count >= 0:
            outbox.sent_bytes += count
            take_sent(batch, sent, count)
        elif errno == EAGAIN and may_block:
            count = 0
        elif errno != EINTR:
            return errno
        if may_block and batch.first != NULL and not pace_kept(&pace, max(count, 0)):
            return ETIMEDOUT
    return flush_transport(outbox, &pace, flags, may_block)


cdef int flush_transport(Outbox *outbox, Pace *pace, int flags, bint may_block) noexcept nogil:
    cdef int error
    if outbox.transport == NULL:
        return 0
    while True:
        error = transport_flush(outbox.transport, flags)
        if error != EAGAIN or not may_block:
            return error
        if not pace_kept(pace, 0):
            return ETIMEDOUT


cdef void take_sent(Queue *batch, Queue *sent, uint64_t count) noexcept nogil:
    cdef Request *request
    cdef uint64_t left
    while batch.first != NULL:
        request = batch.first
        left = request.head_bytes + request.body_bytes - request.sent_bytes
        if count < left:
            request.sent_bytes += count
            return
        count -= left
        batch.first = request.next
        queue_push(sent, request)


cdef void gather_batch(Gather *gather, Request *request) noexcept nogil:
    cdef uint64_t skip
    gather.count = 0
    gather.head_bytes = 0
    while request != NULL and gather.count + 2 <= PIECES_MAX:
        skip = request.sent_bytes
        if request.is_laid_out:
            # Never the first to fail here: a layout has less than PIECES_MAX.
            if gather.count + request.layout.count > PIECES_MAX:
                return
            add_layout(gather, request.layout, skip)
        elif request.head_room:
            add_piece(gather, request.body - request.head_bytes + skip,
                      request.head_bytes + request.body_bytes - skip)
        else:
            if skip < request.head_bytes:
                memcpy(&gather.heads[gather.head_bytes], &request.head[skip],
                       request.head_bytes - skip)
                add_piece(gather, &gather.heads[gather.head_bytes], request.head_bytes - skip)
                gather.head_bytes += request.head_bytes - skip
                skip = request.head_bytes
            if request.body_bytes:
                add_piece(gather, request.body + (skip - request.head_bytes),
                          request.body_bytes - (skip - request.head_bytes))
        request = request.next


cdef void add_layout(Gather *gather, Layout *layout, uint64_t skip) noexcept nogil:
    cdef int number
    cdef iovec *piece
    for number in range(layout.count):
        piece = &layout.pieces[number]
        if skip >= piece.iov_len:
            skip -= piece.iov_len
            continue
        add_piece(gather, <uint8_t *> piece.iov_base + skip, piece.iov_len - skip)
        skip = 0


cdef void add_piece(Gather *gather, uint8_t *data, size_t length) noexcept nogil:
    cdef iovec *last
    if gather.count:
        last = &gather.pieces[gather.count - 1]
        if <uint8_t *> last.iov_base + last.iov_len == data:
            last.iov_len += length
            return
    gather.pieces[gather.count].iov_base = data
    gather.pieces[gather.count].iov_len = length
    gather.count += 1
