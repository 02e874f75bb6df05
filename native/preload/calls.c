/* One wrapper for each gated entry point, made from the generated list. */
#include "driver.h"
#include "gate.h"
#include "wrappers.h"

#define KYB_CUSTOM(name, parameters)
#define KYB_GATED(gate, name, parameters, arguments)          \
    int name parameters                                       \
    {                                                         \
        kyb_enter(gate);                                      \
        int result = KYB_DRIVER(name, parameters, arguments); \
        kyb_leave();                                          \
        return result;                                        \
    }
#include "generated/calls.inc"
