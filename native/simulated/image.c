/* What a checkpoint does to the process's memory, and a restore undoes.
 *
 * Saved: memory the process made itself, mapped or not. Refused while it can be: managed memory and open
 * legacy IPC. Not refused, though it should be: imported memory, after which the process can't be restored.
 * That is what the real driver does, and why the engine must look first.
 */
#include "simulated.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool doomed; /* something imported was alive at the last save */

static bool ours(const struct physical *physical)
{
    return physical->origin == ORIGIN_NATIVE || physical->origin == ORIGIN_CREATED;
}

static void drop_saved(void)
{
    for (struct physical *p = physical_list; p; p = p->next)
        if (p->saved) {
            munmap(p->saved, p->size);
            p->saved = NULL;
        }
}

static void close_all(void)
{
    for (struct physical *p = physical_list; p; p = p->next)
        physical_close(p);
    for (int i = 0; i < gpu_count; i++) {
        if (gpus[i].arena >= 0)
            close(gpus[i].arena);
        gpus[i].arena = -1;
    }
}

static CUresult save(void)
{
    for (size_t i = 0; i < space_count; i++)
        if (space_ranges[i]->kind == KIND_MANAGED || space_ranges[i]->kind == KIND_IPC || space_ranges[i]->exported)
            return CUDA_ERROR_NOT_SUPPORTED;
    doomed = false;
    for (struct physical *p = physical_list; p; p = p->next) {
        CUresult result = ours(p) ? physical_save(p) : CUDA_SUCCESS;
        if (result) {
            drop_saved();
            return result;
        }
        doomed = doomed || !ours(p);
    }
    for (size_t i = 0; i < space_count; i++)
        if (space_ranges[i]->physical)
            space_unmap(space_ranges[i]->base, space_ranges[i]->physical->size);
    for (struct slab *slab = slab_list; slab; slab = slab->next)
        space_unmap(slab->base, GRANULARITY);
    close_all();
    return CUDA_SUCCESS;
}

static CUresult map_all(void)
{
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < space_count && !result; i++)
        if (space_ranges[i]->physical)
            result = space_map(space_ranges[i]->base, space_ranges[i]->physical, space_ranges[i]->access);
    for (struct slab *slab = slab_list; slab && !result; slab = slab->next)
        result = space_map(slab->base, slab->physical, CU_MEM_ACCESS_READ_WRITE);
    return result;
}

static CUresult restore(const CUcheckpointGpuPair *pairs, unsigned count)
{
    CUresult result = doomed ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;

    for (int i = 0; i < gpu_count && !result; i++) {
        CUuuid wanted = gpus[i].uuid;
        for (unsigned pair = 0; pair < count; pair++)
            if (!memcmp(&pairs[pair].oldUuid, &gpus[i].uuid, sizeof wanted)) {
                wanted = pairs[pair].newUuid;
                break;
            }
        result = gpu_reopen(&gpus[i], &wanted);
    }
    for (struct physical *p = physical_list; p && !result; p = p->next)
        result = physical_restore(p);
    if (!result)
        result = map_all();
    if (result)
        close_all(); /* still checkpointed, and nothing taken */
    else
        drop_saved();
    return result;
}

CUresult image_save(void)
{
    pthread_mutex_lock(&memory_lock);
    CUresult result = save();
    pthread_mutex_unlock(&memory_lock);
    return result;
}

CUresult image_restore(const CUcheckpointGpuPair *pairs, unsigned count)
{
    pthread_mutex_lock(&memory_lock);
    CUresult result = restore(pairs, count);
    pthread_mutex_unlock(&memory_lock);
    return result;
}

/* Whether a restore that failed can never succeed. */
bool image_lost(void) { return doomed; }
