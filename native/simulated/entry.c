/* cuGetProcAddress, old form and new: apart from resolve.c, which declares every function without its arguments. */
#include "simulated.h"

API(cuGetProcAddress_v2, const char *name, void **out, int version, uint64_t flags, int *status)
{
    return resolve(name, out, version, flags, status);
}

API(cuGetProcAddress, const char *name, void **out, int version, uint64_t flags)
{
    return resolve(name, out, version, flags, NULL);
}
