/* Managed memory, which the driver can't checkpoint: which there is, since cuMemFree doesn't tell what it frees. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "driver.h"
#include "gate.h"
#include "managed.h"
#include "unsupported.h"
#include "wrappers.h"

static pthread_mutex_t managed_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t *managed;
static size_t managed_count, managed_capacity;

int cuMemAllocManaged(void *address, size_t size, unsigned int flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuMemAllocManaged, (void *, size_t, unsigned int), (address, size, flags));
    if (result == CUDA_SUCCESS) {
        atomic_fetch_add(&kyb_managed, 1);
        pthread_mutex_lock(&managed_lock);
        if (managed_count == managed_capacity) {
            size_t capacity = managed_capacity ? 2 * managed_capacity : 64;
            uint64_t *larger = realloc(managed, capacity * sizeof *larger);
            if (larger) {
                managed = larger;
                managed_capacity = capacity;
            }
        }
        if (managed_count < managed_capacity) managed[managed_count++] = *(uint64_t *)address;
        pthread_mutex_unlock(&managed_lock);
    }
    kyb_leave();
    return result;
}

bool kyb_managed_freed(uint64_t address)
{
    bool found = false;
    pthread_mutex_lock(&managed_lock);
    for (size_t i = 0; i < managed_count && !found; i++)
        if (managed[i] == address) {
            managed[i] = managed[--managed_count];
            found = true;
        }
    pthread_mutex_unlock(&managed_lock);
    return found;
}
