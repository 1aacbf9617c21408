/*
 * config_completion.c - the table of keys as a bash completion
 *
 * Bash splits words at '=' and ':' (COMP_WORDBREAKS) but not at ',', so "--disk a.img,aio=thr" arrives
 * in pieces that mean nothing by themselves. The script therefore takes the line apart at blanks
 * itself and hands back only what bash expects to replace: the part behind its last break. It needs
 * nothing but bash; the bash-completion package only finds and loads it.
 */
#include "vmm/config_keys.h"

#include "vmm/commands.h"

static const char prologue[] =
	"# bash completion for coracle(1); made by `coracle help --completion`\n"
	"# shellcheck shell=bash\n"
	"\n";

/* The logic; the facts are the functions printed before it. */
static const char logic[] =
	"# Complete $1, the value of $2 ('disk', 'disk.aio'), adding $3 in front of each answer.\n"
	"_coracle_scalar()\n"
	"{\n"
	"\tlocal words\n"
	"\twords=$(_coracle_words \"$2\")\n"
	"\tif [[ $words == @file ]]; then\n"
	"\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\tmapfile -t _coracle_found < <(compgen -P \"$3\" -f -- \"$1\")\n"
	"\telse\n"
	"\t\tmapfile -t _coracle_found < <(compgen -P \"$3\" -W \"$words\" -- \"$1\")\n"
	"\tfi\n"
	"}\n"
	"\n"
	"# The same for a list of KEY=VALUE; the first item may be a bare value of the first key.\n"
	"_coracle_value()\n"
	"{\n"
	"\tlocal keys item stem key bare=() taken k\n"
	"\tkeys=$(_coracle_keys \"$2\")\n"
	"\tif [[ -z $keys ]]; then\n"
	"\t\t_coracle_scalar \"$@\"\n"
	"\t\treturn\n"
	"\tfi\n"
	"\titem=${1##*,}\n"
	"\tstem=${1%\"$item\"}\n"
	"\tif [[ $item == *=* ]]; then\n"
	"\t\tkey=${item%%=*}\n"
	"\t\t_coracle_scalar \"${item#*=}\" \"$2.$key\" \"$3$stem$key=\"\n"
	"\t\treturn\n"
	"\tfi\n"
	"\tif [[ -z $stem ]]; then\n"
	"\t\t_coracle_scalar \"$item\" \"$2.${keys%%=*}\" \"$3\"\n"
	"\t\tbare=(\"${_coracle_found[@]}\")\n"
	"\tfi\n"
	"\ttaken=,$stem\n"
	"\tfor k in $keys; do\n"
	"\t\t[[ $taken == *\",$k\"* ]] && keys=${keys/\"$k\"/}\n"
	"\tdone\n"
	"\tmapfile -t _coracle_found < <(compgen -P \"$3$stem\" -W \"$keys\" -- \"$item\")\n"
	"\t_coracle_found+=(\"${bare[@]}\")\n"
	"}\n"
	"\n"
	"_coracle()\n"
	"{\n"
	"\tlocal line=${COMP_LINE:0:COMP_POINT} piece=${COMP_WORDS[COMP_CWORD]} full before prev "
	"i\n"
	"\tlocal _coracle_found=()\n"
	"\tfull=${line##*[[:space:]]}\n"
	"\tread -ra before <<<\"${line%\"$full\"}\"\n"
	"\t[[ $piece == [=:] ]] && piece=\n"
	"\tCOMPREPLY=()\n"
	"\tif ((${#before[@]} < 2)); then\n"
	"\t\tmapfile -t _coracle_found < <(compgen -W \"$(_coracle_words '')\" -- \"$full\")\n"
	"\telif [[ ${before[1]} != run ]]; then\n"
	"\t\tmapfile -t _coracle_found < <(compgen -W \"$(_coracle_words \" ${before[1]}\")\" -- "
	"\"$full\")\n"
	"\telse\n"
	"\t\tprev=${before[-1]}\n"
	"\t\tif [[ $full == --*=* ]]; then\n"
	"\t\t\tprev=${full%%=*}\n"
	"\t\t\t_coracle_value \"${full#*=}\" \"${prev#--}\" \"$prev=\"\n"
	"\t\telif [[ $prev == --* && $prev != *=* ]] && _coracle_takes_value \"${prev#--}\"; then\n"
	"\t\t\t_coracle_value \"$full\" \"${prev#--}\" ''\n"
	"\t\telse\n"
	"\t\t\tmapfile -t _coracle_found < <(compgen -W \"$(_coracle_words ' run')\" -- "
	"\"$full\")\n"
	"\t\tfi\n"
	"\tfi\n"
	"\tfor i in \"${_coracle_found[@]}\"; do\n"
	"\t\t[[ $i == *= ]] && compopt -o nospace 2>/dev/null\n"
	"\t\tCOMPREPLY+=(\"${i:${#full}-${#piece}}\")\n"
	"\tdone\n"
	"}\n"
	"complete -F _coracle coracle\n";

