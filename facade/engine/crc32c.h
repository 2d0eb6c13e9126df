/* CRC-32C (Castagnoli, reflected 0x82f63b78): the checksum of every link frame and header.
 *
 * crc32c(crc, data, size): start with crc = 0, feed the result back in to continue. Uses the
 * processor's instruction where there is one (x86 SSE4.2), a table elsewhere.
 */
#ifndef TRELLIS_CRC32C_H
#define TRELLIS_CRC32C_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t trellis_crc32c_table[256];
static int trellis_crc32c_has_instruction;

static void trellis_crc32c_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
        trellis_crc32c_table[i] = c;
    }
#if defined(__x86_64__)
    __builtin_cpu_init();
    trellis_crc32c_has_instruction = __builtin_cpu_supports("sse4.2") != 0;
#endif
}

static uint32_t trellis_crc32c_by_table(uint32_t c, const uint8_t *p, size_t n)
{
    while (n--)
        c = trellis_crc32c_table[(c ^ *p++) & 0xff] ^ (c >> 8);
    return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2")))
static uint32_t trellis_crc32c_by_instruction(uint32_t c0, const uint8_t *p, size_t n)
{
    uint64_t c = c0;
    while (n >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        c = __builtin_ia32_crc32di(c, v);
        p += 8;
        n -= 8;
    }
    while (n--)
        c = __builtin_ia32_crc32qi((uint32_t)c, *p++);
    return (uint32_t)c;
}
#endif

static inline uint32_t trellis_crc32c(uint32_t crc, const void *data, size_t size)
{
    uint32_t c = ~crc;
#if defined(__x86_64__)
    if (trellis_crc32c_has_instruction)
        return ~trellis_crc32c_by_instruction(c, (const uint8_t *)data, size);
#endif
    return ~trellis_crc32c_by_table(c, (const uint8_t *)data, size);
}
#endif
