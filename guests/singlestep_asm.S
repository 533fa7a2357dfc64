/*
 * Code that is stepped, each piece with the list of addresses that the debug exceptions must name, in order. TF is
 * seen before an instruction and acts after it: so the instruction that sets TF (POPF, IRET) is not trapped, and the
 * one that clears it is (SDM vol. 3, 17.3.1.4).
 */
	.text
	.macro	TF_ON
	pushfq
	orl	$0x100, (%rsp)
	popfq
	.endm
/* Three traps: behind PUSHF, AND, POPF. */
	.macro	TF_OFF name
	pushfq
\name\()_o1: andl $~0x100, (%rsp)
\name\()_o2: popfq
\name\()_o3:
	.endm
	.macro	EXPECT_OFF name
	.quad	\name\()_o1, \name\()_o2, \name\()_o3, 0
	.endm

	.globl step_popf, step_popf_list
step_popf:
	TF_ON
	nop
pf1:	nop
pf2:	TF_OFF popf
	ret
	.balign 8
step_popf_list: .quad pf1, pf2
	EXPECT_OFF popf

	.globl step_iret, step_iret_list
step_iret:
	movq	%rsp, %rax
	pushq	$0x10
	pushq	%rax
	pushfq
	orl	$0x100, (%rsp)
	pushq	$0x08
	pushq	$ir0
	iretq
ir0:	nop
ir1:	nop
ir2:	TF_OFF iret
	ret
	.balign 8
step_iret_list: .quad ir1, ir2
	EXPECT_OFF iret

	.globl step_rep, step_rep_list
step_rep:
	movl	$3, %ecx
	movl	$rep_buffer, %edi
	xorl	%eax, %eax
	TF_ON
rp0:	rep stosb
rp1:	movl	$2, %ecx
rp2:	repne scasb
rp3:	xorl	%ecx, %ecx
rp4:	rep stosb
rp5:	TF_OFF rep
	ret
	.balign 8
/* SCASB finds a zero at once (AL is 0, the buffer too): one iteration. */
step_rep_list: .quad rp0, rp0, rp1, rp2, rp3, rp4, rp5
	EXPECT_OFF rep

	.globl step_ss, step_ss_list
step_ss:
	TF_ON
	movw	%ss, %ax
ss1:	movw	%ax, %ss		/* holds the trap back for one instruction */
	nop
ss3:	TF_OFF ss
	ret
	.balign 8
step_ss_list: .quad ss1, ss3
	EXPECT_OFF ss

	.globl step_sti, step_sti_list
step_sti:
	TF_ON
	sti				/* holds back interrupts alone */
st1:	cli
st2:	TF_OFF sti
	ret
	.balign 8
step_sti_list: .quad st1, st2
	EXPECT_OFF sti

/* What a virtual machine monitor emulates is where it loses the trap. */
	.globl step_emulated, step_emulated_list
step_emulated:
	pushq	%rbx
	movl	$0xfee00020, %esi
	movl	$1, %eax
	TF_ON
	cpuid
em1:	movq	%cr4, %rax
em2:	movq	%rax, %cr4
em3:	inb	$0x61, %al
em4:	outb	%al, $0x80
em5:	movl	(%rsi), %eax
em6:	movl	$0xc0000100, %ecx
em7:	rdmsr
em8:	wrmsr
em9:	swapgs
em10:	swapgs
em11:	invlpg	(%rsi)
em12:	wbinvd
em13:	rdtsc
em14:	movq	%cr3, %rax
em15:	movq	%rax, %cr3
em16:	clts
em17:	sgdt	rep_buffer
em18:	lgdt	rep_buffer
em19:	call	em20
em20:	popq	%rax
em21:	jmp	em22
	nop
em22:	testl	%eax, %eax
em23:	jz	em22
em24:	TF_OFF emulated
	popq	%rbx
	ret
	.balign 8
step_emulated_list:
	.quad	em1, em2, em3, em4, em5, em6, em7, em8, em9, em10, em11, em12, em13, em14, em15, em16, em17, em18
	.quad	em19, em20, em21, em22, em23, em24
	EXPECT_OFF emulated

/* User code that makes a system call while it is stepped; the kernel's entry and its SYSRET. */
	.globl user_step, user_step_list, user_step_unmasked_list, syscall_entry, syscall_second
user_step:
	nop
us1:	syscall
us2:	nop
us3:	int	$0x80
syscall_entry:
	nop
syscall_second:
	nop
sy3:	andl	$~0, %r11d
sy4:	sysretq
	.balign 8
/* TF in FMASK: nothing in the kernel; SYSRET loads TF and is trapped itself, back in user mode. */
user_step_list: .quad us1, us2, us3, 0
/* TF not in FMASK: SYSCALL itself and then each instruction of the kernel. */
user_step_unmasked_list: .quad us1, syscall_entry, syscall_second, sy3, sy4, us2, us3, 0

	.globl step_fault, step_fault_list, fault_resume
/* A fault under TF: its handler runs unstepped, the instruction that faults gives no trap of its own. */
step_fault:
	TF_ON
	nop
fl1:	ud2
fault_resume:
	nop
fl2:	TF_OFF fault
	ret
	.balign 8
step_fault_list: .quad fl1, fl2
	EXPECT_OFF fault

	.globl bp_code, bp_code_at, bp_write, bp_written, bp_read, bp_was_read, bp_io, bp_io_done, bp_ice, bp_ice_done, bp_rep, bp_rep_done
	.globl watched
bp_code:
	xorl	%eax, %eax
bp_code_at:
	incl	%eax
	ret
bp_write:
	movl	$5, watched
bp_written:
	ret
bp_read:
	movl	watched, %eax
bp_was_read:
	ret
bp_io:
	outb	%al, $0x80
bp_io_done:
	ret
bp_ice:
	.byte	0xf1
bp_ice_done:
	ret
	.bss
	.balign 16
watched: .skip 16
	.globl rep_buffer
rep_buffer: .skip 64
	.section .note.GNU-stack, "", @progbits
