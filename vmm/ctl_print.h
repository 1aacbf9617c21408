/*
 * ctl_print.h - answers of a machine as a person reads them
 *
 * What is absent or of another type than expected is left out: the machine may be older or newer.
 */
#ifndef VMM_CTL_PRINT_H
#define VMM_CTL_PRINT_H

#include <json-c/json.h>
#include <stdio.h>

void ctl_print_info(FILE *f, struct json_object *info);
void ctl_print_stats(FILE *f, struct json_object *stats);
void ctl_print_list(FILE *f, struct json_object *infos); /* an array */
void ctl_print_state(FILE *f, const char *machine, struct json_object *result);
void ctl_print_event(FILE *f, struct json_object *notification);
void ctl_print_json(FILE *f, struct json_object *o); /* one line */

#endif
