/* Physical memory: a range of a file in the GPU's directory, fully allocated when it is made.
 *
 * Memory the application may export has a file of its own. The rest (cuMemAlloc, and cuMemCreate without a
 * handle type) shares one file per process and GPU, so that thousands of allocations cost one descriptor.
 */
#include "simulated.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct physical *physical_list;
uint64_t next_id = 1;

/* Allocate in pieces: a signal interrupts fallocate, which then starts over. */
static CUresult allocate_pages(int fd, off_t offset, size_t size)
{
    const size_t piece = (size_t)32 << 20;
    for (size_t done = 0; done < size;) {
        size_t n = size - done < piece ? size - done : piece;
        if (!fallocate(fd, 0, offset + (off_t)done, (off_t)n)) {
            done += n;
        } else if (errno != EINTR) {
            int error = errno;
            if (done)
                fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)done);
            return error == ENOSPC || error == ENOMEM || error == EDQUOT ? CUDA_ERROR_OUT_OF_MEMORY
                                                                         : CUDA_ERROR_OPERATING_SYSTEM;
        }
    }
    return CUDA_SUCCESS;
}

/* Give physical memory its backing: its own file, or the next range of the arena. */
static CUresult assign_backing(struct physical *physical)
{
    struct gpu *gpu = &gpus[physical->gpu];
    bool own_file = physical->origin == ORIGIN_CREATED;
    int fd;

    if (gpu->limit && gpu->own + physical->size > gpu->limit)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (own_file || gpu->arena < 0) {
        fd = gpu_file(gpu);
        if (fd < 0)
            return errno == ENOSPC ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_OPERATING_SYSTEM;
        if (!own_file) {
            gpu->arena = fd;
            gpu->arena_end = 0;
        }
    } else {
        fd = gpu->arena;
    }
    off_t offset = own_file ? 0 : gpu->arena_end;
    CUresult result = allocate_pages(fd, offset, physical->size);
    if (result) {
        if (own_file)
            close(fd);
        return result;
    }
    physical->fd = own_file ? fd : -1;
    physical->offset = offset;
    if (!own_file)
        gpu->arena_end += (off_t)physical->size;
    gpu->own += physical->size;
    physical->placed = true;
    return CUDA_SUCCESS;
}

/* Give the pages back and forget the backing. The file of exported memory lives on in other descriptors. */
void physical_close(struct physical *physical)
{
    struct gpu *gpu = &gpus[physical->gpu];
    if (!physical->placed)
        return;
    if (physical->fd >= 0) {
        close(physical->fd);
    } else if (gpu->arena >= 0) {
        while (fallocate(gpu->arena, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, physical->offset,
                         (off_t)physical->size) &&
               errno == EINTR) {
        }
    }
    if (physical->origin == ORIGIN_NATIVE || physical->origin == ORIGIN_CREATED)
        gpu->own -= physical->size;
    physical->fd = -1;
    physical->placed = false;
}

static void link_in(struct physical *physical)
{
    physical->id = next_id++;
    physical->next = physical_list;
    if (physical_list)
        physical_list->previous = physical;
    physical_list = physical;
}

/* New zeroed memory with one reference. */
CUresult physical_create(int gpu, enum origin origin, size_t size, struct physical **out)
{
    struct physical *physical = calloc(1, sizeof *physical);
    if (!physical)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *physical = (struct physical){.gpu = gpu, .origin = origin, .fd = -1, .size = size, .references = 1};
    CUresult result = assign_backing(physical);
    if (result) {
        free(physical);
        return result;
    }
    link_in(physical);
    *out = physical;
    return CUDA_SUCCESS;
}

/* Memory of another process, one reference. Owns the descriptor from here on, also on failure. */
CUresult physical_adopt(int gpu, enum origin origin, int fd, off_t offset, size_t size, struct physical **out)
{
    struct physical *physical = calloc(1, sizeof *physical);
    if (!physical) {
        close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *physical = (struct physical){
        .gpu = gpu, .origin = origin, .fd = fd, .offset = offset, .size = size, .references = 1, .placed = true};
    link_in(physical);
    *out = physical;
    return CUDA_SUCCESS;
}

void physical_put(struct physical *physical)
{
    if (--physical->references)
        return;
    physical_close(physical);
    if (physical->saved)
        munmap(physical->saved, physical->size);
    if (physical->previous)
        physical->previous->next = physical->next;
    else
        physical_list = physical->next;
    if (physical->next)
        physical->next->previous = physical->previous;
    free(physical);
}

bool physical_valid(const struct physical *physical)
{
    for (const struct physical *p = physical_list; p; p = p->next)
        if (p == physical)
            return p->handles > 0;
    return false;
}

int physical_descriptor(const struct physical *physical)
{
    return physical->fd >= 0 ? physical->fd : gpus[physical->gpu].arena;
}

/* Copy the content to private host memory. The backing stays until physical_close. */
CUresult physical_save(struct physical *physical)
{
    char *copy = mmap(NULL, physical->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (copy == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t began = clock_ns();
    int fd = physical_descriptor(physical);
    for (size_t done = 0; done < physical->size;) {
        ssize_t n = pread(fd, copy + done, physical->size - done, physical->offset + (off_t)done);
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0 || errno != EINTR) {
            munmap(copy, physical->size);
            return CUDA_ERROR_OPERATING_SYSTEM;
        }
    }
    link_delay(physical->size, began);
    physical->saved = copy;
    return CUDA_SUCCESS;
}

/* New backing, old content; the host copy stays until the caller drops it. */
CUresult physical_restore(struct physical *physical)
{
    void *saved = physical->saved;
    CUresult result = assign_backing(physical);
    if (result)
        return result;
    uint64_t began = clock_ns();
    int fd = physical_descriptor(physical);
    for (size_t done = 0; done < physical->size;) {
        ssize_t n = pwrite(fd, (char *)saved + done, physical->size - done, physical->offset + (off_t)done);
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0 || errno != EINTR) {
            return CUDA_ERROR_OPERATING_SYSTEM;
        }
    }
    link_delay(physical->size, began);
    return CUDA_SUCCESS;
}
