/*
 * device.h - a virtio device, whatever carries it (virtio 1.2 chapters 2 and 3)
 *
 * A kind of device (blk.c, net.c, rng.c) fills a struct virtio_ops and its configuration space; a
 * transport (mmio.c, pci.c) turns register accesses into the virtio_* calls below. Neither knows
 * the other. Status order, feature checks, reset and the stop order are here, once.
 *
 * Threads: registers on a vCPU thread under dev.lock; kicks on @loop's thread under dev.lock, one
 * batch a time. A device with requests in flight lives on an I/O thread's loop, never the main one:
 * a vCPU that resets it, and the main thread that quiesces it, wait for completions to arrive there.
 */
#ifndef VIRTIO_DEVICE_H
#define VIRTIO_DEVICE_H

#include "base/log.h"
#include "base/loop.h"
#include "devices/device.h"
#include "virtio/queue.h"

#define VIRTIO_QUEUES_MAX 65 /* 32 receive/transmit pairs and a control queue; or 64 block queues */
#define VIRTIO_CONFIG_MAX 64 /* bytes of device configuration */
#define VIRTIO_NO_VECTOR  0xffff

#define VIRTIO_STATUS_ACKNOWLEDGE 1
#define VIRTIO_STATUS_DRIVER      2
#define VIRTIO_STATUS_DRIVER_OK   4
#define VIRTIO_STATUS_FEATURES_OK 8
#define VIRTIO_STATUS_NEEDS_RESET 64
#define VIRTIO_STATUS_FAILED      128

#define VIRTIO_F_INDIRECT_DESC   (1ull << 28)
#define VIRTIO_F_EVENT_IDX       (1ull << 29)
#define VIRTIO_F_VERSION_1       (1ull << 32)
#define VIRTIO_F_ACCESS_PLATFORM (1ull << 33)
#define VIRTIO_F_RING_RESET      (1ull << 40)

#define VIRTIO_ISR_QUEUE  1
#define VIRTIO_ISR_CONFIG 2

/* Guest-visible state (table virtio_state). */
struct virtio_regs {
	uint64_t driver_features; /* what the driver wrote; ours & theirs once FEATURES_OK */
	uint32_t feature_select, driver_feature_select;
	uint16_t queue_select;
	uint16_t config_vector;
	uint8_t status;
	uint8_t isr;
	uint8_t config_generation;
	uint8_t pad_[1];
	uint8_t config
		[VIRTIO_CONFIG_MAX]; /* device configuration, little-endian, as the guest reads it */
};
extern const struct state_desc virtio_state;

struct virtio;

struct virtio_watch {
	struct loop_watch watch;
	struct virtio *v;
};

/* What a kind of device does. All under dev.lock unless said. */
struct virtio_ops {
	struct device_ops dev; /* type, and free; the core fills reset, quiesce and resume calls */
	uint16_t id;           /* virtio 1.2 chapter 5: net 1, block 2, entropy 4 ... */
	/* DRIVER_OK was set. 0, or -errno: the device then needs a reset. May be NULL. */
	int (*activate)(struct virtio *v);
	/* Queue @q was kicked (or the machine resumes): take all there is, submit once, signal once. */
	void (*kick)(struct virtio *v, unsigned q);
	/* The device was reset; nothing is in flight. May be NULL. */
	void (*reset)(struct virtio *v);
	/* The driver wrote configuration bytes; NULL: writes are ignored. */
	void (*write_config)(struct virtio *v, unsigned off, const void *data, unsigned len);
	/*
	 * Stop taking new work from backends (receive side of net), and start again. May be NULL.
	 * Called on the loop's thread.
	 */
	void (*stop)(struct virtio *v);
	void (*start)(struct virtio *v);
	/* queue_event() of queue @q gives another answer now. May be NULL. */
	void (*rerouted)(struct virtio *v, unsigned q);
};

struct virtio_transport_ops {
	void (*signal_queue)(struct virtio *v, unsigned q); /* any thread, under dev.lock */
	void (*signal_config)(struct virtio *v);            /* any thread, under dev.lock */
	/*
	 * The event whose signal alone is queue @q's interrupt, for a kernel that works on the queue; it
	 * lives as long as the transport. NULL, also as the operation: it takes signal_queue() and the ISR.
	 */
	struct event *(*queue_event)(struct virtio *v, unsigned q);
	/* Nobody signals any more: bring saved registers in line with those events. May be NULL. */
	void (*settle)(struct virtio *v);
	void (*reset)(struct virtio *v);    /* the device was reset: drop interrupts */
	void (*power_on)(struct virtio *v); /* power-on state, after reset */
	void (*resume)(struct virtio *v);   /* perhaps after a load: rebind from the registers */
	void (*free)(struct virtio *v);     /* leave the bus, unbind; without dev.lock */
};

