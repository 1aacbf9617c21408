/*
 * device.c - what every virtio device does, whatever it is and whatever carries it
 *
 * The guest's side of the contract is the status register: a driver climbs it one step at a time and
 * each step makes the ones below it final. A store that skips a step does not stick, so a driver that
 * reads back sees it; a store that would undo one is ignored. Only writing 0 goes down.
 *
 * Work happens in one place, the kick watch on the loop's thread, under dev.lock. A kick that comes as
 * a register write (no ioeventfd, or the PCI configuration window) only signals the same event, so a
 * vCPU thread never does a device's work and never runs device code nested in its own.
 *
 * Reset has to wait for the host: a backend may be reading into guest memory that the driver is about
 * to reuse. Waiting drops dev.lock, since completions take it. Two rules make that safe:
 *  - While it waits, @resetting makes every register store a no-op and stops new work; status reads what
 *    it was, so a driver that polls for 0 keeps polling. Whoever asks for a reset meanwhile returns at
 *    once.
 *  - How to wait depends on who must deliver. On a thread that owns the loop (or when nobody runs it, as
 *    in tests) nobody else can, so the loop is polled from here; anywhere else its thread will, and we
 *    sleep on @idle. So a reset cannot wait for itself. A machine must not rely on the first form: it
 *    nests callbacks. That is why devices with requests in flight live on I/O threads (device.h).
 *
 * Quiesce waits in the same way, with @stopped in the place of @resetting.
 */
#include <stdlib.h>
#include <string.h>

#include "virtio/device.h"

#define STATUS_STEPS                                                                    \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | \
	 VIRTIO_STATUS_DRIVER_OK)
#define STATUS_WRITABLE (STATUS_STEPS | VIRTIO_STATUS_FAILED)

static struct virtio *of(struct device *d)
{
	return (struct virtio *)d; /* first member */
}

static bool has_status(const struct virtio *v, uint8_t bits)
{
	return (v->regs.status & bits) == bits;
}

/* ---- state ---- */

static const struct state_field virtio_fields[] = {
	STATE_U64(1, struct virtio_regs, driver_features),
	STATE_U32(2, struct virtio_regs, feature_select),
	STATE_U32(3, struct virtio_regs, driver_feature_select),
	STATE_U16(4, struct virtio_regs, queue_select),
	STATE_U16(5, struct virtio_regs, config_vector),
	STATE_U8(6, struct virtio_regs, status),
	STATE_U8(7, struct virtio_regs, isr),
	STATE_U8(8, struct virtio_regs, config_generation),
	STATE_PAD(struct virtio_regs, pad_),
	STATE_U8_ARRAY(9, struct virtio_regs, config, VIRTIO_CONFIG_MAX),
};

static bool features_fit(const struct virtio *v, uint64_t theirs)
{
	return !(theirs & ~v->features) && theirs & VIRTIO_F_VERSION_1;
}

/* A set of steps without a gap; NEEDS_RESET and FAILED go with any. */
static bool status_fits(uint8_t status)
{
	const uint8_t s = status & STATUS_STEPS;

	return !(status & ~(STATUS_WRITABLE | VIRTIO_STATUS_NEEDS_RESET)) &&
	       (s == 0 || s == VIRTIO_STATUS_ACKNOWLEDGE ||
		s == (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER) ||
		s == (STATUS_STEPS & ~VIRTIO_STATUS_DRIVER_OK) || s == STATUS_STEPS);
}

static int virtio_validate(const void *regs, const void *device, struct err *err)
{
	const struct virtio_regs *r = regs;
	const struct virtio *v = device;

	if (!status_fits(r->status))
		return err_set(err, EINVAL, "virtio.status: 0x%02x is not one a driver can reach",
			       r->status);
	if (r->status & VIRTIO_STATUS_FEATURES_OK && !features_fit(v, r->driver_features))
		return err_set(err, EINVAL,
			       "virtio.driver_features: 0x%llx, while %s offers 0x%llx",
			       (unsigned long long)r->driver_features, v->dev.name,
			       (unsigned long long)v->features);
	if (r->config_vector != VIRTIO_NO_VECTOR && r->config_vector >= v->vectors)
		return err_set(err, EINVAL, "virtio.config_vector: %u of %u", r->config_vector,
			       v->vectors);
	if (r->isr & ~(VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG))
		return err_set(err, EINVAL, "virtio.isr: 0x%02x", r->isr);
	return 0;
}

