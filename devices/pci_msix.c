/*
 * pci_msix.c - MSI-X: the table, the pending bits and the way to KVM (PCI 3.0, 6.8.2)
 *
 * A vector is an event. While the guest lets it through, the wiring has the event bound and a signal
 * goes straight to the interrupt controller; while it is masked the event is bound to nothing and simply
 * stays signalled. So the event is the pending bit, and binding it on unmask delivers it
 * (devices/wiring.h promises that). regs.pending follows for the sake of saved state; a kernel that works
 * on a queue signals the event directly (pci_msix_event()), and regs.pending then follows when it stops.
 *
 * Address and data are junk until the guest says otherwise, and may be junk then: a bind that fails
 * leaves the vector as it is, pending if it was signalled, and the next signal tries again.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/pci.h"

#define CAP_ID_MSIX      0x11
#define CONTROL_ENABLE   0x8000
#define CONTROL_MASK_ALL 0x4000
#define ENTRY_MASKED     1u

static int msix_validate(const void *regs, const void *device, struct err *err)
{
	const struct pci_msix_regs *r = regs;
	const struct pci_function *f = device;

	if (r->count > PCI_MSIX_MAX || (f && r->count != f->msix.count))
		return err_set(err, EINVAL, "count: %u vectors, this device has %u", r->count,
			       f ? f->msix.count : PCI_MSIX_MAX);
	for (unsigned i = 0; i < PCI_MSIX_MAX; i++) {
		if (r->entry[i].ctrl & ~ENTRY_MASKED)
			return err_set(err, EINVAL, "entry: vector control %u is 0x%x", i,
				       r->entry[i].ctrl);
		if (r->pending[i] > 1)
			return err_set(err, EINVAL, "pending: element %u is %u", i, r->pending[i]);
	}
	return 0;
}

static const struct state_field entry_fields[] = {
	STATE_U64(1, struct pci_msix_entry, addr),
	STATE_U32(2, struct pci_msix_entry, data),
	STATE_U32(3, struct pci_msix_entry, ctrl),
};
static const struct state_desc entry_state =
	STATE_DESC("msix-entry", struct pci_msix_entry, entry_fields, NULL);

static const struct state_field msix_fields[] = {
	STATE_TABLE(1, struct pci_msix_regs, entry, PCI_MSIX_MAX, &entry_state),
	STATE_U8_ARRAY(2, struct pci_msix_regs, pending, PCI_MSIX_MAX),
	STATE_U32(3, struct pci_msix_regs, count),
};
const struct state_desc msix_state =
	STATE_DESC("msix", struct pci_msix_regs, msix_fields, msix_validate);

/* ---- binding vectors ---- */

static bool open_to_guest(const struct pci_function *f, unsigned vector)
{
	uint16_t control =
		(uint16_t)(f->regs.cfg[f->msix_cap + 2] | f->regs.cfg[f->msix_cap + 3] << 8);

	return (control & (CONTROL_ENABLE | CONTROL_MASK_ALL)) == CONTROL_ENABLE &&
	       !(f->msix.entry[vector].ctrl & ENTRY_MASKED);
}

/* Bring the wiring in line with the table. Masking comes first: the event then keeps what comes. */
static void update_vector(struct pci_function *f, unsigned vector)
{
	const struct pci_msix_entry *e = &f->msix.entry[vector];
	struct wire_msi *m = &f->wire[vector];
	bool open = open_to_guest(f, vector);

	if (m->bound && (!open || m->addr != e->addr || m->data != e->data))
		f->wiring->ops->unbind_msi(f->wiring, m);
	if (!open || m->bound)
		return;

	m->addr = e->addr;
	m->data = e->data;
	int rc = f->wiring->ops->bind_msi(f->wiring, m);

	if (rc)
		log_guest(&f->complaints, "MSI-X vector %u cannot go to 0x%llx: %s", vector,
			  (unsigned long long)e->addr, strerror(-rc));
	else
		f->msix.pending[vector] = 0;
}

void pci_msix_update(struct pci_function *f)
{
	for (unsigned i = 0; i < f->msix.count; i++)
		update_vector(f, i);
}

void pci_msix_signal(struct pci_function *f, unsigned vector)
{
	if (vector >= f->msix.count)
		return;
	event_signal(f->vector[vector]);
	if (!f->wire[vector].bound) {
		f->msix.pending[vector] = 1;
		update_vector(f, vector);
	}
}

struct event *pci_msix_event(struct pci_function *f, unsigned vector)
{
	return vector < f->msix.count ? f->vector[vector] : NULL;
}

void pci_msix_settle(struct pci_function *f)
{
	for (unsigned i = 0; i < f->msix.count; i++)
		f->msix.pending[i] = !f->wire[i].bound && event_pending(f->vector[i]);
}

