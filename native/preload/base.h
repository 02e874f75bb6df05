/* What every part uses. The list of parts is in README.md. */
#ifndef KYBERNATE_BASE_H
#define KYBERNATE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KYB_EXPORT __attribute__((visibility("default")))
#define KYB_LIKELY(x) __builtin_expect(!!(x), 1)
#define KYB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define KYB_CHUNK (2UL << 20) /* granularity of device memory; smaller allocations stay native */
#define KYB_DEVICES_MAX 64

#endif
