/* flat16.S - a boot sector's worth: a letter, then the test device's exit with status 16 << 1 | 1. */
	.code16
	.globl _start
_start:
	mov	$0x3f8, %dx
	mov	$'6', %al
	outb	%al, %dx
	mov	$0xf4, %dx
	mov	$16, %eax
	outl	%eax, %dx
1:	hlt
	jmp	1b