const struct state_desc virtio_state =
	STATE_DESC("virtio", struct virtio_regs, virtio_fields, virtio_validate);

/* ---- for device kinds ---- */

bool virtio_running(const struct virtio *v)
{
	return has_status(v, VIRTIO_STATUS_DRIVER_OK) &&
	       !(v->regs.status & VIRTIO_STATUS_NEEDS_RESET) && !v->stopped && !v->resetting;
}

void virtio_flush(struct virtio *v, unsigned q)
{
	if (q >= v->nqueues || !virtq_flush(&v->queues[q]))
		return;
	v->regs.isr |= VIRTIO_ISR_QUEUE;
	if (v->transport)
		v->transport->signal_queue(v, q);
}

/* Only to a driver that is ready for it (3.1.1). */
static void signal_config(struct virtio *v)
{
	if (!has_status(v, VIRTIO_STATUS_DRIVER_OK))
		return;
	v->regs.isr |= VIRTIO_ISR_CONFIG;
	if (v->transport)
		v->transport->signal_config(v);
}

void virtio_fail(struct virtio *v, const char *why)
{
	if (v->regs.status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	log_guest(&v->complaints,
		  "%s: the guest's driver broke a rule: %s; it must reset the device", v->dev.name,
		  why);
	v->regs.status |= VIRTIO_STATUS_NEEDS_RESET;
	signal_config(v);
}

void virtio_config_changed(struct virtio *v)
{
	v->regs.config_generation++;
	signal_config(v);
}

void virtio_begin(struct virtio *v)
{
	v->in_flight++;
}

void virtio_end(struct virtio *v)
{
	BUG_ON(!v->in_flight);
	if (!--v->in_flight)
		pthread_cond_broadcast(&v->idle);
}

/* ---- waiting, reset ---- */

/* Under dev.lock, which is dropped while it waits. */
static void wait_idle(struct virtio *v)
{
	while (v->in_flight) {
		if (!loop_is_here(v->loop)) {
			pthread_cond_wait(&v->idle, &v->dev.lock);
			continue;
		}
		pthread_mutex_unlock(&v->dev.lock);
		loop_poll(v->loop, -1);
		pthread_mutex_lock(&v->dev.lock);
	}
}

static void reset_regs(struct virtio *v)
{
	struct virtio_regs *r = &v->regs;

	r->driver_features = 0;
	r->feature_select = r->driver_feature_select = 0;
	r->queue_select = 0;
	r->config_vector = VIRTIO_NO_VECTOR;
	r->status = 0;
	r->isr = 0;
	for (unsigned i = 0; i < v->nqueues; i++) {
		virtq_reset(&v->queues[i]);
		event_clear(&v->queues[i].kick);
	}
}

/* 2.4.1: afterwards the device touches no guest memory. */
static void reset(struct virtio *v)
{
	if (v->resetting)
		return;
	v->resetting = true;
	wait_idle(v);
	reset_regs(v);
	if (v->transport)
		v->transport->reset(v);
	if (v->ops->reset)
		v->ops->reset(v);
	v->active = false;
	v->resetting = false;
	pthread_cond_broadcast(&v->idle);
}

/* ---- the machine's calls: devices/device.h ---- */

static void device_reset(struct device *d)
{
	struct virtio *v = of(d);

	pthread_mutex_lock(&d->lock);
	reset(v);
	v->regs.config_generation = 0;
	if (v->transport)
		v->transport->power_on(v);
	pthread_mutex_unlock(&d->lock);
}

static void stop_on_loop(void *arg)
{
	struct virtio *v = arg;

	pthread_mutex_lock(&v->dev.lock);
	if (!v->stopped) {
		v->stopped = true;
		if (v->ops->stop)
			v->ops->stop(v);
	}
	pthread_mutex_unlock(&v->dev.lock);
}

static void device_quiesce(struct device *d)
{
	struct virtio *v = of(d);

	loop_call(v->loop, stop_on_loop, v);
	pthread_mutex_lock(&d->lock);
	wait_idle(v);
	/* A kind that flushes once a batch may have been waited for in the middle of one. */
	for (unsigned i = 0; i < v->nqueues; i++)
		virtio_flush(v, i);
	if (v->transport && v->transport->settle)
		v->transport->settle(v);
	pthread_mutex_unlock(&d->lock);
}

static void negotiated(struct virtio *v)
{
	for (unsigned i = 0; i < v->nqueues; i++) {
		v->queues[i].event_idx = virtio_has(v, VIRTIO_F_EVENT_IDX);
		v->queues[i].indirect = virtio_has(v, VIRTIO_F_INDIRECT_DESC);
	}
}

static void activate(struct virtio *v)
{
	v->active = true;
	if (v->ops->activate && v->ops->activate(v)) {
		virtio_fail(v, "the device could not be started as it is configured");
		return;
	}
	/* A driver may fill its queues, and even kick, before it is done with them (3.1.1). */
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->queues[i].regs.ready)
			event_signal(&v->queues[i].kick);
}

