"""CRC-32C for Python code: headers and control frames."""

from libc.stdint cimport uint8_t, uint32_t

from facade.engine.syscalls cimport crc32c as c_crc32c, crc32c_init

crc32c_init()


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0) -> int:
    """CRC-32C of `data`; pass the result of an earlier call as `crc` to go on from there."""
    if data.shape[0] == 0:
        return crc
    cdef const uint8_t *p = &data[0]
    cdef size_t size = data.shape[0]
    with nogil:
        crc = c_crc32c(crc, p, size)
    return crc
