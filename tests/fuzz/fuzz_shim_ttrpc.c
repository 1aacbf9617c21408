/*
 * fuzz_shim_ttrpc.c - what a client sends: frames, the message in them, each method's message
 *
 * The pod has one task, which has ended, so every method does all it does short of touching a machine.
 * Create is left out: it reads whatever file it is told to.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/service.h"
#include "k8s-shim/ttrpc_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct rig {
	struct service service;
	struct pod pod;
	struct task task;
};

static void ignore(void *opaque)
{
}

static void on_frame(void *opaque, const struct ttrpc_frame *f)
{
	struct rig *r = opaque;
	Pb__Request *q;

	if (f->len > TTRPC_DATA_MAX)
		return;
	q = pb__request__unpack(NULL, f->len, f->data);
	if (!q)
		return;
	struct ttrpc_request request = { .service = q->service,
					 .method = q->method,
					 .payload = q->payload.data,
					 .len = q->payload.len };

	/* Delete would free the task, which is not on the heap. */
	if (strcmp(q->method, "Create") && strcmp(q->method, "Delete"))
		service_handle(&r->service, NULL, &request);
	pb__request__free_unpacked(q, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct ttrpc_reader reader = { 0 };
	struct rig r = { 0 };
	char id[] = "t", none[] = "";

	log_set_level(LOG_ERR);
	r.service = (struct service){ .pod = &r.pod, .shut_down = ignore };
	r.task = (struct task){ .pod = &r.pod,
				.id = id,
				.in = none,
				.out = none,
				.err = none,
				.status = PB__TASK_STATUS__STOPPED };
	STAILQ_INIT(&r.task.waiters);
	LIST_INSERT_HEAD(&r.pod.tasks, &r.task, link);
	/* In two pieces, so that the seam is anywhere */
	size_t cut = len ? data[0] % len : 0;

	ttrpc_reader_feed(&reader, data, cut, on_frame, &r);
	ttrpc_reader_feed(&reader, data + cut, len - cut, on_frame, &r);
	ttrpc_reader_fini(&reader);
	return 0;
}