/* State may have been loaded since: bring what is derived from it in line. */
static void catch_up(struct virtio *v)
{
	bool loaded = has_status(v, VIRTIO_STATUS_DRIVER_OK) && !v->active;

	if (has_status(v, VIRTIO_STATUS_FEATURES_OK))
		negotiated(v);
	if (loaded)
		activate(v);
	if (v->transport && v->transport->resume)
		v->transport->resume(v);
	/*
	 * KVM may inject an interrupt a moment after its event was signalled, on a thread of its own: one
	 * that had not arrived when the local APIC was saved is lost. One too many does no harm.
	 */
	for (unsigned i = 0; loaded && v->transport && i < v->nqueues; i++)
		if (virtq_may_wait(&v->queues[i]))
			v->transport->signal_queue(v, i);
}

static void resume_on_loop(void *arg)
{
	struct virtio *v = arg;

	pthread_mutex_lock(&v->dev.lock);
	v->stopped = false;
	catch_up(v);
	if (v->ops->start)
		v->ops->start(v);
	for (unsigned i = 0; i < v->nqueues; i++)
		if (virtio_running(v) && v->queues[i].regs.ready)
			v->ops->kick(v, i);
	pthread_mutex_unlock(&v->dev.lock);
}

static void device_resume(struct device *d)
{
	struct virtio *v = of(d);

	loop_call(v->loop, resume_on_loop, v);
}

static void on_kick(struct loop_watch *w, uint32_t events)
{
	struct virtio_watch *k = (struct virtio_watch *)w; /* first member */
	struct virtio *v = k->v;
	const unsigned i = (unsigned)(k - v->watches);

	/* Cleared first: a kick that comes from here on wakes us again. */
	event_clear(&v->queues[i].kick);
	pthread_mutex_lock(&v->dev.lock);
	if (virtio_running(v) && v->queues[i].regs.ready)
		v->ops->kick(v, i);
	pthread_mutex_unlock(&v->dev.lock);
}

void virtio_watch_kicks(struct virtio *v, unsigned q, bool on)
{
	struct loop_watch *w = &v->watches[q].watch;
	int rc = 0;

	if (!on)
		loop_remove(w);
	else if (w->fd < 0)
		rc = loop_add(v->loop, w, v->queues[q].kick.fd, EPOLLIN, on_kick);
	if (rc)
		log_err("%s: cannot watch the kicks of queue %u: %s", v->dev.name, q,
			strerror(-rc));
}

/* ---- life ---- */

static int add_queues(struct virtio *v, uint16_t size, struct err *err)
{
	for (unsigned i = 0; i < v->nqueues; i++) {
		struct virtq *q = &v->queues[i];
		int rc = virtq_init(q, v->mem, (uint16_t)i, size, err);

		v->watches[i].watch.fd = -1;
		v->watches[i].v = v;
		if (!rc && loop_add(v->loop, &v->watches[i].watch, q->kick.fd, EPOLLIN, on_kick))
			rc = err_set(err, EIO, "cannot watch the kicks of queue %u", i);
		if (rc)
			return err_prefix(err, "%s", v->dev.name), rc;
		device_add_state(&v->dev, &virtq_state, &q->regs, q);
	}
	return 0;
}

