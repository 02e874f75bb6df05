/* What is known of the process we are in, and the one line that it may hear from us. */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "process.h"

bool kyb_enabled;
const char *kyb_run_directory;

int64_t kyb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void kyb_say_once(_Atomic bool *said, const char *format, ...)
{
    if (atomic_exchange(said, true)) return;
    int saved = errno;
    char line[512] = "kybernate: ";
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + 11, sizeof line - 12, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 13) length = (int)sizeof line - 13;
    line[11 + length] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)length + 12);
    (void)ignored;
    errno = saved;
}
