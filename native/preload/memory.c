/* The process's extents: which there are, where they are mapped, how to take them away and put them back.
 *
 * A block is physical memory made of pieces (the agent's extents); a mapping is an address at which the process sees
 * a block. Mappings are kept sorted by address. Descriptors of the pieces are kept while the process runs: memory
 * lives as long as somebody holds one, so a dead agent takes nothing with it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "driver.h"
#include "memory.h"
#include "unsupported.h"

pthread_mutex_t kyb_memory_lock = PTHREAD_MUTEX_INITIALIZER;
_Atomic unsigned kyb_cached_blocks;

static struct kyb_mapping *mappings;
static size_t mapping_count, mapping_capacity;
static struct kyb_block *blocks;

struct kyb_block *kyb_block_new(enum kyb_block_kind kind, size_t pieces)
{
    struct kyb_block *block = calloc(1, sizeof *block);
    if (!block) return NULL;
    block->kind = kind;
    if (pieces) {
        block->pieces = calloc(pieces, sizeof *block->pieces);
        if (!block->pieces) {
            free(block);
            return NULL;
        }
        for (size_t i = 0; i < pieces; i++) block->pieces[i].fd = -1;
    }
    block->piece_count = pieces;
    return block;
}

void kyb_block_list(struct kyb_block *block)
{
    block->previous = NULL;
    block->next = blocks;
    if (blocks) blocks->previous = block;
    blocks = block;
}

void kyb_block_unlist(struct kyb_block *block, struct kyb_block **gone)
{
    if (block->next) block->next->previous = block->previous;
    if (block->previous)
        block->previous->next = block->next;
    else
        blocks = block->next;
    block->previous = NULL;
    block->next = *gone;
    *gone = block;
}

/* The agent may take long to answer; nobody who wants the lock shall wait for that. */
void kyb_forget(struct kyb_block *gone)
{
    uint64_t ids[KYB_RECORDS_MAX];
    size_t count = 0;
    while (gone) {
        struct kyb_block *block = gone;
        gone = block->next;
        bool ours = block->kind == KYB_BLOCK_ALLOCATION || block->kind == KYB_BLOCK_HANDLE;
        for (size_t i = 0; i < block->piece_count; i++) {
            if (block->pieces[i].fd >= 0) close(block->pieces[i].fd);
            if (!ours) continue;
            ids[count++] = block->pieces[i].id;
            if (count < KYB_RECORDS_MAX) continue;
            kyb_tell_free(ids, count);
            count = 0;
        }
        free(block->pieces);
        free(block);
    }
    if (count) kyb_tell_free(ids, count);
}

struct kyb_block *kyb_block_of_handle(uint64_t logical)
{
    for (struct kyb_block *block = blocks; block; block = block->next)
        if (block->logical == logical && block->references && block->kind != KYB_BLOCK_ALLOCATION) return block;
    return NULL;
}

