/*
 * migrate_wire.c - what source and target of a migration say to each other beside RAM and state
 *
 * Words are little-endian, as the hosts are. Lengths are exact: a protocol that grows has another
 * number.
 */
#include <string.h>

#include "backends/block.h"
#include "vmm/migrate_wire.h"
#include "vmm/ram.h"
#include "vmm/sections.h"

/* The next section, which has to be of @type. */
static int get(struct stream *s, uint16_t type, struct stream_section *out, struct err *err)
{
	int rc = stream_get(s, out, err);

	if (rc < 0)
		return rc;
	if (!rc)
		return err_set(err, ENODATA, "the connection has ended");
	if (out->type != type || out->flags & STREAM_BULK)
		return err_set(err, EPROTO, "a section of type %u where one of type %u should be",
			       out->type, type);
	return 0;
}

uint64_t migrate_mark(const uint8_t *session)
{
	uint64_t random;

	memcpy(&random, session, sizeof(random));
	return BLOCK_MARK_MIN + random % (BLOCK_MARK_MIN - 2);
}

int migrate_put_hello(struct stream *s, const struct migrate_hello *h, struct err *err)
{
	return stream_put(s, SECTION_HELLO, 0, NULL, h, sizeof(*h), err);
}

int migrate_get_hello(struct stream *s, struct migrate_hello *h, struct err *err)
{
	struct stream_section in;
	int rc = get(s, SECTION_HELLO, &in, err);

	if (rc)
		return rc;
	if (in.len < sizeof(h->protocol))
		return err_set(err, EPROTO, "a greeting of %zu bytes", (size_t)in.len);
	memcpy(&h->protocol, in.data, sizeof(h->protocol));
	if (h->protocol != MIGRATE_PROTOCOL)
		return err_set(err, ENOTSUP,
			       "the source speaks version %u of the protocol, this is version %u: "
			       "use the same coracle on both hosts",
			       h->protocol, MIGRATE_PROTOCOL);
	if (in.len != sizeof(*h))
		return err_set(err, EPROTO, "a greeting of %zu bytes", (size_t)in.len);
	memcpy(h, in.data, sizeof(*h));
	if (!h->connections || h->connections > RAM_CONNECTIONS_MAX || h->index >= h->connections ||
	    h->zero)
		return err_set(err, EPROTO, "connection %u of %u makes no sense", h->index,
			       h->connections);
	return 0;
}

int migrate_put_reply(struct stream *s, enum migrate_answer what, uint32_t arg, const char *text,
		      struct err *err)
{
	struct {
		uint32_t what, arg;
		char text[ERR_MSG_MAX];
	} r = { what, arg, "" };
	size_t len = text ? strnlen(text, sizeof(r.text) - 1) : 0;

	if (len)
		memcpy(r.text, text, len);
	return stream_put(s, SECTION_REPLY, 0, NULL, &r, 8 + len, err);
}

int migrate_get_reply(struct stream *s, struct migrate_reply *r, struct err *err)
{
	struct stream_section in;
	int rc = get(s, SECTION_REPLY, &in, err);

	if (rc)
		return rc;
	if (in.len < 8 || in.len - 8 >= sizeof(r->text))
		return err_set(err, EPROTO, "a reply of %zu bytes", (size_t)in.len);
	memset(r, 0, sizeof(*r));
	memcpy(&r->what, in.data, 4);
	memcpy(&r->arg, in.data + 4, 4);
	memcpy(r->text, in.data + 8, in.len - 8);
	for (char *c = r->text; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
	return 0;
}

int migrate_put_commit(struct stream *s, bool paused, struct err *err)
{
	uint32_t word = paused;

	return stream_put(s, SECTION_COMMIT, 0, NULL, &word, sizeof(word), err);
}

int migrate_get_commit(struct stream *s, bool *paused, struct err *err)
{
	struct stream_section in;
	uint32_t word = 2;
	int rc = get(s, SECTION_COMMIT, &in, err);

	if (rc)
		return rc;
	if (in.len == sizeof(word))
		memcpy(&word, in.data, sizeof(word));
	if (word > 1)
		return err_set(err, EPROTO, "a hand-over of %zu bytes", (size_t)in.len);
	*paused = word;
	return 0;
}
