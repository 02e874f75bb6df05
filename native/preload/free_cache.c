/* Freed allocations that wait for the next cuMemAlloc of their size.
 *
 * Asking the agent for memory and giving it back costs ten times what the driver's own cuMemAlloc and cuMemFree do.
 * So a freed block stays where it is, mapped with its rights, and the next allocation of its size, device and context
 * takes it without asking anybody.
 *
 * To the application such memory is gone: whatever names its address is answered as the driver answers for memory
 * that isn't there, a second cuMemFree included. A stale pointer still reads and writes it, as it would in the
 * driver's own allocator. It isn't zeroed, which cuMemAlloc doesn't promise; what it holds never was another
 * process's.
 *
 * To the agent it is resident, so it is little and doesn't stay: it goes back after a moment without use, before this
 * process waits for VRAM or takes "out of memory" for an answer, when it becomes quiet (nothing of it is copied),
 * when its context goes, and before extents are named to a new agent, which never learns of it. Only while the agent
 * is connected for something else may it stay for some seconds more.
 *
 * Cached is only what nobody but this process's own streams can have reached, and those have been waited for: no
 * block shared by IPC, handed out for DMA, open to peers or with rights or attributes the application changed; none
 * freed while a capture was open, or under another or a green context, since the wait then wasn't for all of its
 * users.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "driver.h"
#include "free_cache.h"
#include "memory.h"
#include "process.h"

#define BLOCKS_MAX 16                /* blocks; few sizes alternate in a loop */
#define BYTES_MAX (64UL << 20)       /* of a process: less than a context takes anyway */
#define DEVICE_PART 64               /* and no more than this part of the device */
#define BLOCK_BYTES_MAX (32UL << 20) /* larger ones cost more to use than to get */

static struct {
    uint64_t address;
    struct kyb_block *block;
    int64_t since_ns;
} cached[BLOCKS_MAX]; /* oldest first; guarded by kyb_memory_lock */
static unsigned count;
static uint64_t bytes;

static _Atomic unsigned suspended; /* by how many threads, which wait for VRAM */

static uint64_t limit_of(int device)
{
    static uint64_t totals[KYB_DEVICES_MAX]; /* the driver may have to look */
    size_t total = 0;
    if (device < 0 || device >= KYB_DEVICES_MAX || !kyb_driver.cuDeviceTotalMem_v2) return 0;
    if (!totals[device] && kyb_driver.cuDeviceTotalMem_v2(&total, device) == CUDA_SUCCESS) totals[device] = total;
    return totals[device] / DEVICE_PART < BYTES_MAX ? totals[device] / DEVICE_PART : BYTES_MAX;
}

static void remove_at(unsigned i)
{
    cached[i].block->cached = false;
    bytes -= cached[i].block->size;
    memmove(cached + i, cached + i + 1, (--count - i) * sizeof *cached);
    atomic_store(&kyb_cached_blocks, count);
}

static unsigned index_of(const struct kyb_block *block)
{
    unsigned i = 0;
    while (cached[i].block != block) i++;
    return i;
}

static bool free_oldest(struct kyb_block **gone)
{
    if (kyb_free_allocation(kyb_mapping_or_cached(cached[0].address), gone) != CUDA_SUCCESS) return false;
    remove_at(0);
    return true;
}

static bool own_rights_only(const struct kyb_mapping *mapping)
{
    const struct kyb_mem_access *access = mapping->access;
    return mapping->access_count == 1 && access->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
           access->location.id == mapping->block->device && access->flags == CU_MEM_ACCESS_READ_WRITE;
}

bool kyb_free_cache_put(struct kyb_mapping *mapping, void *context, struct kyb_block **gone)
{
    struct kyb_block *block = mapping->block;
    if (block->piece_count != 1 || block->size > BLOCK_BYTES_MAX || block->exported || block->lent ||
        block->context != context || !own_rights_only(mapping) || mapping->sync_memops || atomic_load(&suspended))
        return false;
    uint64_t limit = limit_of(block->device), address = mapping->address;
    if (block->size > limit) return false;
    while (count == BLOCKS_MAX || bytes + block->size > limit)
        if (!free_oldest(gone)) return false;
    block->cached = true;
    cached[count].address = address;
    cached[count].block = block;
    cached[count].since_ns = kyb_now_ns();
    bytes += block->size;
    atomic_store(&kyb_cached_blocks, ++count);
    return true;
}

bool kyb_free_cache_take(uint64_t size, uint64_t requested, int device, void *context, uint64_t *address)
{
    if (!atomic_load(&kyb_cached_blocks)) return false;
    bool found = false;
    pthread_mutex_lock(&kyb_memory_lock);
    for (unsigned i = count; i-- > 0 && !found;) { /* the newest: what isn't needed grows old */
        struct kyb_block *block = cached[i].block;
        found = block->size == size && block->device == device && block->context == context;
        if (!found) continue;
        *address = cached[i].address;
        block->requested = requested;
        remove_at(i);
        struct kyb_mapping *mapping = kyb_mapping_at(*address);
        block->id = kyb_new_id(); /* other memory, as far as the application can see */
        mapping->buffer_id = kyb_new_id();
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    return found;
}

bool kyb_free_cache_unmap(int64_t idle_ns, struct kyb_block **gone)
{
    int64_t before = kyb_now_ns() - idle_ns;
    while (count && cached[0].since_ns <= before)
        if (!free_oldest(gone)) return false;
    return true;
}

bool kyb_free_cache_flush(int64_t idle_ns)
{
    if (!atomic_load(&kyb_cached_blocks)) return true;
    struct kyb_block *gone = NULL;
    pthread_mutex_lock(&kyb_memory_lock);
    bool all = kyb_free_cache_unmap(idle_ns, &gone);
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
    return all;
}

bool kyb_free_cache_suspend(void)
{
    atomic_fetch_add(&suspended, 1);
    bool some = atomic_load(&kyb_cached_blocks) != 0;
    kyb_free_cache_flush(0);
    return some;
}

void kyb_free_cache_resume(void)
{
    atomic_fetch_sub(&suspended, 1);
}

void kyb_free_context(void *context)
{
    struct kyb_block *gone = NULL;
    struct kyb_mapping *all;
    pthread_mutex_lock(&kyb_memory_lock);
    for (size_t i = kyb_mapping_range(0, UINT64_MAX, &all); i-- > 0;) {
        struct kyb_block *block = all[i].block;
        if (block->kind != KYB_BLOCK_ALLOCATION || block->context != context) continue;
        if (kyb_free_allocation(&all[i], &gone) == CUDA_SUCCESS && block->cached) remove_at(index_of(block));
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
}

uint64_t kyb_free_cache_bytes(int device)
{
    uint64_t sum = 0;
    if (!atomic_load(&kyb_cached_blocks)) return 0;
    pthread_mutex_lock(&kyb_memory_lock);
    for (unsigned i = 0; i < count; i++)
        if (cached[i].block->device == device) sum += cached[i].block->size;
    pthread_mutex_unlock(&kyb_memory_lock);
    return sum;
}

void kyb_free_cache_after_fork(void)
{
    count = 0;
    bytes = 0;
    atomic_store(&kyb_cached_blocks, 0);
    atomic_store(&suspended, 0);
}
