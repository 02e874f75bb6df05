/* Device addresses: reservations, what is mapped where, and who may touch it.
 *
 * A device address is an address of this process. Reservations are taken in a high area that neither the
 * kernel's own choice nor the sanitizers' shadow uses, and are inaccessible private memory until something
 * is mapped over them; so they survive a checkpoint, and a dump by CRIU.
 */
#include "simulated.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define AREA_BEGIN 0x7e8000000000ULL
#define AREA_END 0x7ee000000000ULL

struct reservation {
    uint64_t base;
    size_t size;
};
static struct reservation *reservations; /* sorted by base */
static size_t reservation_count, reservation_capacity;
static uint64_t cursor = AREA_BEGIN;

struct range **space_ranges;
size_t space_count;
static size_t range_capacity;

static size_t reservation_index(uint64_t address)
{
    size_t low = 0, high = reservation_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (reservations[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low; /* of the first one above the address */
}

static void *try_reserve(uint64_t address, size_t size)
{
    void *got = mmap((void *)address, size, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == MAP_FAILED)
        return NULL;
    if (got != (void *)address) { /* a kernel that doesn't know the flag */
        munmap(got, size);
        return NULL;
    }
    madvise(got, size, MADV_DONTFORK);
    return got;
}

/* Reserve addresses, at `wanted` if that is free. 0: none left. */
uint64_t space_reserve(size_t size, size_t alignment, uint64_t wanted)
{
    if (reservation_count == reservation_capacity) {
        size_t capacity = reservation_capacity ? reservation_capacity * 2 : 64;
        struct reservation *grown = realloc(reservations, capacity * sizeof *grown);
        if (!grown)
            return 0;
        reservations = grown;
        reservation_capacity = capacity;
    }
    if (alignment < GRANULARITY)
        alignment = GRANULARITY;
    void *got = NULL;
    uint64_t base = 0;
    if (wanted && wanted % alignment == 0) {
        base = wanted;
        got = try_reserve(base, size);
    }
    for (int round = 0; !got && round < 2; round++) {
        for (base = round_up(cursor, alignment); base + size <= AREA_END && base + size > base;
             base = round_up(base + GRANULARITY, alignment)) {
            got = try_reserve(base, size);
            if (got || (errno != EEXIST && errno != 0))
                break;
        }
        cursor = got ? base + size : AREA_BEGIN;
    }
    if (!got)
        return 0;
    size_t at = reservation_index(base);
    memmove(&reservations[at + 1], &reservations[at], (reservation_count - at) * sizeof *reservations);
    reservations[at] = (struct reservation){base, size};
    reservation_count++;
    return base;
}

/* Only a whole reservation can be given back. */
bool space_release(uint64_t base, size_t size)
{
    size_t at = reservation_index(base);
    if (!at || reservations[at - 1].base != base || reservations[at - 1].size != size)
        return false;
    munmap((void *)base, size);
    memmove(&reservations[at - 1], &reservations[at], (reservation_count - at) * sizeof *reservations);
    reservation_count--;
    return true;
}

bool space_reserved(uint64_t base, size_t size)
{
    size_t at = reservation_index(base);
    return at && base - reservations[at - 1].base < reservations[at - 1].size &&
           size <= reservations[at - 1].size - (base - reservations[at - 1].base);
}

static int protection(int access)
{
    return access == CU_MEM_ACCESS_READ_WRITE ? PROT_READ | PROT_WRITE
           : access == CU_MEM_ACCESS_READ     ? PROT_READ
                                              : PROT_NONE;
}

CUresult space_map(uint64_t address, const struct physical *physical, int access)
{
    void *got = mmap((void *)address, physical->size, protection(access), MAP_SHARED | MAP_FIXED,
                     physical_descriptor(physical), physical->offset);
    if (got == MAP_FAILED)
        return CUDA_ERROR_OPERATING_SYSTEM;
    madvise(got, physical->size, MADV_DONTFORK);
    return CUDA_SUCCESS;
}

/* Back to inaccessible, still reserved. */
void space_unmap(uint64_t address, size_t size)
{
    void *got = mmap((void *)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (got != MAP_FAILED)
        madvise(got, size, MADV_DONTFORK);
}

CUresult space_protect(uint64_t address, size_t size, int access)
{
    return mprotect((void *)address, size, protection(access)) ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

/* Index of the first range that ends above the address. */
size_t space_index(uint64_t address)
{
    size_t low = 0, high = space_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (space_ranges[middle]->base + space_ranges[middle]->size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct range *space_find(uint64_t address)
{
    size_t at = space_index(address);
    return at < space_count && space_ranges[at]->base <= address ? space_ranges[at] : NULL;
}

bool space_overlaps(uint64_t address, size_t size)
{
    size_t at = space_index(address);
    return at < space_count && space_ranges[at]->base < address + size;
}

CUresult space_insert(const struct range *range, struct range **out)
{
    if (space_count == range_capacity) {
        size_t capacity = range_capacity ? range_capacity * 2 : 64;
        struct range **grown = realloc(space_ranges, capacity * sizeof *grown);
        if (!grown)
            return CUDA_ERROR_OUT_OF_MEMORY;
        space_ranges = grown;
        range_capacity = capacity;
    }
    struct range *copy = malloc(sizeof *copy);
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *copy = *range;
    copy->id = next_id++;
    size_t at = space_index(range->base);
    memmove(&space_ranges[at + 1], &space_ranges[at], (space_count - at) * sizeof *space_ranges);
    space_ranges[at] = copy;
    space_count++;
    if (out)
        *out = copy;
    return CUDA_SUCCESS;
}

void space_remove(struct range *range)
{
    size_t at = space_index(range->base);
    memmove(&space_ranges[at], &space_ranges[at + 1], (space_count - at - 1) * sizeof *space_ranges);
    space_count--;
    free(range);
}

/* Whether the GPU may read (or write) all these bytes. Takes the lock itself. */
bool space_accessible(uint64_t address, size_t size, bool write, struct range **first)
{
    bool good = false;
    int needed = write ? CU_MEM_ACCESS_READ_WRITE : CU_MEM_ACCESS_READ;

    pthread_mutex_lock(&memory_lock);
    size_t at = space_index(address);
    if (first)
        *first = at < space_count && space_ranges[at]->base <= address ? space_ranges[at] : NULL;
    uint64_t reached = address;
    while (address + size >= address) {
        if (at >= space_count || space_ranges[at]->base > reached || (space_ranges[at]->access & needed) != needed)
            break;
        reached = space_ranges[at]->base + space_ranges[at]->size;
        if (reached >= address + size) {
            good = true;
            break;
        }
        at++;
    }
    pthread_mutex_unlock(&memory_lock);
    return good;
}

/* Whether the address is of the driver's making: in a reservation or a live range. Takes the lock itself. */
bool space_is_device(uint64_t address)
{
    pthread_mutex_lock(&memory_lock);
    bool is = space_reserved(address, 1) || (address >= AREA_BEGIN && address < AREA_END) || space_find(address);
    pthread_mutex_unlock(&memory_lock);
    return is;
}
