/*
 * One trip through the modes: 64-bit → compatibility → protected 32-bit → protected 16-bit → real → protected 16-bit →
 * protected 32-bit, there with 32-bit and PAE paging → compatibility → 64-bit (SDM vol. 3, 9.8 and 9.9). The code runs
 * from a copy at TRAMPOLINE, below 64 KiB, so that every mode reaches it.
 */
#include "modes.h"
#define AT(label) (label - trampoline_start + TRAMPOLINE)
#define OUT(r) (RESULTS + r)

	.text
	.code64
	.globl run_modes
run_modes:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, saved_rsp
	sidt	saved_idt
	ljmpl	*to_compat
back64:
	movl	$0x10, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movq	saved_rsp, %rsp
	lidt	saved_idt
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.globl trampoline_start, trampoline_end
trampoline_start:
	.code32
in_compat:
	movl	$0x10, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x7000, %esp
	movl	$5, %eax
	incl	%eax			/* 40h: a REX prefix in 64-bit mode */
	movl	%eax, OUT(R_COMPAT_INC)
	movl	$0xfffffff0, %ebx	/* base + displacement wraps at 4 GiB */
	movl	$0x77, OUT(R_COMPAT_WRAP) + 0x10(%ebx)
	movl	%cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0		/* long mode ends here */
	movl	$0xc0000080, %ecx
	rdmsr
	movl	%eax, OUT(R_EFER)
	andl	$~0x100, %eax
	wrmsr
	pushl	$0x1234
	popl	OUT(R_LEGACY)
	ljmp	$0x48, $AT(in_16)

	.code16
in_16:
	movw	$0x50, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %gs
	movw	$0x7000, %sp
	pushw	%ax
	movw	%sp, OUT(R_SP16)
	movw	$0x10, %ax		/* FS keeps its 4 GiB limit in real mode */
	movw	%ax, %fs
	movl	%cr0, %eax
	andb	$0xfe, %al
	movl	%eax, %cr0
	ljmp	$0, $AT(in_real)
in_real:
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7000, %sp
	lidtl	AT(real_idt)
	movl	%cr0, %eax
	movl	%eax, OUT(R_REAL_CR0)
	movl	$unreal_magic, %ebx
	movl	%fs:(%ebx), %eax
	movl	%eax, OUT(R_UNREAL)

	movw	$AT(int60), 0x60 * 4
	movw	$0, 0x60 * 4 + 2
	movw	$AT(int0), 0
	movw	$0, 2
	movw	$AT(int6), 6 * 4
	movw	$0, 6 * 4 + 2
	movw	$AT(int13), 13 * 4
	movw	$0, 13 * 4 + 2
	sti
	int	$0x60
	pushfw
	popw	OUT(R_IRET_IF)		/* IRET brought IF back */
	cli
	movl	$AT(real_de), OUT(R_IP_EXPECT_DE)
	movl	$AT(real_ud), OUT(R_IP_EXPECT_UD)
	movl	$AT(real_gp), OUT(R_IP_EXPECT_GP)
	xorw	%cx, %cx
real_de:
	divw	%cx
real_ud:
	ud2
	movl	$0xfffe, %ebx
real_gp:
	movl	%gs:(%bx), %eax		/* runs over the 64 KiB limit */

	movw	$(RESULTS + R_COMPAT_INC) >> 4, %ax
	movw	%ax, %ds
	movw	0, %bx
	movw	%bx, %cs:OUT(R_SEGMENT) - 0	/* CS is 0 in the trampoline */
	movw	$0xffff, %ax
	movw	%ax, %ds
	movw	0x10, %bx		/* 0xffff0 + 0x10 = 1 MiB: A20 is open */
	inb	$0x92, %al
	andb	$0xfc, %al
	outb	%al, $0x92
	movw	0x10, %cx		/* shut: 0 */
	orb	$2, %al
	outb	%al, $0x92
	movw	0x10, %dx
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%bx, OUT(R_HMA)
	movw	%cx, OUT(R_HMA_SHUT)
	movw	%dx, OUT(R_HMA_AGAIN)
	lcall	$(TRAMPOLINE >> 4), $(far_function - trampoline_start)
	xorl	%esp, %esp		/* SP wraps to 0xfffe */
	pushw	$0x4321
	movw	0xfffe, %ax
	movw	%ax, OUT(R_SP_WRAP)
	movw	%sp, OUT(R_SP_WRAP) + 2
	movw	$0x7000, %sp
	xorw	%bx, %bx
	movl	$0x10003, %ecx
1:	incw	%bx
	loop	1b			/* counts CX alone */
	movw	%bx, OUT(R_LOOP)
	movl	%ecx, OUT(R_LOOP_ECX)
	movw	%sp, %bx
	pushfw
	subw	%sp, %bx
	movw	%bx, OUT(R_PUSHF16)
	popfw

	lgdtl	AT(trampoline_gdt)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmp	$0x48, $AT(again_16)
again_16:
	ljmpl	$0x18, $AT(again_32)

int60:
	movw	%sp, OUT(R_INT_SP)
	iretw
int0:
	popw	OUT(R_DE_IP)
	pushw	$AT(real_ud)
	iretw
int6:
	popw	OUT(R_UD_IP)
	pushw	$AT(real_ud) + 2
	iretw
int13:
	movw	%sp, OUT(R_GP_SP)	/* no error code in real mode */
	popw	OUT(R_GP_IP)
	pushw	$AT(real_gp) + (real_gp_end - real_gp)
	iretw
far_function:
	movw	%cs, %ax
	movw	%ax, OUT(R_FAR_CS)
	lret
	.set	real_gp_end, real_gp + 4

	.code32
again_32:
	movl	$0x10, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %fs
	movw	%ax, %gs
	movl	$0x7000, %esp
	movl	%cr3, %ebp
	/* 32-bit paging with 4 MiB pages: 32 MiB shows what is at 4 MiB. */
	movl	$0x10, %eax
	movl	%eax, %cr4
	movl	$pd32, %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	jmp	1f
1:	movl	$0xabcd, 0x400010
	movl	0x2000010, %eax
	movl	%eax, OUT(R_PAGING32)
	movl	%cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0
	/* PAE paging: 1 GiB shows what is at 0. */
	movl	$0x20, %eax
	movl	%eax, %cr4
	movl	$pdpt_pae, %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	jmp	2f
2:	movl	$0xbcde, 0x600010
	movl	0x40600010, %eax
	movl	%eax, OUT(R_PAGING_PAE)
	movl	%cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0

	movl	%ebp, %cr3
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	rdmsr
	movl	%eax, OUT(R_BACK)
	ljmp	$0x08, $back64

	.balign 8
real_idt:
	.word	0x3ff
	.long	0
	.balign 8
trampoline_gdt:
	.word	32 * 8 - 1
	.long	gdt
trampoline_end:

	.data
	.balign 8
to_compat:
	.long	AT(in_compat)
	.word	0x18
	.balign 8
	.globl unreal_magic
unreal_magic: .long 0x600dcafe
	.bss
	.balign 4096
	.globl pd32, pd_pae, pdpt_pae
pd32:	.skip 4096
pd_pae:	.skip 4096
pdpt_pae: .skip 32
saved_rsp: .skip 8
saved_idt: .skip 16
	.section .note.GNU-stack, "", @progbits
