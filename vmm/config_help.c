/*
 * config_help.c - the table of keys for people: --help and the manual page's list of options
 */
#include "vmm/config_keys.h"

#include <stdarg.h>
#include <string.h>

#define HELP_WIDTH  80
#define HELP_COLUMN 28 /* where descriptions start */
#define MAN_WIDTH   78 /* mandoc -T lint complains from 80 on */
#define TEXT_MAX    512

/* "pci|mmio" for words, the metavar otherwise; "" for a switch without a value. */
static const char *value_name(const struct config_key *k, char *buf, size_t size)
{
	size_t at = 0;

	if (k->type == KEY_FLAG)
		return "";
	if (k->type == KEY_BOOL)
		return "on|off";
	if (k->type != KEY_WORD)
		return k->metavar;
	buf[0] = '\0';
	for (unsigned i = 0; k->words[i] && at < size; i++)
		at += (size_t)snprintf(buf + at, size - at, "%s%s", i ? "|" : "", k->words[i]);
	return buf;
}

static bool has_shown_default(const struct config_key *k)
{
	return k->def && k->type != KEY_FLAG;
}

/* ---- --help ---- */

/* @text broken at spaces; the cursor is at column @at, further lines start at @indent. */
static void print_wrapped(FILE *f, const char *text, int at, int indent)
{
	const char *sep = "";

	while (*text) {
		int len = (int)strcspn(text, " ");

		if (at + (int)strlen(sep) + len > HELP_WIDTH && *sep) {
			fprintf(f, "\n%*s", indent, "");
			at = indent;
			sep = "";
		}
		fprintf(f, "%s%.*s", sep, len, text);
		at += (int)strlen(sep) + len;
		sep = " ";
		text += len;
		text += strspn(text, " ");
	}
	fputc('\n', f);
}

static void print_entry(FILE *f, const char *head, const char *text)
{
	int at = (int)strlen(head);

	fputs(head, f);
	if (at + 2 > HELP_COLUMN) {
		fputc('\n', f);
		at = 0;
	}
	fprintf(f, "%*s", HELP_COLUMN - at, "");
	print_wrapped(f, text, HELP_COLUMN, HELP_COLUMN);
}

static void print_key(FILE *f, const struct config_key *k, bool in_group)
{
	char words[TEXT_MAX], head[TEXT_MAX], text[TEXT_MAX];
	const char *value = value_name(k, words, sizeof(words));

	snprintf(head, sizeof(head), "%s%s%s%s", in_group ? "      " : "  --", k->name,
		 !*value  ? "" :
		 in_group ? "=" :
			    " ",
		 value);
	if (k->required)
		snprintf(text, sizeof(text), "%s (required)", k->help);
	else if (has_shown_default(k))
		snprintf(text, sizeof(text), "%s (default %s)", k->help, k->def);
	else
		snprintf(text, sizeof(text), "%s", k->help);
	print_entry(f, head, text);
	for (const struct config_key *s = k->sub; s && s->name; s++)
		print_key(f, s, true);
}

static void print_aliases(FILE *f)
{
	for (const struct config_alias *a = config_aliases; a->key; a++) {
		char head[TEXT_MAX];

		snprintf(head, sizeof(head), "  -%c%s%s", a->letter, a->name ? ", --" : "",
			 a->name ? a->name : "");
		print_entry(f, head, a->help);
	}
}

void config_print_help(FILE *f)
{
	fputs("usage: coracle run --kernel FILE [OPTION]...\n"
	      "\n"
	      "Start a virtual machine and stay until it ends. An option's value follows it, as\n"
	      "in --cpus 2 or --cpus=2; of an option given twice the last one counts, but every\n"
	      "--disk and --net adds a device. In KEY=VALUE lists ,, stands for a comma.\n",
	      f);
	for (const struct config_key *k = config_keys; k->name; k++) {
		if (k->section)
			fprintf(f, "\n%s:\n", k->section);
		print_key(f, k, false);
	}
	print_aliases(f);
	fputs("\nThe manual is coracle(1).\n", f);
}

