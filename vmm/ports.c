/*
 * ports.c - between a line's device and its console
 *
 * The two lines differ in what their devices can be told, which is a table of four functions; who gets
 * what was typed and what the keys after Ctrl-A do is the same for both.
 */
#include "backends/console.h"
#include "base/log.h"
#include "devices/uart16550.h"
#include "virtio/console.h"
#include "vmm/exit_status.h"
#include "vmm/monitor.h"
#include "vmm/vm.h"

struct port_kind {
	const char *option, *name;
	size_t (*room)(struct vm *vm);
	void (*input)(struct vm *vm, const uint8_t *data, size_t len);
	void (*send_break)(struct vm *vm);                           /* NULL: it has none */
	void (*resize)(struct vm *vm, uint16_t cols, uint16_t rows); /* NULL: it has no size */
};

static size_t serial_room(struct vm *vm)
{
	return uart16550_room(vm->serial);
}

static void serial_input(struct vm *vm, const uint8_t *data, size_t len)
{
	uart16550_input(vm->serial, data, len);
}

static void serial_break(struct vm *vm)
{
	uart16550_break(vm->serial);
}

static size_t virtio_room(struct vm *vm)
{
	return virtio_console_room(vm->virtio_console);
}

static void virtio_input(struct vm *vm, const uint8_t *data, size_t len)
{
	virtio_console_input(vm->virtio_console, data, len);
}

static void virtio_resize(struct vm *vm, uint16_t cols, uint16_t rows)
{
	virtio_console_resize(vm->virtio_console, cols, rows);
}

static const struct port_kind kinds[PORTS] = {
	[PORT_SERIAL] = { "--serial", "serial port", serial_room, serial_input, serial_break,
			  NULL },
	[PORT_VIRTIO] = { "--console", "virtio console", virtio_room, virtio_input, NULL,
			  virtio_resize },
};

/* ---- the device's side ---- */

void port_transmit(void *opaque, const uint8_t *data, size_t len)
{
	struct console *c = ((struct port *)opaque)->console;

	c->ops->write(c, data, len);
}

void port_receive_ready(void *opaque)
{
	struct console *c = ((struct port *)opaque)->console;

	c->ops->poke(c);
}

/* ---- the console's side ---- */

static size_t on_room(void *opaque)
{
	struct port *p = opaque;

	return monitor_is_open(p->vm->monitor, p->console) ? SIZE_MAX : p->kind->room(p->vm);
}

static void on_input(void *opaque, const uint8_t *data, size_t len)
{
	struct port *p = opaque;

	if (monitor_is_open(p->vm->monitor, p->console))
		monitor_input(p->vm->monitor, data, len);
	else
		p->kind->input(p->vm, data, len);
}

static void on_escape(void *opaque, enum console_escape what)
{
	struct port *p = opaque;

	switch (what) {
	case CONSOLE_ESCAPE_QUIT:
		vm_stop(p->vm, EXIT_OK, "quit");
		break;
	case CONSOLE_ESCAPE_BREAK:
		if (p->kind->send_break)
			p->kind->send_break(p->vm);
		break;
	case CONSOLE_ESCAPE_COMMAND:
		monitor_toggle(p->vm->monitor, p->console);
		break;
	}
}

static void on_resize(void *opaque, uint16_t cols, uint16_t rows)
{
	struct port *p = opaque;

	if (p->kind->resize)
		p->kind->resize(p->vm, cols, rows);
}

/* ---- making and freeing ---- */

int port_connect(struct vm *vm, unsigned which, const char *spec, struct err *err)
{
	struct port *p = &vm->ports[which];
	struct console_user user = { .room = on_room,
				     .input = on_input,
				     .escape = on_escape,
				     .resize = on_resize,
				     .opaque = p };

	p->vm = vm;
	p->kind = &kinds[which];
	p->console = console_new(spec, vm->loop, &user, err);
	if (!p->console)
		return err_prefix(err, "%s", p->kind->option);
	if (p->console->description)
		log_info("%s: %s", p->kind->name, p->console->description);
	return 0;
}

const char *port_description(const struct vm *vm, unsigned which)
{
	return vm->ports[which].console ? vm->ports[which].console->description : NULL;
}

void ports_free(struct vm *vm)
{
	for (unsigned i = 0; i < PORTS; i++) {
		if (vm->ports[i].console)
			vm->ports[i].console->ops->free(vm->ports[i].console);
		vm->ports[i].console = NULL;
	}
}
