/* The way to the driver itself, past wrappers and gates. */
#ifndef KYBERNATE_DRIVER_H
#define KYBERNATE_DRIVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base.h"
#include "cuda_abi.h"

enum kyb_call {
#define KYB_GATED(gate, name, parameters, arguments) KYB_CALL_##name,
#define KYB_CUSTOM(name, parameters) KYB_CALL_##name,
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM
    KYB_CALLS
};

extern _Atomic(void *) kyb_real[KYB_CALLS];
void *kyb_resolve(enum kyb_call call); /* never NULL: a stub that answers NOT_FOUND where the driver has none */

static inline void *kyb_real_of(enum kyb_call call)
{
    void *real = atomic_load_explicit(&kyb_real[call], memory_order_relaxed);
    return KYB_LIKELY(real != NULL) ? real : kyb_resolve(call);
}

/* KYB_DRIVER(cuMemFree_v2, (uint64_t), (address)) calls the driver itself, past the gates. */
#define KYB_DRIVER(name, types, arguments) (((int(*) types)kyb_real_of(KYB_CALL_##name))arguments)

/* Calls of the driver that need no wrapper but that we make ourselves. */
struct kyb_driver {
    int (*cuCtxGetCurrent)(void **);
    int (*cuCtxGetDevice)(int *);
    int (*cuCtxPushCurrent_v2)(void *);
    int (*cuCtxPopCurrent_v2)(void **);
    int (*cuDeviceGetCount)(int *);
    int (*cuDeviceGet)(int *, int);
    int (*cuDeviceGetUuid)(uint8_t *, int);
    int (*cuDeviceTotalMem_v2)(size_t *, int); /* may be NULL: nothing is cached then */
    int (*cuDevicePrimaryCtxGetState)(int, unsigned *, int *);
};
extern struct kyb_driver kyb_driver;
bool kyb_driver_load(void);

/* "CALL answered CUDA error NUMBER" */
const char *kyb_cuda_problem(int result, const char *call, char *buffer, size_t size);

/* The C library's own, past the hooks of resolve.c; NULL where it has none. */
struct kyb_resolvers {
    void *(*dlsym)(void *, const char *);
    void *(*dlvsym)(void *, const char *, const char *);
};
const struct kyb_resolvers *kyb_resolvers(void);

#endif
