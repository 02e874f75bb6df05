/* The wrappers, exported under the driver's names: each file that defines some includes this. */
#ifndef KYBERNATE_WRAPPERS_H
#define KYBERNATE_WRAPPERS_H

#include <stddef.h>
#include <stdint.h>

#include "base.h"
#include "cuda_abi.h"

#define KYB_GATED(gate, name, parameters, arguments) KYB_EXPORT int name parameters;
#define KYB_CUSTOM(name, parameters) KYB_EXPORT int name parameters;
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM

#endif
