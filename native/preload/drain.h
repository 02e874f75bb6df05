/* Waits until the GPU is idle. See drain.c. */
#ifndef KYBERNATE_DRAIN_H
#define KYBERNATE_DRAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool kyb_gpu_idle(int64_t deadline_ns, char *reason, size_t size); /* all contexts synchronised */

#endif
