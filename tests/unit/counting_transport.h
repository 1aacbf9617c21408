/*
 * counting_transport.h - a transport with no registers: it counts what the device signals
 *
 * For tests and fuzzers that drive a device by the calls that transports make. A queue's count belongs to
 * the thread that serves the queue; who waits for another thread waits for the semaphore.
 */
#ifndef TESTS_UNIT_COUNTING_TRANSPORT_H
#define TESTS_UNIT_COUNTING_TRANSPORT_H

#include <semaphore.h>

#include "virtio/device.h"

struct counting {
	unsigned queue[VIRTIO_QUEUES_MAX], config;
	sem_t signalled; /* posted with each of a queue */
};

static inline void counting_queue_(struct virtio *v, unsigned q)
{
	struct counting *c = v->transport_data;

	c->queue[q]++;
	sem_post(&c->signalled);
}

static inline void counting_config_(struct virtio *v)
{
	((struct counting *)v->transport_data)->config++;
}

static inline void counting_nothing_(struct virtio *v)
{
}

static const struct virtio_transport_ops counting_transport = {
	.signal_queue = counting_queue_,
	.signal_config = counting_config_,
	.reset = counting_nothing_,
	.power_on = counting_nothing_,
	.resume = counting_nothing_,
	.free = counting_nothing_,
};

/* @c outlives @v, and has no other device. */
static inline void counting_attach(struct counting *c, struct virtio *v)
{
	*c = (struct counting){ 0 };
	sem_init(&c->signalled, 0, 0);
	v->transport = &counting_transport;
	v->transport_data = c;
}

static inline void counting_clear(struct counting *c)
{
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		c->queue[i] = 0;
	c->config = 0;
}

/* Signals of all queues. */
static inline unsigned counting_sum(const struct counting *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		n += c->queue[i];
	return n;
}

#endif
