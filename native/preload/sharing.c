/* Sharing with others: calls that only are counted, since they forbid a pause, and legacy CUDA IPC between the
 * processes of one workload.
 *
 * Legacy IPC does not know memory of the virtual-memory API, which extents are, so handles of extents are our own:
 * they name the owner, and whoever opens one asks the owner's control thread for the descriptors.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocate.h"
#include "driver.h"
#include "gate.h"
#include "memory.h"
#include "packets.h"
#include "process.h"
#include "sharing.h"
#include "unsupported.h"
#include "wrappers.h"

/* ---- counted only ---- */

int cuImportExternalMemory(void *memory, void *description)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuImportExternalMemory, (void *, void *), (memory, description));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_external, 1);
    kyb_leave();
    return result;
}

int cuDestroyExternalMemory(void *memory)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuDestroyExternalMemory, (void *), (memory));
    if (result == CUDA_SUCCESS) atomic_fetch_sub(&kyb_external, 1);
    kyb_leave();
    return result;
}

int cuMulticastCreate(void *handle, void *properties)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuMulticastCreate, (void *, void *), (handle, properties));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_multicast, 1);
    kyb_leave();
    return result;
}

/* For good, as multicast objects: memory bound to one stays in use by others. */
int cuLogicalEndpointCreate(unsigned int endpoint, void *properties)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuLogicalEndpointCreate, (unsigned int, void *), (endpoint, properties));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_endpoints, 1);
    kyb_leave();
    return result;
}

int cuLogicalEndpointImport(unsigned int endpoint, void *handle, int type)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuLogicalEndpointImport, (unsigned int, void *, int), (endpoint, handle, type));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_endpoints, 1);
    kyb_leave();
    return result;
}

int cuMemGetHandleForAddressRange(void *handle, uint64_t address, size_t size, int type, uint64_t flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    int result = CUDA_ERROR_INVALID_VALUE;
    if (!kyb_cached_within(address, size))
        result = KYB_DRIVER(cuMemGetHandleForAddressRange, (void *, uint64_t, size_t, int, uint64_t),
                            (handle, address, size, type, flags));
    if (result == CUDA_SUCCESS) {
        atomic_fetch_add(&kyb_exports, 1);
        struct kyb_mapping *mapping = kyb_mapping_at(address);
        if (mapping) mapping->block->lent = true;
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_leave();
    return result;
}

int cuIpcGetEventHandle(void *handle, void *event)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuIpcGetEventHandle, (void *, void *), (handle, event));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_ipc_events, 1);
    kyb_leave();
    return result;
}

int cuIpcOpenEventHandle(void *event, struct kyb_ipc_handle handle)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuIpcOpenEventHandle, (void *, struct kyb_ipc_handle), (event, handle));
    if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_ipc_events, 1);
    kyb_leave();
    return result;
}

/* ---- legacy IPC ---- */

struct ticket { /* laid into the 64 bytes of a CUipcMemHandle */
    char magic[8];
    uint64_t address, size;
    int32_t owner, reserved;
};
_Static_assert(sizeof(struct ticket) <= sizeof(struct kyb_ipc_handle), "CUipcMemHandle");
static const char magic[8] = "KYBIPC1";

int cuIpcGetMemHandle(void *handle, uint64_t address)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_enabled && handle ? kyb_mapping_at(address) : NULL;
    bool ours = mapping && mapping->block->kind == KYB_BLOCK_ALLOCATION, freed = kyb_cached_within(address, 1);
    if (ours) {
        struct ticket ticket = {.address = mapping->address, .size = mapping->block->requested, .owner = getpid()};
        memcpy(ticket.magic, magic, sizeof magic);
        memset(handle, 0, sizeof(struct kyb_ipc_handle));
        memcpy(handle, &ticket, sizeof ticket);
        if (!mapping->block->exported) atomic_fetch_add(&kyb_ipc_exported, 1);
        mapping->block->exported = true;
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    int result = freed ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    if (!ours && !freed) {
        result = KYB_DRIVER(cuIpcGetMemHandle, (void *, uint64_t), (handle, address));
        /* For good: nobody tells us when it is over. */
        if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_ipc_exported, 1);
    }
    kyb_leave();
    return result;
}

