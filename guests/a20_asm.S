/*
 * Shuts the A20 gate by one of three ways (EDI: 0 port 92h, 1 the 8042's output port by D1h, 2 by DDh), looks about, opens it the
 * same way. 64-bit code at TRAMPOLINE with tables of its own, since the image lies in the second MiB.
 */
#include "a20.h"
#define AT(label) (label - a20_start + TRAMPOLINE)
#define OUT(r) (RESULTS + r)

	.text
	.globl run_a20
run_a20:
	pushq	%rbx
	pushq	%rbp
	movq	%rsp, %rbp
	movq	%cr3, %rbx
	movl	$0x7000, %esp
	movl	$TABLES, %eax
	movq	%rax, %cr3
	movl	$TRAMPOLINE, %eax
	call	*%rax
	movq	%rbx, %cr3
	movq	%rbp, %rsp
	popq	%rbp
	popq	%rbx
	ret

	.globl a20_start, a20_end
a20_start:
	movl	PROBE + MIB, %eax
	movl	%eax, OUT(R_OPEN)
	call	shut
	movl	PROBE + MIB, %eax
	movl	%eax, OUT(R_SHUT)
	movl	PROBE + 3 * MIB, %eax
	movl	%eax, OUT(R_THIRD)
	movl	$0x5a5a5a5a, PROBE + MIB + 4	/* a store, and one that finds its own code's page */
	movl	$0x12345678, MIB + AT(patched) + 1
	movl	$MIB + AT(function), %eax
	call	*%rax
	movl	%eax, OUT(R_CODE)
	movl	$MIB + PROBE + 0x100, %esi
	movl	$PROBE + 0x200, %edi
	pushq	%rdi
	movl	$4, %ecx
	rep movsb
	popq	%rdi
	movl	PROBE + 0x200, %eax
	movl	%eax, OUT(R_STRING)
	movl	$MIB + TABLES, %eax		/* the walk passes the gate, too */
	movq	%rax, %cr3
	movl	PROBE, %eax
	movl	%eax, OUT(R_TABLES)
	movl	$TABLES, %eax
	movq	%rax, %cr3
	movl	0x600000 + MIB + 8, %eax	/* a directory entry that names PROBE + 1 MiB's 2 MiB page: bit 20 comes of the offset */
	movl	%eax, OUT(R_PAGED)
	inb	$0x92, %al
	movzbl	%al, %eax
	movl	%eax, OUT(R_PORT92)
	movb	$0xd0, %al
	call	command
1:	inb	$0x64, %al
	testb	$1, %al
	jz	1b
	inb	$0x60, %al
	movzbl	%al, %eax
	movl	%eax, OUT(R_OUTPORT)
	call	open
	movl	PROBE + MIB, %eax
	movl	%eax, OUT(R_AGAIN)
	inb	$0x92, %al
	movzbl	%al, %eax
	movl	%eax, OUT(R_PORT92_AGAIN)
	ret

function:
patched:
	movl	$0x11111111, %eax
	ret

wait:	inb	$0x64, %al
	testb	$2, %al
	jnz	wait
	ret
command:
	movb	%al, %ah
	call	wait
	movb	%ah, %al
	outb	%al, $0x64
	jmp	wait

shut:	movl	$way_shut - a20_start + TRAMPOLINE, %edx
	jmp	1f
open:	movl	$way_open - a20_start + TRAMPOLINE, %edx
1:	cmpb	$1, %dil
	movb	(%rdx), %al
	jb	1f
	movb	2(%rdx), %al
	ja	command
	movb	$0xd1, %al
	call	command
	movb	1(%rdx), %al
	outb	%al, $0x60
	jmp	wait
1:	outb	%al, $0x92
	ret
way_shut:
	.byte	0x00, 0xdd, 0xdd
way_open:
	.byte	0x02, 0xdf, 0xdf
a20_end:
