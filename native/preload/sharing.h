/* Legacy CUDA IPC between the processes of one workload. See sharing.c. */
#ifndef KYBERNATE_SHARING_H
#define KYBERNATE_SHARING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* What another process needs to map the allocation at `address`. On the control thread; false: none is shared there. */
bool kyb_share(uint64_t address, struct kyb_extent *records, int *fds, size_t max, size_t *count, uint64_t *size);

#endif
