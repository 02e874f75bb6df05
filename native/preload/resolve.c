/* Finds the driver's functions, and hands out wrappers where the process looks for them.
 *
 * Processes reach the driver by dlsym, dlvsym, cuGetProcAddress, or as symbols of a library linked with -lcuda.
 * In each case the real resolver is asked first, and the wrapper chosen by the pointer it returned: names and versions
 * need no table that would rot with each CUDA release. cuGetExportTable is left alone.
 */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>

#include "kybernate.h"

static const struct {
    const char *name;
    void *wrapper;
} calls[KYB_CALLS] = {
#define KYB_GATED(gate, symbol, parameters, arguments) {#symbol, (void *)symbol},
#define KYB_CUSTOM(symbol, parameters) {#symbol, (void *)symbol},
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM
};

_Atomic(void *) kyb_real[KYB_CALLS];
struct kyb_driver kyb_driver;

typedef void *(*dlsym_t)(void *, const char *);
typedef void *(*dlvsym_t)(void *, const char *, const char *);

static dlsym_t real_dlsym;
static dlvsym_t real_dlvsym;
static pthread_once_t once = PTHREAD_ONCE_INIT;

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
    real_dlsym = (dlsym_t)in_libc("dlsym");
    real_dlvsym = (dlvsym_t)in_libc("dlvsym");
}

/* ---- from the driver's pointer to the wrapper ---- */

#define TABLE_SIZE 2048 /* a power of two, several times KYB_CALLS */
_Static_assert(KYB_CALLS * 3 < TABLE_SIZE, "table too full");

static struct {
    _Atomic(void *) real;
    void *wrapper;
} table[TABLE_SIZE];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool table_ready;

static size_t place_of(const void *pointer)
{
    uint64_t bits = (uint64_t)(uintptr_t)pointer >> 4;
    return (size_t)((bits * 0x9E3779B97F4A7C15ULL) >> 53) & (TABLE_SIZE - 1);
}

