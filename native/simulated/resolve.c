/* The resolver: base name and version give the newest variant that is no newer than the version.
 *
 * functions.inc lists every exported function with the version that brought it. The names for a per-thread
 * default stream (_ptsz, _ptds) are further names of the same functions: they differ only in what stream 0
 * means, and here it then means the legacy stream, which orders more than it must.
 */
#include "simulated.h"

#include <string.h>

#define VARIANT(base, version, symbol) EXPORT extern CUresult symbol(void);
#define PER_THREAD(name, symbol)
#include "functions.inc"
#undef VARIANT
#undef PER_THREAD

static const struct {
    const char *base;
    int version;
    CUresult (*function)(void);
} variants[] = {
#define VARIANT(base, version, symbol) {#base, version, symbol},
#define PER_THREAD(name, symbol)
#include "functions.inc"
#undef VARIANT
#undef PER_THREAD
};

#if defined(__x86_64__)
#define JUMP "jmp "
#elif defined(__aarch64__)
#define JUMP "b "
#else
#error "the simulated driver knows x86-64 and AArch64 only"
#endif
#define VARIANT(base, version, symbol)
#define PER_THREAD(name, symbol)                                                                            \
    __asm__(".pushsection .text\n.globl " #name "\n.protected " #name "\n.type " #name ",%function\n" #name \
            ":\n" JUMP #symbol "\n.size " #name ",.-" #name "\n.popsection");
#include "functions.inc"
#undef VARIANT
#undef PER_THREAD

CUresult resolve(const char *name, void **out, int version, uint64_t flags, int *status)
{
    int best = -1, found = CU_PROC_ADDRESS_NOT_FOUND;

    if (!name || !out || flags > 2)
        return CUDA_ERROR_INVALID_VALUE;
    *out = NULL;
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        if (strcmp(variants[i].base, name))
            continue;
        if (found == CU_PROC_ADDRESS_NOT_FOUND)
            found = CU_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
        if (variants[i].version <= version && variants[i].version > best) {
            best = variants[i].version;
            found = CU_PROC_ADDRESS_SUCCESS;
            memcpy(out, &variants[i].function, sizeof *out);
        }
    }
    if (status)
        *status = found;
    return found == CU_PROC_ADDRESS_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
