/*
 * start.S - from the boot protocol's 32-bit entry to C in 64-bit user mode
 *
 * A guest has both a multiboot header and a PVH note (without the note when built with -DMULTIBOOT),
 * and two entries that differ only in what they were handed. Page tables for the first 4 GiB are
 * assembled here, one to one, all of it open to user mode: on KVM in software kernel mode is interpreted
 * while user mode runs natively, so guests spend their lives there. All ports are allowed twice: by the
 * task segment's map, since software KVM loses IOPL 3; and by IOPL 3, since QEMU's emulated SVM looks at
 * the map only if the segment isn't marked busy, as it is in a machine that was saved.
 */
#define STACK_SIZE 0x8000
#define AP_PAGE    0x8000 /* as in guest.h */

	.section .multiboot, "a"
	.align 4
	.long 0x1BADB002, 3, -(0x1BADB002 + 3)

#ifndef MULTIBOOT
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long pvh_entry
#endif

	.text
	.code32
	.globl multiboot_entry, pvh_entry
pvh_entry:
	mov	$1, %edi
	jmp	entry
multiboot_entry:
	mov	$2, %edi
	cmp	$0x2BADB002, %eax
	je	entry
	xor	%edi, %edi
entry:
	cld
	mov	%ebx, %esi
	mov	$stack_top, %esp
	call	to_long_mode
	.code64
	call	guest_init /* (how, info): tables that C can fill more easily */
	/* to user mode, interrupts off */
	lea	user_stack_top(%rip), %rdx
	pushq	$0x1b
	push	%rdx
	pushq	$0x3002
	pushq	$0x23
	lea	guest_start(%rip), %rax
	push	%rax
	iretq

/* Also the way of the other processors. Keeps EDI and ESI; the stack's use is one return address. */
	.code32
to_long_mode:
	pop	%ecx
	mov	%cr4, %eax
	or	$0x220, %eax /* PAE, OSFXSR */
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	%ecx, %ebp
	mov	$0xc0000080, %ecx
	rdmsr
	or	$0x100, %eax /* EFER.LME */
	wrmsr
	mov	%cr0, %eax
	or	$0x80000001, %eax
	mov	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$0x08, $1f
	.code64
1:	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	%ebp, %ebp
	jmp	*%rbp

/* ---- exceptions and interrupts: 64 stubs of 16 bytes ---- */

	.align 16
	.globl trap_stubs
trap_stubs:
	.set	vector, 0
	.rept	64
	.align	16
	.if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
	.else
	pushq	$0
	.endif
	pushq	$vector
	jmp	trap_common
	.set	vector, vector + 1
	.endr

trap_common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rbx
	push	%rbp
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rdi
	call	guest_trap
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rbp
	pop	%rbx
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

/*
 * Start of the other processors, copied to AP_PAGE in low memory. They come in one after the other or
 * all at once: each takes a number and with it a stack.
 */
	.globl ap_start, ap_start_end
	.align 16
	.code16
ap_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	AP_PAGE + (ap_gdt_pointer - ap_start)
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$0x38, $ap_start32
	.align 8
ap_gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
ap_start_end:
	.code32
ap_start32:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$1, %eax
	lock xadd %eax, ap_count
	inc	%eax
	shl	$12, %eax
	lea	ap_stacks(%eax), %esp
	call	to_long_mode
	.code64
	call	guest_ap
1:	cli
	hlt
	jmp	1b

/* ---- data ---- */

	.data
	.align 16
	.globl gdt, tss
gdt:
	.quad	0
	.quad	0x00af9b000000ffff /* 0x08 kernel code */
	.quad	0x00cf93000000ffff /* 0x10 kernel data */
	.quad	0x00cff3000000ffff /* 0x18 user data */
	.quad	0x00affb000000ffff /* 0x20 user code */
	.quad	0, 0               /* 0x28 task segment, by guest_init */
gdt32:
	.quad	0x00cf9b000000ffff /* 0x38 32-bit kernel code */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
	.long	0

	.align 4096
	.globl pml4
pml4:
	.quad	pdpt + 0x67
	.fill	511, 8, 0
pdpt:
	.quad	pd + 0x67, pd + 0x1067, pd + 0x2067, pd + 0x3067
	.fill	508, 8, 0
pd:
	.set	page, 0
	.rept	2048
	.quad	page << 21 | 0xe7 /* 2 MiB, dirty, accessed, user, writable, present */
	.set	page, page + 1
	.endr

	.bss
	.align 4096
tss: /* with the permission map and the byte of ones that ends it */
	.fill	104 + 8192 + 1, 1, 0
	.align	16
	.fill	STACK_SIZE, 1, 0
	.globl stack_top
stack_top:
	.fill	STACK_SIZE, 1, 0
user_stack_top:
	.globl ap_count
ap_stacks:
	.fill	64 * 4096, 1, 0
ap_count:
	.long	0

	.section .note.GNU-stack, "", @progbits
