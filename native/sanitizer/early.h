/* Included before native/preload/resolve.c and driver.c in sanitizer builds only.
 *
 * A sanitizer's run-time finds the functions it intercepts by dlsym, which is ours, before it can intercept anything:
 * whatever our dlsym calls then must not be intercepted. These stand in for the C library's until then. They
 * are plain, and no part of the library that is shipped.
 */
#ifndef KYBERNATE_SANITIZER_EARLY_H
#define KYBERNATE_SANITIZER_EARLY_H

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

static inline int early_strncmp(const char *a, const char *b, size_t most)
{
    for (size_t i = 0; i < most; i++) {
        if (a[i] != b[i]) return (unsigned char)a[i] < (unsigned char)b[i] ? -1 : 1;
        if (!a[i]) break;
    }
    return 0;
}

static inline int early_strcmp(const char *a, const char *b)
{
    return early_strncmp(a, b, (size_t)-1);
}

static inline char *early_strrchr(const char *text, int wanted)
{
    const char *last = NULL;
    do {
        if (*text == (char)wanted) last = text;
    } while (*text++);
    return (char *)last;
}

/* Shared objects only: their ELF header lies at the load address. */
static inline int early_iterate(int (*visit)(struct dl_phdr_info *, size_t, void *), void *argument)
{
    for (struct link_map *map = _r_debug.r_map; map; map = map->l_next) {
        const ElfW(Ehdr) *header = (const void *)map->l_addr;
        if (!header || !map->l_name || !*map->l_name) continue;
        struct dl_phdr_info object = {
            .dlpi_addr = map->l_addr,
            .dlpi_name = map->l_name,
            .dlpi_phdr = (const void *)(map->l_addr + header->e_phoff),
            .dlpi_phnum = header->e_phnum,
        };
        int result = visit(&object, sizeof object, argument);
        if (result) return result;
    }
    return 0;
}

/* What it guards gives the same result however often it runs. */
static inline int early_once(pthread_once_t *once, void (*routine)(void))
{
    if (!__atomic_load_n(once, __ATOMIC_ACQUIRE)) {
        routine();
        __atomic_store_n(once, 1, __ATOMIC_RELEASE);
    }
    return 0;
}

#define pthread_once early_once
#define strncmp early_strncmp
#define strcmp early_strcmp
#define strrchr early_strrchr
#define dl_iterate_phdr early_iterate

#endif
