/* Simulated GPUs: one directory each, named by KYBERNATE_SIMULATED_GPU (several: separated by colons).
 *
 * The directory is a tmpfs of the size of the VRAM, so that the kernel itself accounts for it across
 * processes, also for those that are killed. Where nothing could be mounted, a file `size` in a plain
 * directory limits each process by itself. The identity is the target of a symbolic link `uuid` (a link,
 * since that takes no page of the tmpfs), else the directory's device and inode.
 */
#include "simulated.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct gpu gpus[GPUS_MAX];
int gpu_count;

static bool parse_uuid(const char *text, CUuuid *uuid)
{
    size_t have = 0;
    if (!strncmp(text, "GPU-", 4))
        text += 4;
    for (; *text && have < sizeof uuid->bytes; text++) {
        if (*text == '-')
            continue;
        unsigned byte;
        if (sscanf(text, "%2x", &byte) != 1)
            return false;
        uuid->bytes[have++] = (unsigned char)byte;
        text++;
        if (!*text)
            break;
    }
    return have == sizeof uuid->bytes;
}

static bool read_small(const char *directory, const char *name, char *out, size_t size)
{
    char path[PATH_BYTES + 16];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    ssize_t n = readlink(path, out, size - 1);
    if (n < 0) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return false;
        n = read(fd, out, size - 1);
        close(fd);
    }
    if (n <= 0)
        return false;
    out[n] = 0;
    return true;
}

static bool open_one(struct gpu *gpu, const char *path)
{
    struct stat status;
    char text[128];

    /* A file system that can't make unlinked files can't stand for a GPU. */
    if (strlen(path) >= sizeof gpu->path || stat(path, &status) || !S_ISDIR(status.st_mode))
        return false;
    memmove(gpu->path, path, strlen(path) + 1);
    gpu->device = status.st_dev;
    if (!read_small(path, "uuid", text, sizeof text) || !parse_uuid(text, &gpu->uuid)) {
        memset(&gpu->uuid, 0, sizeof gpu->uuid);
        uint64_t parts[2] = {(uint64_t)status.st_dev, (uint64_t)status.st_ino};
        memcpy(&gpu->uuid, parts, sizeof parts);
    }
    gpu->limit = read_small(path, "size", text, sizeof text) ? strtoull(text, NULL, 10) : 0;
    int fd = gpu_file(gpu);
    if (fd < 0)
        return false;
    close(fd);
    return true;
}

/* The GPUs the environment names. CUDA_ERROR_NO_DEVICE: none, or one of them is no usable directory. */
CUresult gpus_open(void)
{
    const char *list = getenv("KYBERNATE_SIMULATED_GPU");
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");

    gpu_count = 0;
    if (visible && (!*visible || !strcmp(visible, "-1")))
        return CUDA_ERROR_NO_DEVICE;
    while (list && *list && gpu_count < GPUS_MAX) {
        size_t length = strcspn(list, ":");
        char path[PATH_BYTES];
        if (length >= sizeof path)
            return CUDA_ERROR_NO_DEVICE;
        memcpy(path, list, length);
        path[length] = 0;
        if (length) {
            struct gpu *gpu = &gpus[gpu_count];
            gpu->arena = -1;
            if (!open_one(gpu, path)) {
                gpu_count = 0;
                return CUDA_ERROR_NO_DEVICE;
            }
            gpu_count++;
        }
        list += length;
        if (*list)
            list++;
    }
    return gpu_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

/* After a checkpoint: the same path may be another GPU, and the caller may ask for another path of the list.
 * NULL: whatever GPU is at the old path now. */
CUresult gpu_reopen(struct gpu *gpu, const CUuuid *wanted)
{
    char path[PATH_BYTES];
    struct gpu candidate = *gpu;

    memcpy(path, gpu->path, sizeof path);
    if (open_one(&candidate, path) && (!wanted || !memcmp(&candidate.uuid, wanted, sizeof *wanted))) {
        gpu->uuid = candidate.uuid;
        gpu->device = candidate.device;
        gpu->limit = candidate.limit;
        return CUDA_SUCCESS;
    }
    const char *list = getenv("KYBERNATE_SIMULATED_GPU");
    while (wanted && list && *list) {
        size_t length = strcspn(list, ":");
        if (length && length < sizeof path) {
            memcpy(path, list, length);
            path[length] = 0;
            if (open_one(&candidate, path) && !memcmp(&candidate.uuid, wanted, sizeof *wanted)) {
                memcpy(gpu->path, candidate.path, sizeof gpu->path);
                gpu->uuid = candidate.uuid;
                gpu->device = candidate.device;
                gpu->limit = candidate.limit;
                return CUDA_SUCCESS;
            }
        }
        list += length;
        if (*list)
            list++;
    }
    return wanted ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NO_DEVICE;
}

bool gpu_valid(CUdevice device) { return device >= 0 && device < gpu_count; }

uint64_t gpu_total(const struct gpu *gpu)
{
    struct statvfs status;
    if (gpu->limit)
        return gpu->limit;
    return statvfs(gpu->path, &status) ? 0 : (uint64_t)status.f_blocks * status.f_frsize;
}

uint64_t gpu_free(const struct gpu *gpu)
{
    struct statvfs status;
    if (gpu->limit)
        return gpu->limit > gpu->own ? gpu->limit - gpu->own : 0;
    return statvfs(gpu->path, &status) ? 0 : (uint64_t)status.f_bavail * status.f_frsize;
}

/* A new unlinked file in the GPU's directory, or -1. Never 0 to 2, which programs close and open again. */
int gpu_file(const struct gpu *gpu)
{
    int fd = open(gpu->path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 && fd <= 2) {
        int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = high;
    }
    return fd;
}