int virtio_init(struct virtio *v, const struct virtio_ops *ops, const char *name, struct gmem *mem,
		struct loop *loop, uint64_t features, unsigned nqueues, uint16_t queue_size,
		struct err *err)
{
	int rc;

	*v = (struct virtio){ .ops = ops, .dev_ops = ops->dev, .mem = mem, .loop = loop };
	v->features = features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
	v->dev_ops.reset = device_reset;
	v->dev_ops.quiesce = device_quiesce;
	v->dev_ops.resume = device_resume;
	v->regs.config_vector = VIRTIO_NO_VECTOR;
	if (!nqueues || nqueues > VIRTIO_QUEUES_MAX)
		return err_set(err, EINVAL, "%s: %u queues: give 1 to %d", name, nqueues,
			       VIRTIO_QUEUES_MAX);
	rc = device_init(&v->dev, &v->dev_ops, name);
	if (rc)
		return err_set_sys(err, rc, "%s", name);
	pthread_cond_init(&v->idle, NULL);
	device_add_state(&v->dev, &virtio_state, &v->regs, v);
	v->queues = calloc(nqueues, sizeof(*v->queues));
	v->watches = calloc(nqueues, sizeof(*v->watches));
	for (unsigned i = 0; v->queues && i < nqueues; i++)
		event_init_counter(&v->queues[i].kick); /* so that virtio_fini may close it */
	if (!v->queues || !v->watches) {
		rc = err_set(err, ENOMEM, "%s: out of memory for its queues", name);
	} else {
		v->nqueues = nqueues;
		rc = add_queues(v, queue_size, err);
	}
	if (rc)
		virtio_fini(v);
	return rc;
}

static void unwatch(void *arg)
{
	struct virtio *v = arg;

	for (unsigned i = 0; i < v->nqueues; i++)
		loop_remove(&v->watches[i].watch);
}

void virtio_fini(struct virtio *v)
{
	BUG_ON(v->in_flight);
	loop_call(v->loop, unwatch, v);
	/* Leaves its bus first: nobody may find a device that is half gone. */
	if (v->transport)
		v->transport->free(v);
	v->transport = NULL;
	for (unsigned i = 0; i < v->nqueues; i++)
		virtq_fini(&v->queues[i]);
	free(v->queues);
	free(v->watches);
	v->queues = NULL;
	v->watches = NULL;
	v->nqueues = 0;
	pthread_cond_destroy(&v->idle);
	device_fini(&v->dev);
}

/* ---- for transports: status ---- */

uint8_t virtio_get_status(const struct virtio *v)
{
	return v->regs.status;
}

/* Take @bit if its predecessors are there. */
static void climb(struct virtio *v, uint8_t want, uint8_t bit, uint8_t after)
{
	if (!(want & bit) || v->regs.status & bit)
		return;
	if (!has_status(v, after)) {
		log_guest(&v->complaints, "%s: the guest's driver set status 0x%02x out of order",
			  v->dev.name, want);
		return;
	}
	v->regs.status |= bit;
}

/* 3.1.1, 5 and 6: the driver reads back whether FEATURES_OK stuck. */
static void check_features(struct virtio *v)
{
	if (features_fit(v, v->regs.driver_features)) {
		negotiated(v);
		return;
	}
	log_guest(&v->complaints, "%s: the guest's driver wants features 0x%llx of 0x%llx",
		  v->dev.name, (unsigned long long)v->regs.driver_features,
		  (unsigned long long)v->features);
	v->regs.status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
}

