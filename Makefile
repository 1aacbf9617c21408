# Coracle: one non-recursive Makefile. `make help` lists what it does.
#
# Folders become static libraries in the order of their dependencies (docs/architecture.md), so a
# lower folder that calls up does not link in the unit tests and fuzzers. Variants (release, asan,
# tsan, fuzz) have a build directory each.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

VERSION := 0.1.0
PREFIX ?= /usr/local
DESTDIR ?=
V ?= release
B := build/$(V)
ARCH := $(shell uname -m)
PYTHON := /usr/bin/python3
SHIM := containerd-shim-coracle-v2

# What is linked, and where pkg-config finds it. tools/setup installs the same packages.
PKGS := json-c liburing libseccomp libpsx libnl-3.0 libnl-route-3.0 libprotobuf-c
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -pthread
SHIM_LIBS := $(shell pkg-config --libs json-c libnl-3.0 libnl-route-3.0 libprotobuf-c 2>/dev/null) \
	-pthread

WARN := -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
	-Wwrite-strings -Wvla -Wno-unused-parameter
CPPFLAGS += -D_GNU_SOURCE -DCORACLE_VERSION='"$(VERSION)"' -I. -I$(B)/gen $(PKG_CFLAGS)
CFLAGS_release := -O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE
LDFLAGS_release := -pie -Wl,-z,relro,-z,now,--as-needed
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer
# The two programs need no libraries: a fifth of the time that a restore takes went to loading them, and
# one build is for nodes of any distribution. Names of hosts are found by files and DNS; for what else
# nsswitch.conf may want glibc loads what fits its version, and says so of every such call.
PROGRAM_LDFLAGS_release := -static-pie
quiet_nss = 2> >(sed '/: in function /{N;/ in statically linked applications /d}' >&2)
LDFLAGS_asan := -fsanitize=address,undefined
# TSan knows no stand-alone fences. Ours stand between atomic accesses only, which it follows anyway.
CFLAGS_tsan := -O1 -g -fsanitize=thread -Wno-tsan
LDFLAGS_tsan := -fsanitize=thread
CFLAGS_fuzz := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer -DCORACLE_FUZZ -Wno-missing-field-initializers -Wno-unused-variable \
	-Wno-gnu-variable-sized-type-not-at-end # gcc, the compiler of the rest, does not mind these
LDFLAGS_fuzz := -fsanitize=address,undefined
ifeq ($(V),fuzz)
CC := clang
# What clang finds and gcc does not: {} that leaves fields out, kvm_msrs inside a struct, and
# variables that are there for their cleanup.
WARN += -Wno-missing-field-initializers -Wno-gnu-variable-sized-type-not-at-end -Wno-unused-variable
else
CC := gcc
endif
ALL_CFLAGS := -std=gnu11 -pthread $(WARN) $(CFLAGS_$(V)) $(CFLAGS)
ALL_LDFLAGS := -pthread $(LDFLAGS_$(V)) $(LDFLAGS)

# `make VERBOSE=1` shows the commands themselves.
ifndef VERBOSE
Q_CC = @echo "  CC    $@";
Q_AR = @echo "  AR    $@";
Q_LD = @echo "  LINK  $@";
endif

