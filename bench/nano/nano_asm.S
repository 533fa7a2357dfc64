/* Handlers, ring-3 loops and the second processor's start; see nano_guest.h. */
	.text
	.macro ticks			/* to RAX; changes RDX */
	lfence
	rdtsc
	lfence
	shlq	$32, %rdx
	orq	%rdx, %rax
	.endm

	.globl nano_syscall_entry
	.balign 64
nano_syscall_entry:
	incq	nano_count
	sysretq

	.globl nano_skip2
	.balign 64
nano_skip2:
	incq	nano_count
	addq	$2, (%rsp)
	iretq

	.globl nano_skip2_error
	.balign 64
nano_skip2_error:
	addq	$8, %rsp
	incq	nano_count
	addq	$2, (%rsp)
	iretq

	.globl nano_irq_handler
	.balign 64
nano_irq_handler:
	pushq	%rax
	pushq	%rdx
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	movq	%rax, nano_when
	incq	nano_count
	movl	$0xfee000b0, %eax
	movl	$0, (%rax)
	popq	%rdx
	popq	%rax
	iretq

	.globl nano_user_syscall
	.balign 64
nano_user_syscall:
	movq	%rdi, %rbx
	ticks
	movq	%rax, %r12
	.balign 64
1:	syscall
	decq	%rbx
	jnz	1b
	ticks
	subq	%r12, %rax
	movq	%rax, nano_user_cycles
	int	$0x80

	.globl nano_user_fault
	.balign 64
nano_user_fault:
	movq	%rdi, %rbx
	movq	nano_user_target, %rsi
	ticks
	movq	%rax, %r12
	.balign 64
1:	movb	(%rsi), %cl		/* 8A 0E: two bytes */
	decq	%rbx
	jnz	1b
	ticks
	subq	%r12, %rax
	movq	%rax, nano_user_cycles
	int	$0x80

	/* Runs at AP_BASE in real mode. The first to come goes on to long mode on the boot page tables. */
	.code16
	.globl nano_ap_begin, nano_ap_end, nano_ap_gdt, nano_ap_idt
nano_ap_begin:
	cli
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	nano_ap_gdt - nano_ap_begin
	movl	$0x11, %eax
	movl	%eax, %cr0
	ljmpl	$0x18, $nano_ap32
	.balign 4
nano_ap_gdt:
	.skip 8
nano_ap_end:
	.code32
nano_ap32:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$1, %eax
	lock xaddl %eax, nano_ap_ticket
	testl	%eax, %eax
	jnz	2f
	movl	$0x20, %eax
	movl	%eax, %cr4
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x900, %eax
	wrmsr
	movl	$0x80010031, %eax
	movl	%eax, %cr0
	ljmp	$0x08, $nano_ap64
2:	hlt
	jmp	2b
	.code64
nano_ap64:
	movl	$nano_ap_stack, %esp
	lidt	nano_ap_idt
	xorl	%ebp, %ebp
	call	nano_ap_main
3:	hlt
	jmp	3b

	.bss
	.balign 16
nano_ap_ticket:	.skip 16
nano_ap_idt:	.skip 16
	.skip 4096
nano_ap_stack:
	.section .note.GNU-stack, "", @progbits