void virtio_set_status(struct virtio *v, uint8_t status)
{
	const uint8_t want = status & STATUS_WRITABLE;
	const uint8_t old = v->regs.status & STATUS_WRITABLE;

	if (v->resetting)
		return;
	if (!status) {
		reset(v);
		return;
	}
	if (old & ~want) {
		log_guest(&v->complaints,
			  "%s: the guest's driver clears status bits: 0x%02x to 0x%02x",
			  v->dev.name, old, status);
		return;
	}
	climb(v, want, VIRTIO_STATUS_ACKNOWLEDGE, 0);
	climb(v, want, VIRTIO_STATUS_DRIVER, VIRTIO_STATUS_ACKNOWLEDGE);
	climb(v, want, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	if (v->regs.status & ~old & VIRTIO_STATUS_FEATURES_OK)
		check_features(v);
	climb(v, want, VIRTIO_STATUS_DRIVER_OK, VIRTIO_STATUS_FEATURES_OK);
	if (v->regs.status & ~old & VIRTIO_STATUS_DRIVER_OK)
		activate(v);
	v->regs.status |= want & VIRTIO_STATUS_FAILED;
}

/* ---- for transports: features, queues, configuration ---- */

uint32_t virtio_get_features(const struct virtio *v)
{
	if (v->regs.feature_select > 1)
		return 0;
	return (uint32_t)(v->features >> 32 * v->regs.feature_select);
}

void virtio_set_features(struct virtio *v, uint32_t word)
{
	const unsigned shift = 32 * (v->regs.driver_feature_select & 1);

	if (v->regs.driver_feature_select > 1 || v->resetting ||
	    has_status(v, VIRTIO_STATUS_FEATURES_OK))
		return;
	v->regs.driver_features &= ~(UINT64_C(0xffffffff) << shift);
	v->regs.driver_features |= (uint64_t)word << shift;
}

struct virtq *virtio_selected_queue(struct virtio *v)
{
	return v->regs.queue_select < v->nqueues ? &v->queues[v->regs.queue_select] : NULL;
}

/* The selected queue if the driver may still set it up, else NULL. */
static struct virtq *settable_queue(struct virtio *v)
{
	struct virtq *q = virtio_selected_queue(v);

	if (!q || q->regs.ready || v->resetting || has_status(v, VIRTIO_STATUS_DRIVER_OK))
		return NULL;
	return q;
}

void virtio_set_queue_size(struct virtio *v, uint32_t size)
{
	struct virtq *q = settable_queue(v);

	if (q && size && size <= q->max && !(size & (size - 1)))
		q->regs.size = (uint16_t)size;
}

void virtio_set_queue_addr(struct virtio *v, enum virtq_area area, bool high, uint32_t half)
{
	struct virtq *q = settable_queue(v);

	if (!q)
		return;

	gpa_t *reg = area == VIRTQ_DESC   ? &q->regs.desc :
		     area == VIRTQ_DRIVER ? &q->regs.driver :
					    &q->regs.device;

	if (high)
		*reg = (*reg & 0xffffffff) | (gpa_t)half << 32;
	else
		*reg = (*reg & ~UINT64_C(0xffffffff)) | half;
}

void virtio_set_queue_ready(struct virtio *v, uint32_t ready)
{
	struct virtq *q = virtio_selected_queue(v);

	if (!q || v->resetting || has_status(v, VIRTIO_STATUS_DRIVER_OK) ||
	    !has_status(v, VIRTIO_STATUS_FEATURES_OK))
		return;
	if (ready != 1) {
		/* Nothing was popped before DRIVER_OK, so there is nothing to wait for. */
		q->regs.ready = 0;
		return;
	}
	if (q->regs.ready)
		return;
	if (virtq_check(q))
		virtio_fail(v, "a queue's rings are not aligned or not in RAM");
	else
		q->regs.ready = 1;
}

void virtio_read_config(struct virtio *v, unsigned off, void *data, unsigned len)
{
	uint8_t *to = data;

	for (unsigned i = 0; i < len; i++)
		to[i] = off < v->config_len && i < v->config_len - off ? v->regs.config[off + i] :
									 0xff;
}

void virtio_write_config(struct virtio *v, unsigned off, const void *data, unsigned len)
{
	if (!v->ops->write_config || v->resetting || off > v->config_len ||
	    len > v->config_len - off)
		return;
	v->ops->write_config(v, off, data, len);
}

void virtio_notify(struct virtio *v, uint32_t queue)
{
	if (queue < v->nqueues)
		event_signal(&v->queues[queue].kick);
}
