/*
 * device.c - what every device has: a name, a lock and the list of its state
 *
 * Nothing here is virtual: a device embeds a struct device and fills in its operations, so this file
 * is only the part that would otherwise be written once per device.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "devices/device.h"

int device_init(struct device *d, const struct device_ops *ops, const char *name)
{
	char *copy = strdup(name);

	if (!copy)
		return -ENOMEM;
	*d = (struct device){ .ops = ops, .name = copy };
	pthread_mutex_init(&d->lock, NULL);
	return 0;
}

void device_fini(struct device *d)
{
	pthread_mutex_destroy(&d->lock);
	free((char *)d->name);
	d->name = NULL;
	d->nparts = 0;
}

void device_add_state(struct device *d, const struct state_desc *desc, void *regs,
		      const void *validate_with)
{
	BUG_ON(d->nparts == DEVICE_PARTS_MAX);
	d->parts[d->nparts++] = (struct state_part){ desc, regs, validate_with };
}