struct virtio {
	struct device dev;
	const struct virtio_ops *ops;
	struct device_ops dev_ops; /* ops->dev and the core's reset, quiesce and resume */
	const struct virtio_transport_ops *transport; /* NULL until attached */
	void *transport_data;
	unsigned vectors;  /* MSI-X vectors the transport has, 0: none */
	struct gmem *mem;  /* borrowed */
	struct loop *loop; /* borrowed */
	uint64_t features; /* offered; VERSION_1, INDIRECT_DESC, EVENT_IDX are added by the core */
	unsigned config_len; /* bytes of regs.config that exist; 0: no device configuration */
	struct virtio_regs regs;
	struct virtq *queues;
	struct virtio_watch *watches; /* one per queue, on its kick */
	unsigned nqueues;
	unsigned in_flight; /* requests the backend has; device kinds count with virtio_begin/end */
	pthread_cond_t idle; /* in_flight reached 0 */
	bool stopped;        /* quiesced: kicks are ignored until resume */
	bool resetting;      /* registers are ignored, status still reads the old one */
	bool active;         /* ops->activate was called */
	struct log_limit complaints;
};

/*
 * Set up @v, embedded in the device kind's struct: queues of @queue_size, kick watches on @loop.
 * 0 or -errno.
 */
int virtio_init(struct virtio *v, const struct virtio_ops *ops, const char *name, struct gmem *mem,
		struct loop *loop, uint64_t features, unsigned nqueues, uint16_t queue_size,
		struct err *err);
void virtio_fini(struct virtio *v); /* removes watches; nothing in flight */

/* ---- for device kinds (under dev.lock) ---- */

static inline bool virtio_has(const struct virtio *v, uint64_t feature)
{
	return (v->regs.driver_features & v->features & feature) == feature;
}

/* DRIVER_OK, not NEEDS_RESET, not stopped: work may be taken. */
bool virtio_running(const struct virtio *v);

/* Publish queue @q's used entries and signal if the driver wants it. Once a batch. */
void virtio_flush(struct virtio *v, unsigned q);

/*
 * On the loop's thread: does a kick of queue @q come to ops->kick(), or does somebody else listen to its
 * event meanwhile? One from in between then comes.
 */
void virtio_watch_kicks(struct virtio *v, unsigned q, bool on);

/* The driver broke a rule: log a line, set DEVICE_NEEDS_RESET, tell it by configuration interrupt. */
void virtio_fail(struct virtio *v, const char *why);

/* Device configuration changed: generation + 1 and the configuration interrupt. */
void virtio_config_changed(struct virtio *v);

void virtio_begin(struct virtio *v); /* one more request in flight */
void virtio_end(struct virtio *v);   /* one less; wakes whoever waits */

/* ---- for transports (under dev.lock) ---- */

uint8_t virtio_get_status(const struct virtio *v);
/* Enforces the order of 3.1.1; writing 0 resets and may drop and retake dev.lock while it waits. */
void virtio_set_status(struct virtio *v, uint8_t status);
uint32_t virtio_get_features(const struct virtio *v); /* word feature_select */
void virtio_set_features(struct virtio *v, uint32_t word);
struct virtq *virtio_selected_queue(struct virtio *v); /* NULL when queue_select is out of range */
/* Queue registers are ignored once the queue is ready or DRIVER_OK is set. */
void virtio_set_queue_size(struct virtio *v, uint32_t size);
void virtio_set_queue_ready(struct virtio *v, uint32_t ready);
void virtio_set_queue_addr(struct virtio *v, enum virtq_area area, bool high, uint32_t half);
void virtio_read_config(struct virtio *v, unsigned off, void *data,
			unsigned len); /* past end: 0xff */
void virtio_write_config(struct virtio *v, unsigned off, const void *data, unsigned len);
void virtio_notify(struct virtio *v, uint32_t queue); /* a kick that came as a register write */

#endif
