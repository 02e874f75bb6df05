/* The control thread. See control.c. */
#ifndef KYBERNATE_CONTROL_H
#define KYBERNATE_CONTROL_H

#include <stdbool.h>

bool kyb_control_start(void);
void kyb_control_after_fork(void);

#endif
