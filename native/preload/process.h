/* What is known of the process we are in. */
#ifndef KYBERNATE_PROCESS_H
#define KYBERNATE_PROCESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

extern bool kyb_enabled; /* started by the agent, and everything needed is there */
extern const char *kyb_run_directory;

void kyb_say_once(_Atomic bool *said, const char *format, ...) __attribute__((format(printf, 2, 3)));
int64_t kyb_now_ns(void); /* monotonic */

#endif
