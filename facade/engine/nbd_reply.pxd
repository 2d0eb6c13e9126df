# What the reply to a request consists of: simple replies, and the chunks of structured ones.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from facade.engine.nbd_outbox cimport Layout, Request

# Fill in the reply to a request that ended with `error`: request.why says it in words, else the
# error's own sentence does.
cdef void answer(Request *request, int error) noexcept nogil

# The reply is what lies in `body`: whole chunks.
cdef void answer_chunks(Request *request, uint8_t *body, uint64_t body_bytes) noexcept nogil

# The next chunk of the reply to a read; `data` is NULL for a hole. Calls are in order of offset.
cdef void layout_add(Layout *layout, const Request *request, uint64_t offset, uint64_t length,
                     uint8_t *data) noexcept nogil

# A chunk's head, of the kind agreed on; `length` counts what follows it. Returns the head's size.
cdef size_t write_chunk_head(uint8_t *at, const Request *request, uint16_t flags, uint16_t kind,
                             uint64_t length) noexcept nogil
