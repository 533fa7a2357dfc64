/*
 * A UEFI application, headers and all, that counts its starts in a variable, says "start N" and resets the machine: cold, warm,
 * and at each third start it ends the machine by the debug-exit port. PE/COFF specification, chapters 2 to 4; UEFI 2.10,
 * chapters 4 (system table), 8 (runtime services).
 */
	.code64
	.globl _start
_start:
header:
	.ascii "MZ"
	.org 0x3c
	.long pe - header
pe:	.ascii "PE\0\0"
	.word 0x8664, 1			/* AMD64, one section */
	.long 0, 0, 0
	.word sections - optional
	.word 0x0206			/* executable, no line numbers, no debug information */
optional:
	.word 0x20b			/* PE32+ */
	.byte 0, 0
	.long end - code, 0, 0
	.long code - header
	.long code - header
	.quad 0
	.long 0x1000, 0x200		/* alignment of sections and of the file */
	.word 0, 0, 0, 0, 0, 0
	.long 0
	.long 0x2000			/* of the image */
	.long 0x200			/* of the headers */
	.long 0
	.word 10, 0			/* EFI application */
	.quad 0, 0, 0, 0
	.long 0, 16
	.quad 0, 0, 0, 0, 0
	.long relocs - header, relocs_end - relocs
	.quad 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
sections:
	.ascii ".text\0\0\0"
	.long end - code
	.long code - header
	.long end - code
	.long 0x1000
	.long 0, 0
	.word 0, 0
	.long 0xe0000020		/* code; execute, read, write */
	.org 0x1000
code:
	sub $0x38, %rsp
	mov %rdx, %rbx			/* the system table */
	mov 0x58(%rbx), %rdi		/* runtime services */
	lea name(%rip), %rcx
	lea guid(%rip), %rdx
	xor %r8d, %r8d
	lea size(%rip), %r9
	lea count(%rip), %rax
	mov %rax, 0x20(%rsp)
	call *72(%rdi)			/* GetVariable; the count stays 0 if there is none */
	incb count(%rip)
	lea name(%rip), %rcx
	lea guid(%rip), %rdx
	mov $7, %r8d			/* non-volatile, boot and runtime access */
	mov $1, %r9d
	lea count(%rip), %rax
	mov %rax, 0x20(%rsp)
	call *88(%rdi)			/* SetVariable */
	test %rax, %rax
	jnz failed
	mov count(%rip), %al
	add $'a' - 1, %al
	mov %al, letter(%rip)
	mov 0x40(%rbx), %rcx		/* ConOut */
	lea text(%rip), %rdx
	call *8(%rcx)
	movzbl count(%rip), %eax
	mov $3, %cl
	div %cl
	mov %ah, %al
	test %al, %al
	jz done
	movzbl %al, %ecx
	dec %ecx			/* 0 cold, 1 warm */
	xor %edx, %edx
	xor %r8d, %r8d
	xor %r9d, %r9d
	call *104(%rdi)			/* ResetSystem */
failed:
	mov $0x10, %al
	out %al, $0xf4
done:
	mov $0x35, %al
	out %al, $0xf4
1:	hlt
	jmp 1b
	.balign 8
guid:	.long 0x8c1f9d52
	.word 0x41a7, 0x4be0
	.byte 0x93, 0x5c, 0x2e, 0x77, 0x10, 0xab, 0x64, 0xd8
size:	.quad 1
count:	.byte 0, 0
name:	.word 'S', 't', 'a', 'r', 't', 's', 0
text:	.word 's', 't', 'a', 'r', 't', ' '
letter:	.word 0, '\r', '\n', 0
	.balign 4
relocs:	.long 0x1000, 8			/* a block without entries: the image may lie anywhere */
relocs_end:
	.balign 0x200
end:


