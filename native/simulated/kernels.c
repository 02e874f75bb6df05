/* The kernels there are: a few C functions that take the same arguments as their CUDA namesakes would.
 * README.md says what each one does to the byte; the grid they are launched with is of no effect. */
#include "simulated.h"

#include <string.h>
#include <time.h>

#define CHUNK_BYTES ((size_t)2 << 20)
#define LANES 8      /* 64-bit words a stripe */
#define STRIPES 16   /* stripes between two scrambles */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ x >> 31;
}

/* 128-bit keyed hash of one chunk: multiply-accumulate over independent lanes, so that it vectorises.
 * (0, 0) for a chunk of zeros and for no other. */
static void hash_chunk(const uint64_t *restrict data, const uint64_t *restrict secret, uint64_t key0, uint64_t key1,
                       uint64_t out[2])
{
    uint64_t lanes[LANES], any = 0;

    for (unsigned i = 0; i < LANES; i++)
        lanes[i] = secret[LANES * STRIPES + i];
    for (size_t block = 0; block < CHUNK_BYTES / 8; block += LANES * STRIPES) {
        uint64_t seen[LANES] = {0};
        for (unsigned stripe = 0; stripe < STRIPES; stripe++) {
            const uint64_t *words = data + block + stripe * LANES;
            for (unsigned i = 0; i < LANES; i++) {
                uint64_t word = words[i], keyed = word ^ secret[stripe * LANES + i];
                seen[i] |= word;
                lanes[i] += (keyed & 0xffffffffU) * (keyed >> 32);
                lanes[i] += word << 32 | word >> 32;
            }
        }
        for (unsigned i = 0; i < LANES; i++) {
            any |= seen[i];
            lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ secret[LANES * STRIPES + LANES + i]) * 0x9e3779b1U;
        }
    }
    uint64_t low = key0, high = ~key1;
    for (unsigned i = 0; i < LANES; i++) {
        low = mix(low ^ lanes[i]) + i;
        high = mix(high + lanes[LANES - 1 - i] * 0x9e3779b97f4a7c15ULL);
    }
    out[0] = any ? low : 0;
    out[1] = any ? high : 0;
    if (any && !low && !high)
        out[0] = 1;
}

static bool hash_chunks(const uint64_t *arguments)
{
    const uint64_t *bases = (const uint64_t *)(uintptr_t)arguments[0];
    uint64_t key0 = arguments[1], key1 = arguments[2];
    uint64_t *out = (uint64_t *)(uintptr_t)arguments[3];
    unsigned count = (unsigned)arguments[4];
    uint64_t secret[LANES * STRIPES + 2 * LANES];

    if (!count)
        return true;
    if (!space_accessible(arguments[0], (size_t)count * 8, false, NULL) ||
        !space_accessible(arguments[3], (size_t)count * 16, true, NULL))
        return false;
    for (unsigned i = 0; i < sizeof secret / sizeof *secret; i++)
        secret[i] = mix(key0 + mix(key1 + i * 0x9e3779b97f4a7c15ULL));
    for (unsigned i = 0; i < count; i++) {
        if (!space_accessible(bases[i], CHUNK_BYTES, false, NULL))
            return false;
        hash_chunk((const uint64_t *)(uintptr_t)bases[i], secret, key0, key1, &out[2 * (size_t)i]);
    }
    return true;
}

static bool fill_u32(const uint64_t *arguments)
{
    uint32_t *words = (uint32_t *)(uintptr_t)arguments[0];
    uint32_t seed = (uint32_t)arguments[2];
    if (!space_accessible(arguments[0], arguments[1] * 4, true, NULL))
        return arguments[1] == 0;
    for (uint64_t i = 0; i < arguments[1]; i++) {
        uint32_t x = (uint32_t)i * 0x9e3779b9U + seed;
        x = (x ^ x >> 16) * 0x85ebca6bU;
        x = (x ^ x >> 13) * 0xc2b2ae35U;
        words[i] = x ^ x >> 16;
    }
    return true;
}

static bool add_one_u32(const uint64_t *arguments)
{
    uint32_t *words = (uint32_t *)(uintptr_t)arguments[0];
    if (!space_accessible(arguments[0], arguments[1] * 4, true, NULL))
        return arguments[1] == 0;
    for (uint64_t i = 0; i < arguments[1]; i++)
        words[i]++;
    return true;
}

static bool sum_u32(const uint64_t *arguments)
{
    const uint32_t *words = (const uint32_t *)(uintptr_t)arguments[0];
    uint64_t sum = 0;
    if (!space_accessible(arguments[2], 8, true, NULL) ||
        (arguments[1] && !space_accessible(arguments[0], arguments[1] * 4, false, NULL)))
        return false;
    for (uint64_t i = 0; i < arguments[1]; i++)
        sum += words[i];
    *(uint64_t *)(uintptr_t)arguments[2] = sum;
    return true;
}

static bool spin(const uint64_t *arguments)
{
    const struct timespec moment = {.tv_nsec = 100000};
    if (!space_accessible(arguments[0], 4, false, NULL))
        return false;
    while (!word_look(arguments[0], 4))
        nanosleep(&moment, NULL);
    return true;
}

static bool meet(const uint64_t *arguments)
{
    const struct timespec moment = {.tv_nsec = 20000};
    if (!space_accessible(arguments[0], 4, true, NULL) || !space_accessible(arguments[1], 4, false, NULL))
        return false;
    uint32_t turn = __atomic_add_fetch((uint32_t *)(uintptr_t)arguments[0], 1, __ATOMIC_RELEASE);
    while ((int32_t)((uint32_t)word_look(arguments[1], 4) - turn) < 0)
        nanosleep(&moment, NULL);
    return true;
}

static bool nothing(const uint64_t *arguments)
{
    (void)arguments;
    return true;
}

const struct kernel kernels[] = {
    {"kybernate_hash_chunks", 5, {8, 8, 8, 8, 4}, hash_chunks, false},
    {"fill_u32", 3, {8, 8, 4}, fill_u32, false},
    {"add_one_u32", 2, {8, 8}, add_one_u32, false},
    {"sum_u32", 3, {8, 8, 8}, sum_u32, false},
    {"spin", 1, {8}, spin, true},
    {"meet", 2, {8, 8}, meet, true},
    {"nothing", 0, {0}, nothing, false},
};
const size_t kernel_count = sizeof kernels / sizeof *kernels;
