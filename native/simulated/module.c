/* Modules and libraries: an image is the bytes "KYBERNATE-SIMULATED" and a zero; whatever follows is of no
 * effect, and every image holds all built-in kernels. Any other image is refused. */
#include "simulated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x656c75646f6dULL

static const char image_mark[] = "KYBERNATE-SIMULATED";

struct function {
    struct module *module;
    const struct kernel *kernel;
};

struct module {
    uint64_t magic;
    struct function functions[16];
};

/* Handles of modules are checked, those of functions are not (nor are they by the real driver). */
const struct kernel *function_kernel(CUfunction function) { return function ? function->kernel : NULL; }

static CUresult load(struct module **out, const void *image)
{
    if (!out || !image)
        return CUDA_ERROR_INVALID_VALUE;
    if (strncmp(image, image_mark, sizeof image_mark)) {
        fprintf(stderr, "simulated CUDA driver: this program brings a real GPU kernel, which can't run here\n");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    struct module *module = calloc(1, sizeof *module);
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    _Static_assert(sizeof module->functions / sizeof *module->functions >= 6, "room for every kernel");
    module->magic = MAGIC;
    for (size_t i = 0; i < kernel_count; i++)
        module->functions[i] = (struct function){module, &kernels[i]};
    *out = module;
    return CUDA_SUCCESS;
}

static CUresult load_file(struct module **out, const char *path)
{
    char head[sizeof image_mark] = "";
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file)
        return CUDA_ERROR_FILE_NOT_FOUND;
    size_t n = fread(head, 1, sizeof head, file);
    fclose(file);
    return n == sizeof head ? load(out, head) : CUDA_ERROR_INVALID_IMAGE;
}

