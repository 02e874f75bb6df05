/* Freed allocations that wait for the next cuMemAlloc of their size.
 *
 * Asking the agent for memory and giving it back costs ten times what the driver's own cuMemAlloc and cuMemFree do. So a
 * freed block stays where it is, mapped with its rights, and the next allocation of its size, device and context takes it
 * without asking anybody.
 *
 * To the application such memory is gone: whatever names its address is answered as the driver answers for memory that isn't
 * there, a second cuMemFree included. A stale pointer still reads and writes it, as it would in the driver's own allocator.
 * It isn't zeroed, which cuMemAlloc doesn't promise; what it holds never was another process's.
 *
 * To the agent it is resident, so it is little and doesn't stay: it goes back after a moment without use, before this process
 * waits for room or takes "out of memory" for an answer, when it becomes quiet (nothing of it is copied), when its context
 * goes, and before extents are named to a new agent, which never learns of it. Only while the agent is connected for something
 * else may it stay for some seconds more.
 *
 * Kept is only what nobody but this process's own streams can have reached, and those have been waited for: no block shared by
 * IPC, handed out for DMA, open to peers or with rights or attributes the application changed; none freed while a capture was open, or
 * under another or a green context, since the wait then wasn't for all of its users.
 */
#include <string.h>

#include "kybernate.h"

#define KEPT_MAX 16                   /* blocks; few sizes alternate in a loop */
#define KEPT_BYTES (64UL << 20)       /* of a process: less than a context takes anyway */
#define KEPT_SHARE 64                 /* and no more than this part of the device */
#define KEPT_BLOCK_BYTES (32UL << 20) /* larger ones cost more to use than to get */

static struct {
    uint64_t address;
    struct kyb_block *block;
    int64_t since_ns;
} kept[KEPT_MAX]; /* oldest first; guarded by kyb_memory_lock */
static unsigned count;
static uint64_t bytes;

_Atomic unsigned kyb_kept_count;
static _Atomic unsigned needs; /* threads that wait for room: nothing is kept meanwhile */

static uint64_t limit_of(int device)
{
    static uint64_t totals[KYB_DEVICES_MAX]; /* the driver may have to look */
    size_t total = 0;
    if (device < 0 || device >= KYB_DEVICES_MAX || !kyb_driver.cuDeviceTotalMem_v2) return 0;
    if (!totals[device] && kyb_driver.cuDeviceTotalMem_v2(&total, device) == CUDA_SUCCESS) totals[device] = total;
    return totals[device] / KEPT_SHARE < KEPT_BYTES ? totals[device] / KEPT_SHARE : KEPT_BYTES;
}

static void remove_at(unsigned i)
{
    kept[i].block->kept = false;
    bytes -= kept[i].block->size;
    memmove(kept + i, kept + i + 1, (--count - i) * sizeof *kept);
    atomic_store(&kyb_kept_count, count);
}

void kyb_kept_gone(struct kyb_block *block)
{
    for (unsigned i = 0; i < count; i++)
        if (kept[i].block == block) {
            remove_at(i);
            return;
        }
}

static bool own_rights_only(const struct kyb_mapping *mapping)
{
    const struct kyb_mem_access *access = mapping->access;
    return mapping->access_count == 1 && access->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
           access->location.id == mapping->block->device && access->flags == CU_MEM_ACCESS_READ_WRITE;
}

bool kyb_keep(struct kyb_mapping *mapping, void *context, struct kyb_block **gone)
{
    struct kyb_block *block = mapping->block;
    if (block->piece_count != 1 || block->size > KEPT_BLOCK_BYTES || block->exported || block->lent ||
        block->context != context || !own_rights_only(mapping) || mapping->sync_memops || atomic_load(&needs))
        return false;
    uint64_t limit = limit_of(block->device), address = mapping->address;
    if (block->size > limit) return false;
    while (count == KEPT_MAX || bytes + block->size > limit)
        if (kyb_free_allocation(kyb_mapping_even_kept(kept[0].address), gone) != CUDA_SUCCESS) return false;
    block->kept = true;
    kept[count].address = address;
    kept[count].block = block;
    kept[count].since_ns = kyb_now_ns();
    bytes += block->size;
    atomic_store(&kyb_kept_count, ++count);
    return true;
}

bool kyb_take_kept(uint64_t size, uint64_t requested, int device, void *context, uint64_t *address)
{
    if (!atomic_load(&kyb_kept_count)) return false;
    bool found = false;
    pthread_mutex_lock(&kyb_memory_lock);
    for (unsigned i = count; i-- > 0 && !found;) { /* the newest: what isn't needed grows old */
        struct kyb_block *block = kept[i].block;
        found = block->size == size && block->device == device && block->context == context;
        if (!found) continue;
        *address = kept[i].address;
        block->requested = requested;
        remove_at(i);
        struct kyb_mapping *mapping = kyb_mapping_at(*address);
        block->id = kyb_new_id(); /* other memory, as far as the application can see */
        mapping->buffer_id = kyb_new_id();
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    return found;
}

bool kyb_unmap_kept(int64_t idle_ns, struct kyb_block **gone)
{
    int64_t before = kyb_now_ns() - idle_ns;
    while (count && kept[0].since_ns <= before)
        if (kyb_free_allocation(kyb_mapping_even_kept(kept[0].address), gone) != CUDA_SUCCESS) return false;
    return true;
}

bool kyb_give_back_kept(int64_t idle_ns)
{
    if (!atomic_load(&kyb_kept_count)) return true;
    struct kyb_block *gone = NULL;
    pthread_mutex_lock(&kyb_memory_lock);
    bool all = kyb_unmap_kept(idle_ns, &gone);
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
    return all;
}

bool kyb_need_begins(void)
{
    atomic_fetch_add(&needs, 1);
    bool some = atomic_load(&kyb_kept_count) != 0;
    kyb_give_back_kept(0);
    return some;
}

void kyb_need_ends(void)
{
    atomic_fetch_sub(&needs, 1);
}

uint64_t kyb_kept_bytes(int device)
{
    uint64_t sum = 0;
    if (!atomic_load(&kyb_kept_count)) return 0;
    pthread_mutex_lock(&kyb_memory_lock);
    for (unsigned i = 0; i < count; i++)
        if (kept[i].block->device == device) sum += kept[i].block->size;
    pthread_mutex_unlock(&kyb_memory_lock);
    return sum;
}

void kyb_kept_after_fork(void)
{
    count = 0;
    bytes = 0;
    atomic_store(&kyb_kept_count, 0);
    atomic_store(&needs, 0);
}
