/* Finds the driver's functions: those that have wrappers, and the few that we call ourselves. */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "driver.h"

static const char *const names[KYB_CALLS] = {
#define KYB_GATED(gate, symbol, parameters, arguments) #symbol,
#define KYB_CUSTOM(symbol, parameters) #symbol,
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM
};

_Atomic(void *) kyb_real[KYB_CALLS];
struct kyb_driver kyb_driver;

static struct kyb_resolvers resolvers;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* From the linker: the first and the last byte of this library. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

/* ---- the C library's own dlsym, past ours: read from its symbol table ---- */

struct search {
    const char *symbol;
    void *found;
};

static size_t symbol_count(const uint32_t *gnu_hash)
{
    /* The table has no length of its own: the last symbol is the end of the last chain. */
    uint32_t buckets = gnu_hash[0], offset = gnu_hash[1], bloom = gnu_hash[2];
    const uint32_t *bucket = (const uint32_t *)((const ElfW(Addr) *)(gnu_hash + 4) + bloom);
    const uint32_t *chain = bucket + buckets;
    uint32_t last = 0;
    for (uint32_t i = 0; i < buckets; i++)
        if (bucket[i] > last) last = bucket[i];
    if (last < offset) return offset;
    while (!(chain[last - offset] & 1)) last++;
    return last + 1;
}

static int look_in(struct dl_phdr_info *object, size_t size, void *argument)
{
    (void)size;
    struct search *search = argument;
    const char *slash = strrchr(object->dlpi_name, '/');
    const char *base = slash ? slash + 1 : object->dlpi_name;
    if (strncmp(base, "libc.so.", 8) != 0 && strncmp(base, "libdl.so.", 9) != 0) return 0;
    const ElfW(Dyn) *dynamic = NULL;
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
    if (!dynamic) return 0;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    const uint32_t *gnu_hash = NULL;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB) symbols = (const ElfW(Sym) *)dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_STRTAB) strings = (const char *)dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_GNU_HASH) gnu_hash = (const uint32_t *)dynamic->d_un.d_ptr;
    }
    if (!symbols || !strings || !gnu_hash) return 0;
    size_t count = symbol_count(gnu_hash);
    for (size_t i = 0; i < count; i++) {
        if (symbols[i].st_shndx == SHN_UNDEF || ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC) continue;
        if (strcmp(strings + symbols[i].st_name, search->symbol) != 0) continue;
        search->found = (void *)(object->dlpi_addr + symbols[i].st_value);
        return 1;
    }
    return 0;
}

static void *in_libc(const char *symbol)
{
    struct search search = {.symbol = symbol};
    dl_iterate_phdr(look_in, &search);
    return search.found;
}

static void find_resolvers(void)
{
    *(void **)&resolvers.dlsym = in_libc("dlsym");
    *(void **)&resolvers.dlvsym = in_libc("dlvsym");
}

const struct kyb_resolvers *kyb_resolvers(void)
{
    pthread_once(&once, find_resolvers);
    return &resolvers;
}

/* ---- the driver's functions ---- */

static void *driver_library(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return library ? library : dlopen("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL);
}

static void *driver_symbol(const char *name)
{
    void *library = driver_library();
    return library && kyb_resolvers()->dlsym ? kyb_resolvers()->dlsym(library, name) : NULL;
}

static int not_found(void)
{
    return CUDA_ERROR_NOT_FOUND;
}

/* A wrapper that took itself for the driver would call itself for ever. */
static bool in_this_library(const void *pointer)
{
    return (const char *)pointer >= __ehdr_start && (const char *)pointer < _end;
}

void *kyb_resolve(enum kyb_call call)
{
    void *real = driver_symbol(names[call]);
    if (real && !in_this_library(real)) {
        atomic_store(&kyb_real[call], real);
        return real;
    }
    return (void *)not_found;
}

bool kyb_driver_load(void)
{
    *(void **)&kyb_driver.cuCtxGetCurrent = driver_symbol("cuCtxGetCurrent");
    *(void **)&kyb_driver.cuCtxGetDevice = driver_symbol("cuCtxGetDevice");
    *(void **)&kyb_driver.cuCtxPushCurrent_v2 = driver_symbol("cuCtxPushCurrent_v2");
    *(void **)&kyb_driver.cuCtxPopCurrent_v2 = driver_symbol("cuCtxPopCurrent_v2");
    *(void **)&kyb_driver.cuDeviceGetCount = driver_symbol("cuDeviceGetCount");
    *(void **)&kyb_driver.cuDeviceGet = driver_symbol("cuDeviceGet");
    *(void **)&kyb_driver.cuDeviceGetUuid = driver_symbol("cuDeviceGetUuid");
    *(void **)&kyb_driver.cuDeviceTotalMem_v2 = driver_symbol("cuDeviceTotalMem_v2");
    *(void **)&kyb_driver.cuDevicePrimaryCtxGetState = driver_symbol("cuDevicePrimaryCtxGetState");
    static const enum kyb_call needed[] = {
        KYB_CALL_cuMemAddressReserve,
        KYB_CALL_cuMemAddressFree,
        KYB_CALL_cuMemMap,
        KYB_CALL_cuMemUnmap,
        KYB_CALL_cuMemSetAccess,
        KYB_CALL_cuMemRelease,
        KYB_CALL_cuMemFree_v2,
        KYB_CALL_cuMemImportFromShareableHandle,
        KYB_CALL_cuCtxSynchronize,
    };
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (kyb_resolve(needed[i]) == (void *)not_found) return false;
    return kyb_driver.cuCtxGetCurrent && kyb_driver.cuCtxGetDevice && kyb_driver.cuCtxPushCurrent_v2 &&
           kyb_driver.cuCtxPopCurrent_v2 && kyb_driver.cuDeviceGetCount && kyb_driver.cuDeviceGet &&
           kyb_driver.cuDeviceGetUuid && kyb_driver.cuDevicePrimaryCtxGetState;
}

const char *kyb_cuda_problem(int result, const char *call, char *buffer, size_t size)
{
    snprintf(buffer, size, "%s answered CUDA error %d", call, result);
    return buffer;
}
