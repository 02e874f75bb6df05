/* Hands out wrappers where the process looks for the driver's functions.
 *
 * Processes reach the driver by dlsym, dlvsym, cuGetProcAddress, or as symbols of a library linked with -lcuda.
 * In each case the real resolver is asked first, and the wrapper chosen by the pointer it returned: names and versions
 * need no table that would rot with each CUDA release. cuGetExportTable is left alone.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

#include "driver.h"
#include "wrappers.h"

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

/* ---- from the driver's pointer to the wrapper ---- */

#define TABLE_SIZE 2048 /* a power of two, several times KYB_CALLS */
_Static_assert(KYB_CALLS * 3 < TABLE_SIZE, "table too full");

static struct {
    _Atomic(void *) real;
    void *wrapper;
} table[TABLE_SIZE];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool table_ready;

static size_t bucket_of(const void *pointer)
{
    uint64_t bits = (uint64_t)(uintptr_t)pointer >> 4;
    return (size_t)((bits * 0x9E3779B97F4A7C15ULL) >> 53) & (TABLE_SIZE - 1);
}

static void fill_table(void)
{
    pthread_mutex_lock(&table_lock);
    if (!atomic_load(&table_ready)) {
        void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        if (library && kyb_resolvers()->dlsym) {
            for (int i = 0; i < KYB_CALLS; i++) {
                void *real = kyb_resolvers()->dlsym(library, calls[i].name);
                if (!real || real == calls[i].wrapper) continue;
                atomic_store(&kyb_real[i], real);
                size_t bucket = bucket_of(real);
                void *there;
                while ((there = atomic_load(&table[bucket].real)) && there != real)
                    bucket = (bucket + 1) & (TABLE_SIZE - 1);
                /* Two names for one function share a wrapper: the first one's. */
                if (there) continue;
                table[bucket].wrapper = calls[i].wrapper;
                atomic_store(&table[bucket].real, real);
            }
            atomic_store(&table_ready, true);
        }
    }
    pthread_mutex_unlock(&table_lock);
}

/* The wrapper for a function of the driver, or the function itself. */
static void *wrapper_of(void *real)
{
    if (!real) return real;
    if (!atomic_load(&table_ready)) fill_table();
    for (size_t bucket = bucket_of(real);; bucket = (bucket + 1) & (TABLE_SIZE - 1)) {
        void *there = atomic_load(&table[bucket].real);
        if (there == real) return table[bucket].wrapper;
        if (!there) return real;
    }
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
    return wrapper_of(found);
}

/* Called from the assembly below. What our dlsym does with a name of the driver; NULL in *take: not ours, go on in
 * the C library as if we weren't there (it reads the caller's return address for RTLD_NEXT, so that must be a jump,
 * not a call). */
__attribute__((used)) void *kyb_dlsym(void *handle, const char *name, void **jump);
__attribute__((used)) void *kyb_dlvsym(void *handle, const char *name, const char *version, void **jump);

void *kyb_dlsym(void *handle, const char *name, void **jump)
{
    if (!is_driver_name(name) || handle == RTLD_NEXT) {
        *jump = (void *)kyb_resolvers()->dlsym;
        return NULL;
    }
    *jump = NULL;
    return answer(kyb_resolvers()->dlsym(handle, name));
}

void *kyb_dlvsym(void *handle, const char *name, const char *version, void **jump)
{
    if (!is_driver_name(name) || handle == RTLD_NEXT) {
        *jump = (void *)kyb_resolvers()->dlvsym;
        return NULL;
    }
    *jump = NULL;
    return answer(kyb_resolvers()->dlvsym(handle, name, version));
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

/* cuGetProcAddress and its versions: ask the driver, then put the wrapper where its answer stood. */

static void wrap_answer(int result, void *function)
{
    if (result == CUDA_SUCCESS && function) *(void **)function = wrapper_of(*(void **)function);
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
