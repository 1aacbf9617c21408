# The guest kit: tiny x86_64 kernels for tests, built with the host's compiler into build/guest.
# Linked here without a C library; each NAME.c is a guest, lib/ is in all of them.

GUEST_B := build/guest
GUEST_CFLAGS := -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -m64 -ffreestanding \
	-fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
	-fcf-protection=none -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns \
	-U_FORTIFY_SOURCE -Itests/guest/lib
GUEST_LDFLAGS := -static -nostdlib -no-pie -Wl,--build-id=none -Wl,-z,noexecstack \
	-Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments
GUEST_LIB := $(patsubst tests/guest/lib/%.c,$(GUEST_B)/lib/%.o,$(wildcard tests/guest/lib/*.c))
GUEST_NAMES := $(patsubst tests/guest/%.c,%,$(wildcard tests/guest/*.c))
GUEST_FLAT := $(patsubst tests/guest/%.S,%,$(wildcard tests/guest/*.S))
GUESTS := $(GUEST_NAMES:%=$(GUEST_B)/%.elf) $(GUEST_B)/hello-mb.elf $(GUEST_B)/churn-mb.elf \
	$(GUEST_FLAT:%=$(GUEST_B)/%.bin)

guest-kit: $(GUESTS) ## build the tiny guests of the tests into build/guest

$(GUEST_B)/%.o: tests/guest/%.c
	@mkdir -p $(@D)
	$(Q_CC)$(CC) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

$(GUEST_B)/%.o: tests/guest/%.S
	@mkdir -p $(@D)
	$(Q_CC)$(CC) -m64 -g -MMD -MP -c $< -o $@

$(GUEST_B)/lib/start-mb.o: tests/guest/lib/start.S
	@mkdir -p $(@D)
	$(Q_CC)$(CC) -m64 -g -DMULTIBOOT -c $< -o $@

$(GUEST_B)/%.elf: $(GUEST_B)/%.o $(GUEST_B)/lib/start.o $(GUEST_LIB) tests/guest/lib/link.ld
	$(Q_LD)$(CC) $(GUEST_LDFLAGS) -T tests/guest/lib/link.ld $(filter %.o,$^) -o $@

# A 32-bit ELF file that boots by its multiboot header, as kvm-unit-tests' are; also what QEMU takes.
$(GUEST_B)/%-mb.elf: $(GUEST_B)/%.o $(GUEST_B)/lib/start-mb.o $(GUEST_LIB) tests/guest/lib/link.ld
	$(Q_LD)$(CC) $(GUEST_LDFLAGS) -T tests/guest/lib/link.ld $(filter %.o,$^) -o $@.64
	@objcopy -O elf32-i386 $@.64 $@

$(GUEST_B)/flat16.bin: GUEST_AT := 0x7c00
$(GUEST_B)/%.bin: GUEST_AT := 0x100000
$(GUEST_B)/%.bin: $(GUEST_B)/%.o
	@ld -m elf_x86_64 -Ttext=$(GUEST_AT) -e _start --build-id=none -o $@.elf $<
	@objcopy -O binary -j .text $@.elf $@

.PHONY: guest-kit