/* Index of the first mapping that ends after address. */
static size_t first_after(uint64_t address)
{
    size_t low = 0, high = mapping_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (mappings[middle].address + mappings[middle].size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct kyb_mapping *kyb_mapping_or_cached(uint64_t address)
{
    size_t i = first_after(address);
    return i < mapping_count && mappings[i].address <= address ? &mappings[i] : NULL;
}

struct kyb_mapping *kyb_mapping_at(uint64_t address)
{
    struct kyb_mapping *mapping = kyb_mapping_or_cached(address);
    return mapping && !mapping->block->cached ? mapping : NULL;
}

bool kyb_cached_within(uint64_t address, uint64_t size)
{
    if (!atomic_load(&kyb_cached_blocks)) return false;
    for (size_t i = first_after(address);
         i < mapping_count && (mappings[i].address <= address || mappings[i].address - address < size); i++)
        if (mappings[i].block->cached) return true;
    return false;
}

/* The driver counts its own from 1. Memory that comes back is new to the driver and must not be so to the application,
 * which may compare ids to learn whether memory was freed meanwhile. */
uint64_t kyb_new_id(void)
{
    static _Atomic uint64_t last = 1ULL << 62;
    return atomic_fetch_add(&last, 1) + 1;
}

bool kyb_mapping_add(uint64_t address, struct kyb_block *block)
{
    if (mapping_count == mapping_capacity) {
        size_t capacity = mapping_capacity ? 2 * mapping_capacity : 256;
        struct kyb_mapping *larger = realloc(mappings, capacity * sizeof *larger);
        if (!larger) return false;
        mappings = larger;
        mapping_capacity = capacity;
    }
    size_t i = first_after(address);
    memmove(mappings + i + 1, mappings + i, (mapping_count - i) * sizeof *mappings);
    mappings[i] =
        (struct kyb_mapping){.address = address, .size = block->size, .block = block, .buffer_id = kyb_new_id()};
    if (!block->id) block->id = kyb_new_id();
    mapping_count++;
    block->mappings++;
    return true;
}

void kyb_mapping_remove(struct kyb_mapping *mapping)
{
    size_t i = (size_t)(mapping - mappings);
    mapping->block->mappings--;
    memmove(mappings + i, mappings + i + 1, (mapping_count - i - 1) * sizeof *mappings);
    mapping_count--;
}

/* The mappings that begin within [address, address + size). */
size_t kyb_mapping_range(uint64_t address, uint64_t size, struct kyb_mapping **first)
{
    size_t i = first_after(address), count = 0;
    if (i < mapping_count && mappings[i].address < address) i++;
    *first = mappings + i;
    while (i + count < mapping_count && mappings[i + count].address < address + size) count++;
    return count;
}

static int unmap(uint64_t address, uint64_t size)
{
    return KYB_DRIVER(cuMemUnmap, (uint64_t, size_t), (address, size));
}

int kyb_map_pieces(uint64_t address, const struct kyb_block *block)
{
    uint64_t at = address;
    for (size_t i = 0; i < block->piece_count; i++) {
        const struct kyb_piece *piece = &block->pieces[i];
        uint64_t handle = 0;
        int result = KYB_DRIVER(cuMemImportFromShareableHandle, (void *, void *, int),
                                (&handle, (void *)(intptr_t)piece->fd, CU_MEM_HANDLE_TYPE_POSIX_FD));
        if (result == CUDA_SUCCESS) {
            result =
                KYB_DRIVER(cuMemMap, (uint64_t, size_t, size_t, uint64_t, uint64_t), (at, piece->size, 0, handle, 0));
            /* The mapping keeps the memory; a handle left over would keep it past the unmapping. */
            KYB_DRIVER(cuMemRelease, (uint64_t), (handle));
        }
        if (result != CUDA_SUCCESS) {
            if (at > address) unmap(address, at - address);
            return result;
        }
        at += piece->size;
    }
    return CUDA_SUCCESS;
}

int kyb_free_allocation(struct kyb_mapping *mapping, struct kyb_block **gone)
{
    struct kyb_block *block = mapping->block;
    uint64_t address = mapping->address, size = mapping->size;
    int result = unmap(address, size);
    if (result != CUDA_SUCCESS) return result;
    if (block->exported) atomic_fetch_sub(&kyb_ipc_exported, 1);
    kyb_mapping_remove(mapping);
    KYB_DRIVER(cuMemAddressFree, (uint64_t, size_t), (address, size));
    kyb_block_unlist(block, gone);
    return CUDA_SUCCESS;
}

void kyb_record_access(struct kyb_mapping *mapping, const struct kyb_mem_access *access, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t j = 0;
        while (j < mapping->access_count && (mapping->access[j].location.type != access[i].location.type ||
                                             mapping->access[j].location.id != access[i].location.id))
            j++;
        if (j == KYB_ACCESS_MAX) continue;
        if (j == mapping->access_count) mapping->access_count++;
        mapping->access[j] = access[i];
    }
}

/* To the driver each piece is an allocation of its own. */
int kyb_set_sync_memops(uint64_t address, const struct kyb_block *block, int value)
{
    int result = CUDA_SUCCESS;
    for (size_t i = 0; i < block->piece_count && result == CUDA_SUCCESS; address += block->pieces[i++].size)
        result = KYB_DRIVER(cuPointerSetAttribute, (void *, int, uint64_t),
                            (&value, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, address));
    return result;
}

/* ---- for the control thread, gates shut ---- */

size_t kyb_extents(struct kyb_extent *records, int *fds, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < mapping_count; i++) { /* mapped ones first, in address order: neighbours stay neighbours */
        struct kyb_block *block = mappings[i].block;
        if (block->kind == KYB_BLOCK_SHARED) continue;
        uint64_t at = mappings[i].address;
        for (size_t j = 0; j < block->piece_count; j++) {
            struct kyb_piece *piece = &block->pieces[j];
            bool again = false;
            if (block->mappings > 1)
                for (size_t k = 0; k < n && !again; k++) again = k < max && records[k].id == piece->id;
            if (!again) {
                if (n < max) {
                    records[n] = (struct kyb_extent){.id = piece->id,
                                                     .address = at,
                                                     .size = piece->size,
                                                     .flags = piece->fd < 0 ? KYB_FLAG_NO_FD : 0};
                    memcpy(records[n].gpu, block->gpu, 16);
                    if (fds) fds[n] = piece->fd;
                }
                n++;
            }
            at += piece->size;
        }
    }
    for (struct kyb_block *block = blocks; block; block = block->next) {
        if (block->mappings || block->kind == KYB_BLOCK_SHARED) continue;
        for (size_t j = 0; j < block->piece_count; j++, n++) {
            if (n >= max) continue;
            records[n] = (struct kyb_extent){.id = block->pieces[j].id,
                                             .size = block->pieces[j].size,
                                             .flags = block->pieces[j].fd < 0 ? KYB_FLAG_NO_FD : 0};
            memcpy(records[n].gpu, block->gpu, 16);
            if (fds) fds[n] = block->pieces[j].fd;
        }
    }
    return n;
}

size_t kyb_extent_count(void)
{
    size_t n = 0;
    for (struct kyb_block *block = blocks; block; block = block->next) n += block->piece_count;
    return n;
}

static bool map_one(struct kyb_mapping *mapping, char *reason, size_t size)
{
    int result = kyb_map_pieces(mapping->address, mapping->block);
    if (result != CUDA_SUCCESS) {
        kyb_cuda_problem(result, "importing and mapping an extent", reason, size);
        return false;
    }
    const char *call = "cuMemSetAccess";
    if (mapping->access_count)
        result = KYB_DRIVER(cuMemSetAccess, (uint64_t, size_t, void *, size_t),
                            (mapping->address, mapping->size, mapping->access, mapping->access_count));
    if (result == CUDA_SUCCESS && mapping->sync_memops) {
        call = "cuPointerSetAttribute";
        result = kyb_set_sync_memops(mapping->address, mapping->block, mapping->sync_memops);
    }
    if (result == CUDA_SUCCESS) return true;
    unmap(mapping->address, mapping->size);
    kyb_cuda_problem(result, call, reason, size);
    return false;
}

bool kyb_map_all(char *reason, size_t size)
{
    for (size_t i = 0; i < mapping_count; i++) {
        if (map_one(&mappings[i], reason, size)) continue;
        while (i-- > 0) unmap(mappings[i].address, mappings[i].size);
        return false;
    }
    return true;
}

bool kyb_unmap_all(char *reason, size_t size)
{
    for (size_t i = 0; i < mapping_count; i++) {
        int result = unmap(mappings[i].address, mappings[i].size);
        if (result == CUDA_SUCCESS) continue;
        kyb_cuda_problem(result, "cuMemUnmap", reason, size);
        char ignored[64];
        while (i-- > 0) map_one(&mappings[i], ignored, sizeof ignored);
        return false;
    }
    return true;
}

static struct kyb_piece *piece_of(uint64_t id)
{
    /* The agent names pieces in the order it was told them: begin where the last search ended. */
    static struct kyb_block *block;
    static size_t index;
    bool known = false;
    for (struct kyb_block *b = blocks; b && !known; b = b->next) known = b == block;
    if (known && index + 1 < block->piece_count && block->pieces[index + 1].id == id) return &block->pieces[++index];
    for (struct kyb_block *b = blocks; b; b = b->next)
        for (size_t i = 0; i < b->piece_count; i++)
            if (b->pieces[i].id == id) {
                block = b;
                index = i;
                return &b->pieces[i];
            }
    return NULL;
}

bool kyb_set_fd(uint64_t id, int fd)
{
    struct kyb_piece *piece = piece_of(id);
    if (!piece) return false;
    if (piece->fd >= 0) close(piece->fd);
    piece->fd = fd;
    return true;
}

bool kyb_discard(uint64_t id)
{
    return kyb_set_fd(id, -1);
}

void kyb_discard_all(void)
{
    for (struct kyb_block *block = blocks; block; block = block->next)
        for (size_t i = 0; i < block->piece_count; i++)
            if (block->pieces[i].fd >= 0) {
                close(block->pieces[i].fd);
                block->pieces[i].fd = -1;
            }
}

bool kyb_all_have_fds(void)
{
    for (struct kyb_block *block = blocks; block; block = block->next)
        for (size_t i = 0; i < block->piece_count; i++)
            if (block->pieces[i].fd < 0) return false;
    return true;
}

void kyb_grant_peer(int owner, int reader)
{
    struct kyb_mem_access access = {{CU_MEM_LOCATION_TYPE_DEVICE, reader}, CU_MEM_ACCESS_READ_WRITE};
    pthread_mutex_lock(&kyb_memory_lock);
    for (size_t i = 0; i < mapping_count; i++) {
        if (mappings[i].block->kind != KYB_BLOCK_ALLOCATION || mappings[i].block->device != owner) continue;
        if (KYB_DRIVER(cuMemSetAccess, (uint64_t, size_t, void *, size_t),
                       (mappings[i].address, mappings[i].size, &access, 1)) == CUDA_SUCCESS)
            kyb_record_access(&mappings[i], &access, 1);
    }
    pthread_mutex_unlock(&kyb_memory_lock);
}

/* The child must not keep the parent's memory alive, and has no use for it: CUDA does not survive fork. */
void kyb_memory_after_fork(void)
{
    kyb_discard_all();
    blocks = NULL;
    mapping_count = 0;
}
