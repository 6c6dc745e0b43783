/* A test case is a function whose name is the behaviour. A failed check prints both values, fails its
 * case and goes on, so that one run shows everything that is wrong. */
#ifndef PCMRING_CHECK_H
#define PCMRING_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char *check_case;
extern int check_case_failures, check_passed, check_failed, check_first_only;

static inline void check_report_(const char *file, int line)
{
    check_case_failures++;
    fprintf(stderr, "%s:%d: in %s:\n  ", file, line, check_case);
}

static inline int check_eq_(const char *file, int line, const char *what, uint64_t got, uint64_t expected)
{
    if (got == expected)
        return 1;
    if (check_case_failures < 20) {
        check_report_(file, line);
        fprintf(stderr, "%s is %" PRIu64 " (0x%" PRIx64 "), expected %" PRIu64 " (0x%" PRIx64 ")\n", what, got, got,
                expected, expected);
    } else {
        check_case_failures++;
    }
    return 0;
}

static inline int check_bytes_(const char *file, int line, const char *what, const void *got, const void *expected,
                               size_t bytes)
{
    const unsigned char *a = (const unsigned char *)got, *b = (const unsigned char *)expected;
    size_t i;
    for (i = 0; i < bytes && a[i] == b[i]; i++) {
    }
    if (i == bytes)
        return 1;
    if (check_case_failures < 20) {
        check_report_(file, line);
        fprintf(stderr, "%s differs at byte %zu of %zu: 0x%02x, expected 0x%02x\n", what, i, bytes, a[i], b[i]);
    } else {
        check_case_failures++;
    }
    return 0;
}

/* Integers of any width and sign: equal as 64-bit numbers. */
#define EQ(got, expected) check_eq_(__FILE__, __LINE__, #got, (uint64_t)(got), (uint64_t)(expected))
#define CHECK(condition) check_eq_(__FILE__, __LINE__, "truth of " #condition, (uint64_t) !!(condition), 1)
#define BYTES(got, expected, bytes) check_bytes_(__FILE__, __LINE__, #got, (got), (expected), (size_t)(bytes))

static inline void check_run_(const char *name, void (*body)(void))
{
    check_case = name;
    check_case_failures = 0;
    body();
    if (check_case_failures) {
        check_failed++;
        printf("FAILED %s (%d checks)\n", name, check_case_failures);
        fflush(stdout);
        if (check_first_only)
            exit(1);
    } else {
        check_passed++;
    }
}
#define RUN(name) check_run_(#name, name)

#endif