/* On the owner's control thread. */
bool kyb_share(uint64_t address, struct kyb_extent *records, int *fds, size_t max, size_t *count, uint64_t *size)
{
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_mapping_at(address);
    bool shared =
        mapping && mapping->address == address && mapping->block->exported && mapping->block->piece_count <= max;
    if (shared) {
        *count = mapping->block->piece_count;
        *size = mapping->block->requested;
        for (size_t i = 0; i < *count; i++) {
            records[i] =
                (struct kyb_extent){.id = mapping->block->pieces[i].id, .size = mapping->block->pieces[i].size};
            memcpy(records[i].gpu, mapping->block->gpu, 16);
            fds[i] = mapping->block->pieces[i].fd;
        }
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    return shared;
}

static int open_ticket(uint64_t *address, const struct ticket *ticket)
{
    int device;
    if (kyb_driver.cuCtxGetDevice(&device) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
    char path[128];
    snprintf(path, sizeof path, "%s/control/%d.sock", kyb_run_directory, (int)ticket->owner);
    int socket = kyb_connect(path, 10);
    if (socket < 0) return CUDA_ERROR_INVALID_VALUE;
    struct kyb_message message = {.type = KYB_SHARE, .argument = ticket->address};
    struct kyb_extent records[KYB_RECORDS_MAX];
    int fds[KYB_RECORDS_MAX];
    size_t fd_count = 0;
    struct kyb_block *block = NULL;
    if (kyb_send(socket, &message, NULL, NULL) && kyb_receive(socket, &message, records, fds, &fd_count) &&
        message.status == KYB_OK && fd_count == message.count)
        block = kyb_block_new(KYB_BLOCK_SHARED, fd_count);
    close(socket);
    if (!block) {
        for (size_t i = 0; i < fd_count; i++) close(fds[i]);
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < fd_count; i++) {
        block->pieces[i] = (struct kyb_piece){.id = records[i].id, .size = records[i].size, .fd = fds[i]};
        block->size += records[i].size;
    }
    block->requested = message.argument;
    block->device = device;
    int result = kyb_map_allocation(block, address);
    if (result != CUDA_SUCCESS)
        kyb_forget(block);
    else
        atomic_fetch_add(&kyb_ipc_opened, 1);
    return result;
}

#define OPEN(name)                                                                                              \
    int name(void *address, struct kyb_ipc_handle handle, unsigned int flags)                                   \
    {                                                                                                           \
        struct ticket ticket;                                                                                   \
        memcpy(&ticket, handle.bytes, sizeof ticket);                                                           \
        kyb_enter(KYB_GATE_MEMORY);                                                                             \
        int result;                                                                                             \
        if (kyb_enabled && address && memcmp(ticket.magic, magic, sizeof magic) == 0)                           \
            result = open_ticket(address, &ticket);                                                             \
        else {                                                                                                  \
            result = KYB_DRIVER(name, (void *, struct kyb_ipc_handle, unsigned int), (address, handle, flags)); \
            if (result == CUDA_SUCCESS) atomic_fetch_add(&kyb_ipc_opened, 1);                                   \
        }                                                                                                       \
        kyb_leave();                                                                                            \
        return result;                                                                                          \
    }

OPEN(cuIpcOpenMemHandle)
OPEN(cuIpcOpenMemHandle_v2)

int cuIpcCloseMemHandle(uint64_t address)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_enabled ? kyb_mapping_at(address) : NULL;
    bool ours = mapping && mapping->address == address && mapping->block->kind == KYB_BLOCK_SHARED;
    struct kyb_block *gone = NULL;
    int result = ours ? kyb_free_allocation(mapping, &gone) : CUDA_SUCCESS;
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
    if (!ours) result = KYB_DRIVER(cuIpcCloseMemHandle, (uint64_t), (address));
    if (result == CUDA_SUCCESS) atomic_fetch_sub(&kyb_ipc_opened, 1);
    kyb_leave();
    return result;
}