# Lowest first; each may include only what its line in tools/layers allows.
FOLDERS := base backends image devices virtio vmm k8s-shim
src = $(wildcard $(1)/*.c) $(if $(filter vmm,$(1)),$(wildcard vmm/$(ARCH)/*.c))
lib = $(B)/lib$(1).a
# The shim comes last: it and the machine know nothing of each other, and both have a vm_new().
LIB_FILES := $(foreach f,vmm virtio devices image backends base k8s-shim,$(call lib,$(f)))
group = -Wl,--start-group $(1) -Wl,--end-group
LINK_LIBS := $(call group,$(LIB_FILES))

UNIT := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
FUZZ := $(patsubst tests/fuzz/%.c,build/fuzz/tests/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(B)/coracle $(B)/$(SHIM) ## build ./build/release/coracle and the shim (V=asan, V=tsan for the others)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(Q_CC)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

define folder_rule
OBJ_$(1) := $$(patsubst %.c,$$(B)/%.o,$$(filter-out %/main.c %_gen.c,$$(call src,$(1))))
$$(B)/lib$(1).a: $$(OBJ_$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q_AR)$$(if $$(OBJ_$(1)),ar rcs $$@ $$(OBJ_$(1)),ar rc $$@)
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rule,$(f))))

# What containerd says and hears: C made from k8s-shim/proto. Whoever includes it waits for it.
PROTO_C := $(patsubst k8s-shim/proto/%.proto,$(B)/gen/k8s-shim/proto/%.pb-c.c,\
	$(wildcard k8s-shim/proto/*.proto))
PROTO_O := $(PROTO_C:.c=.o)

$(B)/gen/k8s-shim/proto/%.pb-c.c $(B)/gen/k8s-shim/proto/%.pb-c.h: k8s-shim/proto/%.proto
	@mkdir -p $(@D)
	protoc-c -Ik8s-shim/proto --c_out=$(@D) $<

$(PROTO_O): %.o: %.c $(PROTO_C)
	$(Q_CC)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c $< -o $@

$(OBJ_k8s-shim) $(B)/k8s-shim/main.o: | $(PROTO_C)
$(patsubst %.c,$(B)/%.o,$(wildcard tests/unit/test_shim_*.c tests/fuzz/fuzz_shim_*.c)): | $(PROTO_C)
$(B)/libk8s-shim.a: OBJ_k8s-shim += $(PROTO_O)
$(B)/libk8s-shim.a: $(PROTO_O)

# Arrays that are made by a program: the system call filter, the tables of a checksum.
$(B)/gen/%.inc: %_gen.c
	@mkdir -p $(@D)
	$(Q_CC)gcc -std=gnu11 -D_GNU_SOURCE $(WARN) $(shell pkg-config --cflags libseccomp) $< \
		-Wl,--as-needed $(shell pkg-config --libs libseccomp) -o $(@:.inc=) && $(@:.inc=) > $@

$(B)/vmm/sandbox.o: $(B)/gen/vmm/sandbox.inc
$(B)/base/crc32c.o: $(B)/gen/base/crc32c.inc

objects: $(LIB_FILES) $(B)/vmm/main.o $(B)/k8s-shim/main.o

$(B)/coracle: $(B)/vmm/main.o $(LIB_FILES)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $(PROGRAM_LDFLAGS_$(V)) $< $(LINK_LIBS) $(LIBS) -o $@ $(quiet_nss)

# Of our folders only base: the shim speaks to machines over their control sockets.
$(B)/$(SHIM): $(B)/k8s-shim/main.o $(call lib,k8s-shim) $(call lib,base)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $(PROGRAM_LDFLAGS_$(V)) $^ $(SHIM_LIBS) -o $@ $(quiet_nss)

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(LIB_FILES)
	@mkdir -p $(@D)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $< $(LINK_LIBS) $(LIBS) -lcmocka -o $@

$(B)/tests/fuzz/%: $(B)/tests/fuzz/%.o $(LIB_FILES)
	@mkdir -p $(@D)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer $< $(LINK_LIBS) $(LIBS) -o $@

$(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_shim_*.c tests/fuzz/fuzz_shim_*.c)): \
	LINK_LIBS := $(call group,$(call lib,k8s-shim) $(call lib,base))

unit-bins: $(UNIT)

# What tests/pods runs besides the shim.
$(B)/tests/pods/%: $(B)/tests/pods/%.o $(call lib,k8s-shim) $(call lib,base)
	@mkdir -p $(@D)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

# The program with something between it and the kernel, for tests/e2e.
$(B)/tests/e2e/slow_kvm: $(B)/tests/e2e/slow_kvm.o $(B)/vmm/main.o $(LIB_FILES)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $(PROGRAM_LDFLAGS_$(V)) -Wl,--wrap=ioctl $< $(B)/vmm/main.o $(LINK_LIBS) $(LIBS) \
		-o $@ $(quiet_nss)

e2e-tools: $(B)/tests/e2e/slow_kvm

pod-tools: $(patsubst tests/pods/%.c,$(B)/tests/pods/%,$(wildcard tests/pods/*.c))

unit: unit-bins ## build and run the unit tests of this variant (V=...)
	@set -e; for t in $(UNIT); do echo "== $$t"; $$t; done

ifeq ($(V),fuzz)
fuzz-bins: $(FUZZ)

fuzz: fuzz-bins
	@set -e; for t in $(FUZZ); do tests/fuzz/run $$t $(SECONDS_EACH); done
else
fuzz-bins fuzz: ## run every fuzz target, SECONDS=n each (default 60)
	@$(MAKE) V=fuzz SECONDS_EACH=$(or $(SECONDS),60) $@
endif

# ---- set-up included: a fresh checkout is enough for these ----

demo: ## boot a Debian guest to a login (without a terminal: log in, show the machine, power off)
	@tools/demo

demo-pod: ## run a pod that is a Debian machine, on a containerd of its own, from creation to deletion
	@tools/demo --pod

check: ## set everything up and pass all tests; the last line counts them
	@command -v $(PYTHON) >/dev/null || tools/setup test # which is written in Python
	@tests/check

# What measures has to be as good as what is measured: always -O2, in no variant.
BENCH := $(patsubst tests/bench/%.c,build/bench/%,$(wildcard tests/bench/*.c))

build/bench/%: tests/bench/%.c
	@mkdir -p $(@D)
	$(Q_LD)$(CC) -std=gnu11 -D_GNU_SOURCE -O2 $(WARN) $(BENCH_LDFLAGS) $< -o $@

# Alone in its container's image
build/bench/pause: BENCH_LDFLAGS := -static

bench-bins: $(BENCH)

bench: ## measure against a peer or a floor in the same run (tests/bench)
	@command -v $(PYTHON) >/dev/null || tools/setup test
	@tests/bench/run

lab: ## a shell in the nested host (tests/lab)
	@tools/setup lab
	@tests/lab/lab shell

# ---- order ----

C_FILES = $(shell git ls-files '*.[ch]')
SH_FILES = $(shell git ls-files | xargs grep -lE '^\#!/bin/(ba)?sh' --)
PY_FILES = $(shell git ls-files | xargs grep -lE '^\#!/usr/bin/(env )?python3' --) \
	$(shell git ls-files '*.py')

layers: ## check that includes point one way
	@tools/layers

lint: man ## C layout, shell scripts, Python, manual page
	@clang-format-14 --dry-run -Werror $(C_FILES)
	@shellcheck -x $(SH_FILES)
	@$(PYTHON) -m pyflakes $(sort $(PY_FILES))
	@mandoc -T lint -W warning $(B)/gen/coracle.1 docs/coracle.json.5

format: ## lay out all C files as .clang-format says
	clang-format-14 -i $(C_FILES)

# ---- what is made from the table of configuration keys ----

man: $(B)/gen/coracle.1
completion: $(B)/gen/coracle.bash

$(B)/gen/coracle.1: docs/coracle.1.in $(B)/coracle
	@mkdir -p $(@D)
	$(B)/coracle help --man-options > $(@D)/options
	sed -e '/@OPTIONS@/{r $(@D)/options' -e 'd}' -e 's/@VERSION@/$(VERSION)/' $< > $@

$(B)/gen/coracle.bash: $(B)/coracle
	@mkdir -p $(@D)
	$(B)/coracle help --completion > $@

docs/config.schema.json: $(B)/coracle
	$(B)/coracle help --schema > $@

# Its first part is written by hand, up to "All tables".
docs/state-format.md: $(B)/coracle
	sed -i '/^# All tables$$/q' $@
	(echo; $(B)/coracle help --state-format) >> $@

install: all man completion ## install under PREFIX (/usr/local), below DESTDIR
	install -Dm755 $(B)/coracle $(DESTDIR)$(PREFIX)/bin/coracle
	install -Dm755 $(B)/$(SHIM) $(DESTDIR)$(PREFIX)/bin/$(SHIM)
	install -Dm644 $(B)/gen/coracle.1 $(DESTDIR)$(PREFIX)/share/man/man1/coracle.1
	install -Dm644 docs/coracle.json.5 $(DESTDIR)$(PREFIX)/share/man/man5/coracle.json.5
	install -Dm644 $(B)/gen/coracle.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/coracle
	install -Dm644 docs/config.schema.json $(DESTDIR)$(PREFIX)/share/coracle/config.schema.json

help: ## this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

clean: ## remove build/ (cache/ holds images; remove it by hand)
	rm -rf build

include tests/guest/guest.mk

-include $(shell test -d build && find build -name '*.d')

.PHONY: all objects e2e-tools pod-tools unit unit-bins fuzz fuzz-bins demo demo-pod check bench bench-bins lab layers \
	lint format man completion install help clean
.SECONDARY:
