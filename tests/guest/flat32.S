/* flat32.S - the same in 32-bit protected mode, through the data segment at the linked address. */
	.code32
	.globl _start
_start:
	mov	$0x3f8, %dx
	mov	letter, %al
	outb	%al, %dx
	mov	$0xf4, %dx
	mov	$32, %eax
	outl	%eax, %dx
2:	hlt
	jmp	2b
letter:
	.byte	'3'
