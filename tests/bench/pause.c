/*
 * pause.c - what an ordinary pod of the benchmarks runs: a static program that says it is there and waits
 */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
