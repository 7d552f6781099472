/* SPDX-License-Identifier: BSD-3-Clause */
#include "check.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A run under a checker such as valgrind is slower by this factor. */
#define SLOW_FACTOR 10

static unsigned int passed, failed, skipped;
static bool case_failed, case_skipped;
static const char *case_name = "";
static void (*undo_hook)(void);

static void
on_alarm(int signal_number)
{
	static const char words[] = "not ok - took too long: ";
	static const char total[] = "\n0 passed, 1 failed\n";

	(void)signal_number;
	if (write(STDOUT_FILENO, words, sizeof(words) - 1) < 0 ||
	    write(STDOUT_FILENO, case_name, strlen(case_name)) < 0 ||
	    write(STDOUT_FILENO, total, sizeof(total) - 1) < 0)
		_exit(2);
	_exit(1);
}

bool
check_that(bool holds, const char *file, int line, const char *text, const char *format, ...)
{
	va_list arguments;

	if (holds)
		return true;
	case_failed = true;
	printf("# %s:%d: %s: ", file, line, text);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	return false;
}

void
skip_case(const char *why)
{
	case_skipped = true;
	printf("# skipped: %s\n", why);
}

void
after_each_case(void (*undo)(void))
{
	undo_hook = undo;
}

void
run_case(const char *sentence, void (*body)(void), unsigned int seconds)
{
	const char *only = getenv("NET_VHOST_CASE");

	if (only != NULL && strstr(sentence, only) == NULL)
		return;
	case_name = sentence;
	case_failed = case_skipped = false;
	signal(SIGALRM, on_alarm);
	alarm(getenv("NET_VHOST_SLOW") != NULL ? seconds * SLOW_FACTOR : seconds);
	body();
	if (undo_hook != NULL)
		undo_hook();
	alarm(0);
	if (case_failed)
		failed++;
	else if (case_skipped)
		skipped++;
	else
		passed++;
	printf("%s - %s%s\n", case_failed ? "not ok" : "ok", sentence,
	       case_skipped && !case_failed ? " # skipped" : "");
	fflush(stdout);
}

int
report(void)
{
	if (skipped != 0)
		printf("# %u skipped\n", skipped);
	printf("%u passed, %u failed\n", passed, failed);
	fflush(stdout);
	if (failed != 0)
		return EXIT_FAILURE;
	return passed == 0 && skipped != 0 ? EXIT_SKIPPED : EXIT_SUCCESS;
}

uint64_t
milliseconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void
pause_briefly(void)
{
	const struct timespec moment = {.tv_nsec = 200000};

	nanosleep(&moment, NULL);
}
