/*
 * report.c - the serial port and the lines on it
 */
#include "guest.h"

#define COM1 0x3f8
#define LSR  5

static unsigned failures;

void put_char(char c)
{
	if (c == '\n')
		put_char('\r');
	while (!(inb(COM1 + LSR) & 0x20))
		relax();
	outb(COM1, (uint8_t)c);
}

bool char_waiting(void)
{
	return inb(COM1 + LSR) & 1;
}

int get_char(void)
{
	while (!char_waiting())
		relax();
	return inb(COM1);
}

static void put_string(const char *s)
{
	while (*s)
		put_char(*s++);
}

static void put_number(uint64_t v, unsigned base, unsigned width, char pad)
{
	char buf[24];
	unsigned n = 0;

	do {
		buf[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (width > n) {
		put_char(pad);
		width--;
	}
	while (n)
		put_char(buf[--n]);
}

static void vprint(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		unsigned width = 0;
		bool is_long = false;
		char pad = ' ';

		if (*fmt != '%') {
			put_char(*fmt);
			continue;
		}
		if (*++fmt == '0')
			pad = *fmt++;
		while (*fmt >= '0' && *fmt <= '9')
			width = width * 10 + (unsigned)(*fmt++ - '0');
		while (*fmt == 'l' || *fmt == 'z') {
			is_long = true;
			fmt++;
		}
		switch (*fmt) {
		case 's':
			put_string(va_arg(ap, const char *));
			break;
		case 'c':
			put_char((char)va_arg(ap, int));
			break;
		case 'd': {
			int64_t v = is_long ? va_arg(ap, int64_t) : va_arg(ap, int);

			if (v < 0)
				put_char('-');
			put_number(v < 0 ? -(uint64_t)v : (uint64_t)v, 10, width, pad);
			break;
		}
		case 'u':
		case 'x': {
			uint64_t v = is_long ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);

			put_number(v, *fmt == 'x' ? 16 : 10, width, pad);
			break;
		}
		default:
			put_char(*fmt);
		}
	}
}

void print(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprint(fmt, ap);
	va_end(ap);
}

static void line(const char *verdict, const char *name, const char *fmt, va_list ap)
{
	put_string(verdict);
	if (name) {
		put_string(name);
		put_string(": ");
	}
	vprint(fmt, ap);
	put_char('\n');
}

void ok(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("ok ", NULL, fmt, ap);
	va_end(ap);
}

void fail(const char *name, const char *fmt, ...)
{
	va_list ap;

	failures++;
	va_start(ap, fmt);
	line("fail ", name, fmt, ap);
	va_end(ap);
}

bool check(bool good, const char *name, const char *fmt, ...)
{
	va_list ap;

	if (good) {
		ok("%s", name);
		return true;
	}
	failures++;
	va_start(ap, fmt);
	line("fail ", name, fmt, ap);
	va_end(ap);
	return false;
}

void sync_point(unsigned n)
{
	char buf[2];

	print("sync %u\n", n);
	if (arg("sync", buf, sizeof(buf)))
		get_char();
}

void power_off(void)
{
	outb(PORT_GED + 4, 5 << 2 | 1 << 5); /* SLP_TYP S5, SLP_EN */
}

_Noreturn void guest_exit(void)
{
	char how[16] = "";

	arg("exit", how, sizeof(how));
	print("done\n");
	if (!strcmp(how, "testdev"))
		outl(0xf4, failures ? 1 : 0);
	else if (strcmp(how, "halt"))
		power_off();
	for (;;)
		kernel(CALL_HALT, 0, 0);
}