/* ---- table and pending bits ---- */

void pci_msix_table_read(struct pci_function *f, uint64_t off, void *data, unsigned len)
{
	uint64_t size = PCI_MSIX_TABLE_SIZE(f->msix.count);
	uint8_t *out = data;

	for (unsigned i = 0; i < len; i++) {
		uint64_t at = off + i;
		uint8_t bytes[16];

		if (at < off || at >= size) {
			out[i] = 0;
			continue;
		}
		/* The wire form is little-endian, as every host we run on. */
		memcpy(bytes, &f->msix.entry[at / 16], sizeof(bytes));
		out[i] = bytes[at % 16];
	}
}

/* Software stores whole, aligned 32- or 64-bit words (6.8.2); what it does otherwise is ignored. */
void pci_msix_table_write(struct pci_function *f, uint64_t off, const void *data, unsigned len)
{
	uint64_t size = PCI_MSIX_TABLE_SIZE(f->msix.count);
	unsigned vector = (unsigned)(off / 16), word = off % 16;
	struct pci_msix_entry *e;
	uint8_t *bytes;

	if ((len != 4 && len != 8) || off % len || off >= size)
		return;
	e = &f->msix.entry[vector];
	bytes = (uint8_t *)e;
	memcpy(bytes + word, data, len);
	e->ctrl &= ENTRY_MASKED;
	update_vector(f, vector);
}

void pci_msix_pba_read(struct pci_function *f, uint64_t off, void *data, unsigned len)
{
	uint8_t *out = data;

	memset(out, 0, len);
	for (unsigned i = 0; i < len * 8; i++) {
		uint64_t vector = off * 8 + i;

		if (off < PCI_MSIX_MAX && vector < f->msix.count && !f->wire[vector].bound &&
		    event_pending(f->vector[vector]))
			out[i / 8] |= (uint8_t)(1u << (i % 8));
	}
}

/* ---- making, resetting, loading ---- */

static int add_vectors(struct pci_function *f, unsigned count, struct err *err)
{
	for (unsigned i = 0; i < count; i++) {
		struct event *e = calloc(1, sizeof(*e));

		if (!e)
			return err_set(err, ENOMEM, "out of memory for MSI-X vectors");
		int rc = event_init(e, err);

		if (rc) {
			free(e);
			return rc;
		}
		f->vector[i] = e;
		f->wire[i] = (struct wire_msi){ .event = e, .gsi = -1 };
		f->msix.entry[i].ctrl = ENTRY_MASKED;
		f->msix.count = i + 1;
	}
	return 0;
}

int pci_add_msix(struct pci_function *f, struct wiring *wiring, unsigned count, unsigned bar,
		 uint32_t table_off, uint32_t pba_off, struct err *err)
{
	static const uint8_t wmask[10] = { 0x00, (CONTROL_ENABLE | CONTROL_MASK_ALL) >> 8 };
	uint32_t table = table_off | bar, pba = pba_off | bar;
	uint8_t body[10] = { (uint8_t)(count - 1), (uint8_t)((count - 1) >> 8) };

	BUG_ON(f->msix_cap || bar >= PCI_BARS_MAX || (table_off | pba_off) & 7);
	if (!count || count > PCI_MSIX_MAX)
		return err_set(err, EINVAL, "%u MSI-X vectors: a function has 1 to %u", count,
			       PCI_MSIX_MAX);
	f->wiring = wiring;

	int rc = add_vectors(f, count, err);

	if (rc) {
		pci_msix_fini(f);
		return rc;
	}
	memcpy(body + 2, &table, 4);
	memcpy(body + 6, &pba, 4);
	f->msix_cap = (uint8_t)pci_add_cap(f, CAP_ID_MSIX, body, sizeof(body), wmask);
	return 0;
}

void pci_msix_fini(struct pci_function *f)
{
	for (unsigned i = 0; i < f->msix.count; i++) {
		if (f->wire[i].bound)
			f->wiring->ops->unbind_msi(f->wiring, &f->wire[i]);
		event_fini(f->vector[i]);
		free(f->vector[i]);
		f->vector[i] = NULL;
	}
	f->msix.count = 0;
}

void pci_msix_reset(struct pci_function *f)
{
	for (unsigned i = 0; i < f->msix.count; i++) {
		f->msix.entry[i] = (struct pci_msix_entry){ .ctrl = ENTRY_MASKED };
		f->msix.pending[i] = 0;
		update_vector(f, i);
		event_clear(f->vector[i]);
	}
}

void pci_msix_restore(struct pci_function *f)
{
	for (unsigned i = 0; i < f->msix.count; i++) {
		if (f->msix.pending[i])
			event_signal(f->vector[i]);
		update_vector(f, i);
	}
}
