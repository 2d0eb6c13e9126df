# The top of one volume's stack: the gate that lets layers come and go under live I/O, and the pools
# in which requests wait. submit() here does not wait for a disk or a link: what is not done at once
# is pending.
from libc.stdint cimport int64_t, uint64_t

from facade.engine.io_pool cimport IoPool
from facade.engine.syscalls cimport pthread_cond_t, pthread_mutex_t
from facade.engine.volume cimport Io, Volume

cdef struct Gate:
    # Atomic: two for each request inside, plus GATE_SHUT while others are held back. A request
    # gives back one when it has ended, one when its submitter is out of the layers: often later.
    int64_t state
    pthread_mutex_t mutex    # for waiting only; the way in and out is the atomic alone
    pthread_cond_t changed


cdef class VolumeStack(Volume):
    cdef Volume top_volume    # replaced only while the gate is shut and empty
    cdef Gate gate
    cdef bint gate_ready
    cdef IoPool pool          # for requests, which are inside the gate
    cdef IoPool read_pool     # reads have fewer threads, and wait for no write
    cdef IoPool lookups       # for who asks for extents, who may wait at the gate
    cdef bint is_closed       # changed only while the gate is shut and empty
    cdef bint refuses_writes  # likewise

    cdef int shut_gate(self, double timeout_s) noexcept nogil
    cdef void open_gate(self) noexcept nogil
