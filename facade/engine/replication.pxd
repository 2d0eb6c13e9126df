# The replication layer: tracks every change, and while its leg is sending, sends it.
#
# One layer per volume. `role_target` layers belong to a secondary that is being written by its
# link: applications' writes get EPERM, reads pass.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from facade.engine.change_map cimport ChangeMap
from facade.engine.syscalls cimport pthread_cond_t
from facade.engine.link_sender cimport LinkSender
from facade.engine.range_locks cimport RangeLocks
from facade.engine.volume cimport Io, Volume

cdef class ReplicationLayer(Volume):
    cdef readonly Volume lower
    cdef readonly ChangeMap changes
    cdef RangeLocks locks
    cdef LinkSender sender      # replaced only while sending is false and users is 0
    # The five below change under changes.lock, together with the marks that saw them.
    cdef bint sending
    cdef bint target            # writes of applications get EPERM
    cdef uint64_t users         # requests that may touch sender
    cdef uint64_t writers       # requests that change the volume and have not ended
    cdef uint64_t write_count   # of applications since engaged
    cdef pthread_cond_t idle    # users or writers fell to 0
    cdef int64_t failed_state   # atomic; 1: the volume below has failed a write or flush
    cdef int64_t last_error     # atomic; of the last failed write, flush or copy; 0 before any
    cdef object settle_lock            # one settle() at a time
    cdef object on_bitmap_failed       # called once; True: the failure is durably on record

    cdef int submit_write(self, Io *io) noexcept nogil
    cdef int submit_flush(self, Io *io) noexcept nogil
    cdef int write_both(self, Io *io, int parity) noexcept nogil
    cdef uint64_t send_piece(self, Io *piece, Io *whole, int parity, int *error) noexcept nogil
    cdef int local_write(self, Io *io) noexcept nogil
    # The volume below has failed: on record until the layer is engaged anew.
    cdef void note_failure(self, int error) noexcept nogil
    # Keep the attached sender in place until leave_users(); False when none is sending.
    cdef bint enter_users(self) noexcept nogil
    cdef void leave_users(self) noexcept nogil
    cdef int record_bitmap_failure(self, int error) noexcept nogil