static CUresult unload(struct module *module)
{
    if (!module || module->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    module->magic = 0;
    free(module);
    return CUDA_SUCCESS;
}

static CUresult find(CUfunction *out, struct module *module, const char *name)
{
    if (!out || !name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!module || module->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    for (size_t i = 0; i < kernel_count; i++)
        if (!strcmp(kernels[i].name, name)) {
            *out = &module->functions[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

API(cuModuleLoadData, CUmodule *out, const void *image)
{
    ENTER_CONTEXT(context);
    return load(out, image);
}

API(cuModuleLoadDataEx, CUmodule *out, const void *image, unsigned count, int *options, void **values)
{
    (void)count;
    (void)options;
    (void)values;
    return cuModuleLoadData(out, image);
}
API(cuModuleLoadFatBinary, CUmodule *out, const void *image) { return cuModuleLoadData(out, image); }

API(cuModuleLoad, CUmodule *out, const char *path)
{
    ENTER_CONTEXT(context);
    return load_file(out, path);
}

API(cuModuleUnload, CUmodule module)
{
    ENTER_CONTEXT(context);
    CUresult result = context_wait_idle(context);
    return result ? result : unload(module);
}

API(cuModuleGetFunction, CUfunction *out, CUmodule module, const char *name)
{
    ENTER_CONTEXT(context);
    return find(out, module, name);
}

API(cuModuleGetFunctionCount, unsigned *count, CUmodule module)
{
    ENTER();
    if (!count || !module)
        return CUDA_ERROR_INVALID_VALUE;
    *count = (unsigned)kernel_count;
    return CUDA_SUCCESS;
}

API(cuModuleGetGlobal_v2, CUdeviceptr *address, size_t *size, CUmodule module, const char *name)
{
    ENTER_CONTEXT(context);
    (void)address;
    (void)size;
    return module && name ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_VALUE;
}

API(cuModuleGetLoadingMode, int *mode)
{
    ENTER();
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

API(cuLibraryLoadData, CUlibrary *out, const void *image, int *jit, void **jit_values, unsigned jit_count, int *options,
    void **values, unsigned count)
{
    ENTER();
    (void)jit;
    (void)jit_values;
    (void)jit_count;
    (void)options;
    (void)values;
    (void)count;
    return load(out, image);
}

API(cuLibraryLoadFromFile, CUlibrary *out, const char *path, int *jit, void **jit_values, unsigned jit_count,
    int *options, void **values, unsigned count)
{
    ENTER();
    (void)jit;
    (void)jit_values;
    (void)jit_count;
    (void)options;
    (void)values;
    (void)count;
    return load_file(out, path);
}

API(cuLibraryUnload, CUlibrary library)
{
    ENTER();
    return unload(library);
}

API(cuLibraryGetKernel, CUkernel *out, CUlibrary library, const char *name)
{
    ENTER();
    return find(out, library, name);
}

API(cuLibraryGetModule, CUmodule *out, CUlibrary library)
{
    ENTER_CONTEXT(context);
    if (!out || !library)
        return CUDA_ERROR_INVALID_VALUE;
    *out = library;
    return CUDA_SUCCESS;
}

API(cuKernelGetFunction, CUfunction *out, CUkernel kernel)
{
    ENTER_CONTEXT(context);
    if (!out || !kernel)
        return CUDA_ERROR_INVALID_VALUE;
    *out = kernel;
    return CUDA_SUCCESS;
}

API(cuKernelGetLibrary, CUlibrary *out, CUkernel kernel)
{
    ENTER();
    if (!out || !kernel)
        return CUDA_ERROR_INVALID_VALUE;
    *out = kernel->module;
    return CUDA_SUCCESS;
}

API(cuFuncGetModule, CUmodule *out, CUfunction function)
{
    ENTER();
    if (!out || !function)
        return CUDA_ERROR_INVALID_VALUE;
    *out = function->module;
    return CUDA_SUCCESS;
}

API(cuFuncGetName, const char **name, CUfunction function)
{
    ENTER();
    if (!name || !function)
        return CUDA_ERROR_INVALID_VALUE;
    *name = function->kernel->name;
    return CUDA_SUCCESS;
}

API(cuKernelGetName, const char **name, CUkernel kernel) { return cuFuncGetName(name, kernel); }

API(cuFuncGetParamInfo, CUfunction function, size_t index, size_t *offset, size_t *size)
{
    ENTER();
    if (!function || !offset || index >= function->kernel->count)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    for (size_t i = 0; i < index; i++)
        *offset = round_up(*offset, function->kernel->bytes[i]) + function->kernel->bytes[i];
    *offset = round_up(*offset, function->kernel->bytes[index]);
    if (size)
        *size = function->kernel->bytes[index];
    return CUDA_SUCCESS;
}

API(cuKernelGetParamInfo, CUkernel kernel, size_t index, size_t *offset, size_t *size)
{
    return cuFuncGetParamInfo(kernel, index, offset, size);
}

API(cuFuncGetAttribute, int *value, int attribute, CUfunction function)
{
    ENTER();
    if (!value || !function || attribute < 0 || attribute > 15)
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 0: /* threads per block */
        *value = 1024;
        break;
    case 4: /* registers */
        *value = 32;
        break;
    case 5: /* PTX and binary version */
    case 6:
        *value = 90;
        break;
    case 8: /* dynamic shared memory */
        *value = 48 << 10;
        break;
    default:
        *value = 0;
    }
    return CUDA_SUCCESS;
}

API(cuFuncSetAttribute, CUfunction function, int attribute, int value)
{
    ENTER();
    (void)value;
    return function && attribute >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuFuncSetCacheConfig, CUfunction function, int config)
{
    ENTER();
    (void)config;
    return function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuKernelGetAttribute, int *value, int attribute, CUkernel kernel, CUdevice device)
{
    (void)device;
    return cuFuncGetAttribute(value, attribute, kernel);
}

API(cuFuncIsLoaded, int *state, CUfunction function)
{
    ENTER();
    if (!state || !function)
        return CUDA_ERROR_INVALID_VALUE;
    *state = 1;
    return CUDA_SUCCESS;
}

API(cuFuncLoad, CUfunction function)
{
    ENTER();
    return function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuOccupancyMaxActiveBlocksPerMultiprocessor, int *blocks, CUfunction function, int size, size_t shared)
{
    ENTER();
    (void)shared;
    if (!blocks || !function || size <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    *blocks = size <= 2048 ? 2048 / size : 0;
    return CUDA_SUCCESS;
}