static void *driver_library(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return library ? library : dlopen("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL);
}

void *kyb_driver_symbol(const char *name)
{
    pthread_once(&once, find_resolvers);
    void *library = driver_library();
    return library && real_dlsym ? real_dlsym(library, name) : NULL;
}

static void fill_table(void)
{
    pthread_mutex_lock(&table_lock);
    if (!atomic_load(&table_ready)) {
        void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        if (library && real_dlsym) {
            for (int i = 0; i < KYB_CALLS; i++) {
                void *real = real_dlsym(library, calls[i].name);
                if (!real || real == calls[i].wrapper) continue;
                atomic_store(&kyb_real[i], real);
                size_t place = place_of(real);
                void *there;
                while ((there = atomic_load(&table[place].real)) && there != real)
                    place = (place + 1) & (TABLE_SIZE - 1);
                /* Two names for one function share a wrapper: the first one's. */
                if (there) continue;
                table[place].wrapper = calls[i].wrapper;
                atomic_store(&table[place].real, real);
            }
            atomic_store(&table_ready, true);
        }
    }
    pthread_mutex_unlock(&table_lock);
}

void *kyb_wrapper_of(void *real)
{
    if (!real) return real;
    if (!atomic_load(&table_ready)) fill_table();
    for (size_t place = place_of(real);; place = (place + 1) & (TABLE_SIZE - 1)) {
        void *there = atomic_load(&table[place].real);
        if (there == real) return table[place].wrapper;
        if (!there) return real;
    }
}

static int not_found(void)
{
    return CUDA_ERROR_NOT_FOUND;
}

void *kyb_resolve(enum kyb_call call)
{
    pthread_once(&once, find_resolvers);
    void *real = kyb_driver_symbol(calls[call].name);
    if (real && real != calls[call].wrapper) {
        atomic_store(&kyb_real[call], real);
        return real;
    }
    return (void *)not_found;
}

bool kyb_driver_load(void)
{
    *(void **)&kyb_driver.cuCtxGetCurrent = kyb_driver_symbol("cuCtxGetCurrent");
    *(void **)&kyb_driver.cuCtxGetDevice = kyb_driver_symbol("cuCtxGetDevice");
    *(void **)&kyb_driver.cuCtxPushCurrent_v2 = kyb_driver_symbol("cuCtxPushCurrent_v2");
    *(void **)&kyb_driver.cuCtxPopCurrent_v2 = kyb_driver_symbol("cuCtxPopCurrent_v2");
    *(void **)&kyb_driver.cuDeviceGetCount = kyb_driver_symbol("cuDeviceGetCount");
    *(void **)&kyb_driver.cuDeviceGet = kyb_driver_symbol("cuDeviceGet");
    *(void **)&kyb_driver.cuDeviceGetUuid = kyb_driver_symbol("cuDeviceGetUuid");
    *(void **)&kyb_driver.cuDeviceTotalMem_v2 = kyb_driver_symbol("cuDeviceTotalMem_v2");
    *(void **)&kyb_driver.cuDevicePrimaryCtxGetState = kyb_driver_symbol("cuDevicePrimaryCtxGetState");
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

/* ---- the hooks ---- */

static bool is_driver_name(const char *name)
{
    return name && name[0] == 'c' && name[1] == 'u' && name[2] >= 'A' && name[2] <= 'Z';
}

static bool is_ours(const void *pointer)
{
    for (int i = 0; i < KYB_CALLS; i++)
        if (calls[i].wrapper == pointer) return true;
    return false;
}

/* A global lookup finds our exported wrapper; where no driver is loaded the honest answer is "not there". */
static void *answer(void *found)
{
    if (!found) return NULL;
    if (is_ours(found)) return dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD) ? found : NULL;
    return kyb_wrapper_of(found);
}

/* Called from the assembly below. What our dlsym does with a name of the driver; NULL in *take: not ours, go on in the C
 * library as if we weren't there (it reads the caller's return address for RTLD_NEXT, so that must be a jump, not a
 * call). */
__attribute__((used)) void *kyb_dlsym(void *handle, const char *name, void **jump);
__attribute__((used)) void *kyb_dlvsym(void *handle, const char *name, const char *version, void **jump);

void *kyb_dlsym(void *handle, const char *name, void **jump)
{
    pthread_once(&once, find_resolvers);
    if (!is_driver_name(name) || handle == RTLD_NEXT) {
        *jump = (void *)real_dlsym;
        return NULL;
    }
    *jump = NULL;
    return answer(real_dlsym(handle, name));
}

void *kyb_dlvsym(void *handle, const char *name, const char *version, void **jump)
{
    pthread_once(&once, find_resolvers);
    if (!is_driver_name(name) || handle == RTLD_NEXT) {
        *jump = (void *)real_dlvsym;
        return NULL;
    }
    *jump = NULL;
    return answer(real_dlvsym(handle, name, version));
}

#if defined(__x86_64__)
#define HOOK(name, target)                                                      \
    __asm__(".text\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" \
            "  .cfi_startproc\n"                                                \
            "  endbr64\n"                                                       \
            "  push %rdi\n  .cfi_adjust_cfa_offset 8\n"                         \
            "  push %rsi\n  .cfi_adjust_cfa_offset 8\n"                         \
            "  push %rdx\n  .cfi_adjust_cfa_offset 8\n"                         \
            "  sub $16, %rsp\n  .cfi_adjust_cfa_offset 16\n"                    \
            "  mov %rsp, " #target "\n"                                         \
            "  call kyb_" #name "\n"                                            \
            "  mov (%rsp), %r11\n"                                              \
            "  add $16, %rsp\n  .cfi_adjust_cfa_offset -16\n"                   \
            "  pop %rdx\n  .cfi_adjust_cfa_offset -8\n"                         \
            "  pop %rsi\n  .cfi_adjust_cfa_offset -8\n"                         \
            "  pop %rdi\n  .cfi_adjust_cfa_offset -8\n"                         \
            "  test %r11, %r11\n  jne 1f\n  ret\n"                              \
            "1: jmp *%r11\n"                                                    \
            "  .cfi_endproc\n.size " #name ", . - " #name "\n")
HOOK(dlsym, % rdx);
HOOK(dlvsym, % rcx);
#elif defined(__aarch64__)
#define HOOK(name, target)                                                      \
    __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n" \
            "  stp x29, x30, [sp, #-64]!\n  mov x29, sp\n"                      \
            "  stp x0, x1, [sp, #16]\n  str x2, [sp, #32]\n"                    \
            "  add " #target ", sp, #40\n"                                      \
            "  bl kyb_" #name "\n"                                              \
            "  ldr x16, [sp, #40]\n  cbz x16, 1f\n"                             \
            "  ldp x0, x1, [sp, #16]\n  ldr x2, [sp, #32]\n"                    \
            "  ldp x29, x30, [sp], #64\n  br x16\n"                             \
            "1: ldp x29, x30, [sp], #64\n  ret\n"                               \
            ".size " #name ", . - " #name "\n")
HOOK(dlsym, x2);
HOOK(dlvsym, x3);
#else
#error "the preload library knows x86-64 and aarch64"
#endif

/* cuGetProcAddress and its versions: ask the driver, then put the wrapper in place of its answer. */

static void wrap_answer(int result, void *function)
{
    if (result == CUDA_SUCCESS && function) *(void **)function = kyb_wrapper_of(*(void **)function);
}

int cuGetProcAddress(void *name, void *function, int version, uint64_t flags)
{
    int result = KYB_DRIVER(cuGetProcAddress, (void *, void *, int, uint64_t), (name, function, version, flags));
    wrap_answer(result, function);
    return result;
}

int cuGetProcAddress_v2(void *name, void *function, int version, uint64_t flags, void *status)
{
    int result = KYB_DRIVER(cuGetProcAddress_v2, (void *, void *, int, uint64_t, void *),
                            (name, function, version, flags, status));
    wrap_answer(result, function);
    return result;
}

int cuGetProcAddress_v2_ptsz(void *name, void *function, int version, uint64_t flags, void *status)
{
    int result = KYB_DRIVER(cuGetProcAddress_v2_ptsz, (void *, void *, int, uint64_t, void *),
                            (name, function, version, flags, status));
    wrap_answer(result, function);
    return result;
}
