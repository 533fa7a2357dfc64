/*
 * Entry and trap stubs of every guest. The loader (PVH, or multiboot 1) enters `start` in flat 32-bit protected mode,
 * paging and interrupts off. A 64-bit guest (__x86_64__) goes on to long mode with the first 4 GiB mapped to
 * themselves by 2 MiB pages that user mode may use too; a 32-bit guest stays without paging. Both then call
 * guest_main(), whose result goes to the debug-exit port.
 *
 * GDT, the same selectors in both flavours (guest.h names them):
 *   08 kernel code  10 kernel data  18 kernel code32  20 user code32  28 user data  30 user code (64)
 *   38 TSS (two entries)  48 code16  50 data16  60..88 the SYSENTER/SYSEXIT six  90.. free for tests
 */
	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 0x00000003, -(0x1badb002 + 0x00000003)

	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 4, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:
	cld
	cli
	movl	$stack_top, %esp
	movl	%eax, boot_magic
	movl	%ebx, boot_info
	lgdt	gdt_pointer
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	xorl	%eax, %eax
	movw	%ax, %fs
	movw	%ax, %gs
#ifdef __x86_64__
	/* boot_pml4[0] -> boot_pdpt; boot_pdpt[0..3] -> boot_pd; boot_pd[i] = i * 2 MiB */
	movl	$boot_pdpt + 7, boot_pml4
	movl	$boot_pd + 7, %eax
	movl	$boot_pdpt, %edi
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$4096, %eax
	addl	$8, %edi
	loop	1b
	movl	$0x87, %eax		/* P W U PS */
	movl	$boot_pd, %edi
	movl	$2048, %ecx
2:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	2b
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x900, %eax		/* LME, NXE */
	wrmsr
	movl	$0x80010031, %eax	/* PG WP NE ET PE; no TS, no EM */
	movl	%eax, %cr0
	ljmp	$0x08, $start64

	.code64
start64:
	movl	$stack_top, %esp	/* zero-extends */
	xorl	%ebp, %ebp
	call	lib_init
	call	guest_main
	movl	%eax, %edi
	call	guest_exit
#else
	movl	$0x11, %eax
	movl	%eax, %cr0
	ljmp	$0x08, $start32
start32:
	xorl	%ebp, %ebp
	call	lib_init
	call	guest_main
	pushl	%eax
	call	guest_exit
#endif
3:	hlt
	jmp	3b

/* 256 stubs of 16 bytes: push an error code where the CPU pushes none, push the vector, go on in one place. */
	.balign 16
	.globl trap_stubs
trap_stubs:
	.set	vector, 0
	.rept	256
	.balign	16
	.if !((vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21))
	push	$0
	.endif
#ifdef __x86_64__
	pushq	$vector
#else
	pushl	$vector
#endif
	jmp	trap_common
	.set	vector, vector + 1
	.endr

#ifdef __x86_64__
trap_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rbx
	pushq	%rbp
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	cld
	movq	%rsp, %rdi
	movq	%rsp, %rbx
	andq	$-16, %rsp
	call	trap_handle
	movq	%rbx, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rbp
	popq	%rbx
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

/* void user_enter(const struct user_frame *frame): IRETQ there; returns when user_leave() is called by the trap handler. */
	.globl user_enter
user_enter:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, user_saved_sp
	pushq	32(%rdi)
	pushq	24(%rdi)
	pushq	16(%rdi)
	pushq	8(%rdi)
	pushq	0(%rdi)
	movq	40(%rdi), %rax
	movq	48(%rdi), %rdi
	iretq

	.globl user_leave
user_leave:
	movq	user_saved_sp, %rsp
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret
#else
trap_common:
	pushal
	pushl	%ds
	pushl	%es
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	cld
	pushl	%esp
	call	trap_handle
	addl	$4, %esp
	popl	%es
	popl	%ds
	popal
	addl	$8, %esp
	iretl

	.globl user_enter
user_enter:
	movl	4(%esp), %eax
	pushl	%ebx
	pushl	%ebp
	pushl	%esi
	pushl	%edi
	movl	%esp, user_saved_sp
	pushl	16(%eax)
	pushl	12(%eax)
	pushl	8(%eax)
	pushl	4(%eax)
	pushl	0(%eax)
	movw	$0x2b, %cx
	movw	%cx, %ds
	movw	%cx, %es
	movl	20(%eax), %eax
	iretl

	.globl user_leave
user_leave:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	%cs:user_saved_sp, %esp
	popl	%edi
	popl	%esi
	popl	%ebp
	popl	%ebx
	ret
#endif

	.data
	.globl boot_magic, boot_info
boot_magic:	.long 0			/* what the loader passed in EAX and EBX */
boot_info:	.long 0
	.balign 16
	.globl gdt
gdt:
	.quad 0
#ifdef __x86_64__
	.quad 0x00af9b000000ffff	/* 08 kernel code, L */
#else
	.quad 0x00cf9b000000ffff	/* 08 kernel code, 32-bit */
#endif
	.quad 0x00cf93000000ffff	/* 10 kernel data */
	.quad 0x00cf9b000000ffff	/* 18 kernel code, 32-bit */
	.quad 0x00cffb000000ffff	/* 20 user code, 32-bit */
	.quad 0x00cff3000000ffff	/* 28 user data */
	.quad 0x00affb000000ffff	/* 30 user code, L */
	.quad 0, 0			/* 38 TSS */
	.quad 0x00009b000000ffff	/* 48 code, 16-bit */
	.quad 0x000093000000ffff	/* 50 data, 16-bit */
	.quad 0				/* 58 */
	.quad 0x00af9b000000ffff	/* 60 SYSENTER: kernel code */
	.quad 0x00cf93000000ffff	/* 68 kernel data */
	.quad 0x00cffb000000ffff	/* 70 user code, 32-bit */
	.quad 0x00cff3000000ffff	/* 78 user data */
	.quad 0x00affb000000ffff	/* 80 user code, L */
	.quad 0x00cff3000000ffff	/* 88 user data */
	.fill 14, 8, 0
	.globl gdt_end
gdt_end:
	.globl gdt_pointer
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
	.long 0

	.bss
	.balign 4096
	.globl boot_pml4, boot_pdpt, boot_pd
boot_pml4:	.skip 4096
boot_pdpt:	.skip 4096
boot_pd:	.skip 4 * 4096
	.globl stack_top
	.skip 32768
stack_top:
	.globl user_saved_sp
user_saved_sp:	.skip 8
	.section .note.GNU-stack, "", @progbits
