/* flat64.S - the same in long mode, RIP-relative. */
	.code64
	.globl _start
_start:
	mov	$0x3f8, %dx
	mov	letter(%rip), %al
	outb	%al, %dx
	mov	$0xf4, %dx
	mov	$64, %eax
	outl	%eax, %dx
2:	hlt
	jmp	2b
letter:
	.byte	'4'