/* One line of a case: what @k's value completes to. Groups have their own. */
static void print_key_words(FILE *f, const char *group, const struct config_key *k)
{
	bool is_switch = k->type == KEY_BOOL || k->type == KEY_FLAG;

	for (const struct config_key *s = k->sub; s && s->name; s++)
		print_key_words(f, k->name, s);
	if (!is_switch && !k->words && k->type != KEY_FILE && k->type != KEY_CONFIG)
		return;
	fprintf(f, "\t%s%s%s) echo ", group, *group ? "." : "", k->name);
	if (is_switch)
		fputs("'on off'", f);
	else if (!k->words)
		fputs("@file", f);
	for (unsigned i = 0; k->words && k->words[i]; i++)
		fprintf(f, "%s%s%s", i ? " " : "'", k->words[i], k->words[i + 1] ? "" : "'");
	fputs(" ;;\n", f);
}

static void print_command_words(FILE *f, const struct command *commands)
{
	fputs("\t'') echo '", f);
	for (const struct command *c = commands; c->name; c++)
		fprintf(f, "%s%s", c == commands ? "" : " ", c->name);
	fputs("' ;;\n", f);
	for (const struct command *c = commands; c->name; c++)
		if (c->words)
			fprintf(f, "\t' %s') echo '%s' ;;\n", c->name, c->words);
	fputs("\t' run') echo '", f);
	for (const struct config_key *k = config_keys; k->name; k++)
		fprintf(f, "%s--%s", k == config_keys ? "" : " ", k->name);
	for (const struct config_alias *a = config_aliases; a->key; a++)
		if (a->name)
			fprintf(f, " --%s", a->name);
	fputs("' ;;\n", f);
}

void config_print_completion(FILE *f, const struct command *commands)
{
	fputs(prologue, f);
	fputs("# What may stand for $1: a key, 'group.key', '' (a command), ' command' (its "
	      "options).\n"
	      "_coracle_words()\n{\n\tcase $1 in\n",
	      f);
	print_command_words(f, commands);
	for (const struct config_key *k = config_keys; k->name; k++)
		print_key_words(f, "", k);
	fputs("\tesac\n}\n\n# The keys of group $1.\n_coracle_keys()\n{\n\tcase $1 in\n", f);
	for (const struct config_key *k = config_keys; k->name; k++) {
		if (!k->sub)
			continue;
		fprintf(f, "\t%s) echo '", k->name);
		for (const struct config_key *s = k->sub; s->name; s++)
			fprintf(f, "%s%s=", s == k->sub ? "" : " ", s->name);
		fputs("' ;;\n", f);
	}
	fputs("\tesac\n}\n\n_coracle_takes_value()\n{\n\tcase $1 in\n\t", f);
	for (const struct config_key *k = config_keys, *first = NULL; k->name; k++) {
		if (k->type == KEY_FLAG)
			continue;
		fprintf(f, "%s%s", first ? " | " : "", k->name);
		first = k;
	}
	fputs(") return 0 ;;\n\t*) return 1 ;;\n\tesac\n}\n\n", f);
	fputs(logic, f);
}
