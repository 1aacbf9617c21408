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

# What is linked, and where pkg-config finds it. tools/setup installs the same packages.
PKGS := json-c liburing libseccomp libcap libpsx libnl-3.0 libnl-route-3.0
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -pthread

WARN := -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
	-Wwrite-strings -Wvla -Wno-unused-parameter
CPPFLAGS += -D_GNU_SOURCE -DCORACLE_VERSION='"$(VERSION)"' -I. -I$(B)/gen $(PKG_CFLAGS)
CFLAGS_release := -O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE
LDFLAGS_release := -pie -Wl,-z,relro,-z,now,--as-needed
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer
LDFLAGS_asan := -fsanitize=address,undefined
CFLAGS_tsan := -O1 -g -fsanitize=thread
LDFLAGS_tsan := -fsanitize=thread
CFLAGS_fuzz := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer -DCORACLE_FUZZ
LDFLAGS_fuzz := -fsanitize=address,undefined
ifeq ($(V),fuzz)
CC := clang
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
FOLDERS := base backends image devices virtio vmm
src = $(wildcard $(1)/*.c) $(if $(filter vmm,$(1)),$(wildcard vmm/$(ARCH)/*.c))
lib = $(B)/lib$(1).a
LIB_FILES := $(foreach f,vmm virtio devices image backends base,$(call lib,$(f)))
LINK_LIBS := -Wl,--start-group $(LIB_FILES) -Wl,--end-group

UNIT := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
FUZZ := $(patsubst tests/fuzz/%.c,build/fuzz/tests/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(B)/coracle ## build ./build/release/coracle (V=asan, V=tsan for the others)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(Q_CC)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

define folder_rule
OBJ_$(1) := $$(patsubst %.c,$$(B)/%.o,$$(filter-out vmm/main.c,$$(call src,$(1))))
$$(B)/lib$(1).a: $$(OBJ_$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q_AR)$$(if $$(OBJ_$(1)),ar rcs $$@ $$(OBJ_$(1)),ar rc $$@)
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rule,$(f))))

.PHONY: objects
objects: $(LIB_FILES) $(B)/vmm/main.o

$(B)/coracle: $(B)/vmm/main.o $(LIB_FILES)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $< $(LINK_LIBS) $(LIBS) -o $@

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(LIB_FILES)
	@mkdir -p $(@D)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) $< $(LINK_LIBS) $(LIBS) -lcmocka -o $@

$(B)/tests/fuzz/%: $(B)/tests/fuzz/%.o $(LIB_FILES)
	@mkdir -p $(@D)
	$(Q_LD)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer $< $(LINK_LIBS) $(LIBS) -o $@

unit: $(UNIT) ## build and run the unit tests of this variant (V=...)
	@set -e; for t in $(UNIT); do echo "== $$t"; $$t; done

unit-bins: $(UNIT)

-include $(shell test -d build && find build -name '*.d')

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

clean: ## remove build/ (cache/ holds images; remove it by hand)
	rm -rf build

.PHONY: all unit unit-bins help clean
.SECONDARY:
