/*
 * lookup.c - connections to a namespace's loopback go to one socket, whatever their port
 *
 * An sk_lookup program (bpf(2)) chooses the socket of a connection that comes in. It belongs to a
 * namespace by a link that goes with its descriptor, so a shim that is killed leaves nothing. Rules of
 * netfilter would do the same, but not every node has the modules, and they would have to be cleared away.
 */
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/lookup.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

#define INSN(op, d, s, o, i)                                                         \
	(struct bpf_insn)                                                            \
	{                                                                            \
		.code = (op), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) \
	}
#define MOV_REG(d, s)      INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_IMM(d, i)      INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD_IMM(d, i)      INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define AND_IMM(d, i)      INSN(BPF_ALU64 | BPF_AND | BPF_K, d, 0, 0, i)
#define LOAD(d, s, o)      INSN(BPF_LDX | BPF_MEM | BPF_W, d, s, o, 0)
#define STORE_IMM(d, o, i) INSN(BPF_ST | BPF_MEM | BPF_W, d, 0, o, i)
#define UNLESS(r, i, o)    INSN(BPF_JMP | BPF_JNE | BPF_K, r, 0, o, i)
#define IF(r, i, o)        INSN(BPF_JMP | BPF_JEQ | BPF_K, r, 0, o, i)
#define CALL(f)            INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define MAP_FD(d, fd) \
	INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)
#define EXIT()      INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define FIELD(name) ((short)offsetof(struct bpf_sk_lookup, name))

static int bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	long rc = syscall(SYS_bpf, cmd, attr, sizeof(*attr));

	return rc < 0 ? -errno : (int)rc;
}

/* A map whose one element is the socket; or -errno. */
static int make_map(int listener)
{
	union bpf_attr attr = { 0 };
	uint32_t key = 0;
	uint64_t value = (uint64_t)listener;

	attr.map_type = BPF_MAP_TYPE_SOCKMAP;
	attr.key_size = sizeof(key);
	attr.value_size = sizeof(value);
	attr.max_entries = 1;
	cleanup_fd int map = bpf(BPF_MAP_CREATE, &attr);

	if (map < 0)
		return map;
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)&value;
	int rc = bpf(BPF_MAP_UPDATE_ELEM, &attr);

	return rc < 0 ? rc : fd_steal(&map);
}

/* "TCP to 127.0.0.0/8: the socket in the map, if it is there; what is decided otherwise stays." */
static int load(int map)
{
	const struct bpf_insn insns[] = {
		MOV_REG(BPF_REG_6, BPF_REG_1),
		LOAD(BPF_REG_2, BPF_REG_6, FIELD(protocol)),
		UNLESS(BPF_REG_2, IPPROTO_TCP, 19),
		LOAD(BPF_REG_2, BPF_REG_6, FIELD(family)),
		UNLESS(BPF_REG_2, AF_INET, 17),
		LOAD(BPF_REG_2, BPF_REG_6, FIELD(local_ip4)),
		AND_IMM(BPF_REG_2, (int)htonl(0xff000000)),
		UNLESS(BPF_REG_2, (int)htonl(0x7f000000), 14),
		STORE_IMM(BPF_REG_10, -4, 0),
		MOV_REG(BPF_REG_2, BPF_REG_10),
		ADD_IMM(BPF_REG_2, -4),
		MAP_FD(BPF_REG_1, map),
		CALL(BPF_FUNC_map_lookup_elem),
		IF(BPF_REG_0, 0, 7),
		MOV_REG(BPF_REG_7, BPF_REG_0),
		MOV_REG(BPF_REG_1, BPF_REG_6),
		MOV_REG(BPF_REG_2, BPF_REG_7),
		MOV_IMM(BPF_REG_3, 0),
		CALL(BPF_FUNC_sk_assign),
		MOV_REG(BPF_REG_1, BPF_REG_7),
		CALL(BPF_FUNC_sk_release),
		MOV_IMM(BPF_REG_0, SK_PASS), /* where all jumps go */
		EXIT(),
	};
	union bpf_attr attr = { 0 };

	attr.prog_type = BPF_PROG_TYPE_SK_LOOKUP;
	attr.expected_attach_type = BPF_SK_LOOKUP;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = COUNT(insns);
	attr.license = (uintptr_t) "Apache-2.0";
	return bpf(BPF_PROG_LOAD, &attr);
}

int lookup_attach(int netns, int listener, struct err *err)
{
	union bpf_attr attr = { 0 };
	cleanup_fd int map = make_map(listener);

	if (map < 0)
		return err_set_sys(err, map, "cannot put a socket into a map of bpf(2)");
	cleanup_fd int program = load(map);

	if (program < 0)
		return err_set_sys(err, program, "cannot load a program of bpf(2)");
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.target_fd = (uint32_t)netns;
	attr.link_create.attach_type = BPF_SK_LOOKUP;
	int link = bpf(BPF_LINK_CREATE, &attr);

	return link < 0 ? err_set_sys(err, link, "cannot attach a program of bpf(2)") : link;
}