/* ---- mdoc ---- */

/* One word of roff text: backslashes are escaped, a leading dot or quote is not a request. */
static int print_roff_word(FILE *f, const char *word, int len, bool line_start)
{
	int n = len;

	if (line_start && (*word == '.' || *word == '\'')) {
		fputs("\\&", f);
		n += 2;
	}
	for (int i = 0; i < len; i++) {
		fputc(word[i], f);
		if (word[i] == '\\') {
			fputc('e', f);
			n++;
		}
	}
	return n;
}

/* Sentences start on their own lines, as mdoc wants them. */
static void print_roff(FILE *f, const char *text)
{
	bool line_start = true;
	int at = 0;

	while (*text) {
		int len = (int)strcspn(text, " ");

		if (!line_start && at + 1 + len > MAN_WIDTH) {
			fputc('\n', f);
			line_start = true;
			at = 0;
		}
		if (!line_start)
			fputc(' ', f);
		at += print_roff_word(f, text, len, line_start) + !line_start;
		line_start = false;
		if (text[len - 1] == '.' && text[len]) {
			fputc('\n', f);
			line_start = true;
			at = 0;
		}
		text += len;
		text += strspn(text, " ");
	}
	if (!line_start)
		fputc('\n', f);
}

/* help is half a line: make it a sentence. */
static void print_man_text(FILE *f, const struct config_key *k)
{
	char text[TEXT_MAX];

	snprintf(text, sizeof(text), "%c%s.", k->help[0] & ~0x20, k->help + 1);
	print_roff(f, text);
	if (k->more)
		print_roff(f, k->more);
	if (k->required)
		fputs("Required.\n", f);
	else if (has_shown_default(k))
		fprintf(f, "The default is\n.Cm %s .\n", k->def);
}

static void print_man_key(FILE *f, const struct config_key *k, bool in_group)
{
	char words[TEXT_MAX], allowed[256], line[TEXT_MAX];
	const char *value = value_name(k, words, sizeof(words));
	const char *macro = k->type == KEY_WORD || k->type == KEY_BOOL ? "Cm" : "Ar";

	if (in_group)
		fprintf(f, ".It Cm %s Ns = Ns %s %s\n", k->name, macro, value);
	else if (*value)
		fprintf(f, ".It Fl -%s %s %s\n", k->name, macro, value);
	else
		fprintf(f, ".It Fl -%s\n", k->name);
	print_man_text(f, k);
	if (k->type == KEY_UINT || k->type == KEY_POW2 || k->type == KEY_SIZE) {
		config_value_allowed(k, allowed, sizeof(allowed));
		snprintf(line, sizeof(line), "It must be %s.", allowed);
		print_roff(f, line);
	}
	if (!k->sub)
		return;
	fprintf(f, "The name of the first key,\n.Cm %s ,\nmay be left out.\n", k->sub->name);
	fputs(".Bl -tag -width Ds\n", f);
	for (const struct config_key *s = k->sub; s->name; s++)
		print_man_key(f, s, true);
	fputs(".El\n", f);
}

void config_print_man(FILE *f)
{
	for (const struct config_key *k = config_keys; k->name; k++) {
		if (k->section)
			fprintf(f, "%s.Ss %s\n.Bl -tag -width Ds\n",
				k == config_keys ? "" : ".El\n", k->section);
		print_man_key(f, k, false);
	}
	for (const struct config_alias *a = config_aliases; a->key; a++) {
		fprintf(f, ".It Fl %c", a->letter);
		if (a->name)
			fprintf(f, " , Fl -%s", a->name);
		fprintf(f, "\nThe same as\n.Fl -%s", a->key);
		if (config_key_find(config_keys, a->key, strlen(a->key))->type != KEY_FLAG)
			fprintf(f, " Cm %s", a->value);
		fputs(" .\n", f);
	}
	fputs(".El\n", f);
}
