/* The link between host and device: as fast as the machine, or as slow as KYBERNATE_SIMULATED_LINK_GIB_S says
 * (GiB a second, of each copy by itself). */
#include "simulated.h"

#include <stdlib.h>
#include <time.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static double ns_per_byte;

static void read_setting(void)
{
    const char *text = getenv("KYBERNATE_SIMULATED_LINK_GIB_S");
    double rate = text ? strtod(text, NULL) : 0;
    if (rate > 0)
        ns_per_byte = 1e9 / (rate * 1073741824.0);
}

/* Sleep until a copy of so many bytes, begun at that time, would have been done. */
void link_delay(size_t bytes, uint64_t began_ns)
{
    pthread_once(&once, read_setting);
    if (ns_per_byte <= 0)
        return;
    uint64_t until = began_ns + (uint64_t)((double)bytes * ns_per_byte);
    struct timespec at = {.tv_sec = (time_t)(until / 1000000000U), .tv_nsec = (long)(until % 1000000000U)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL)) {
    }
}
