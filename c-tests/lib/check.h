/* SPDX-License-Identifier: BSD-3-Clause */
/* A small test report: cases with a sentence for a name, checks that print what they saw. */
#ifndef NET_VHOST_CHECK_H
#define NET_VHOST_CHECK_H

#include <stdbool.h>
#include <stdint.h>

/* Exit code by which meson knows a test that could not run here. */
#define EXIT_SKIPPED 77

/* Notes a failure and goes on. */
#define CHECK(condition, ...) check_that((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

/* Notes a failure and leaves the case. */
#define REQUIRE(condition, ...)                                                                    \
	do {                                                                                       \
		if (!CHECK(condition, __VA_ARGS__))                                                \
			return;                                                                    \
	} while (0)

/* Polls until `condition` holds or `milliseconds` are over; check it afterwards. */
#define WAIT_FOR(condition, milliseconds)                                                          \
	for (uint64_t end_ = milliseconds_now() + (milliseconds);                                  \
	     !(condition) && milliseconds_now() < end_;)                                           \
	pause_briefly()

bool check_that(bool holds, const char *file, int line, const char *text, const char *format, ...)
	__attribute__((format(printf, 5, 6)));

/* Leaves the running case uncounted; `why` is printed. Return from the case after it. */
void skip_case(const char *why);

/* Runs one case; the program ends with a failure when it takes longer than `seconds`. */
void run_case(const char *sentence, void (*body)(void), unsigned int seconds);

/* Is called after each case, to undo what it left behind. */
void after_each_case(void (*undo)(void));

/* Prints the totals; the value is the program's exit code. */
int report(void);

uint64_t milliseconds_now(void);
void pause_briefly(void);

#endif
