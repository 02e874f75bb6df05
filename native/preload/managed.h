/* Managed memory. See managed.c. */
#ifndef KYBERNATE_MANAGED_H
#define KYBERNATE_MANAGED_H

#include <stdbool.h>
#include <stdint.h>

bool kyb_managed_freed(uint64_t address); /* whether it was managed memory; it is none any more */

#endif
