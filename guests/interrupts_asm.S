/* Interrupt shadows: where a pending interrupt may be taken after STI, MOV SS and POP SS (SDM vol. 3, 6.8). */
	.text
	.globl sti_shadow, sti_shadow_at, sti_sti, sti_sti_at, ss_shadow, ss_shadow_at, sti_cli, sti_hlt, sti_hlt_at, popf_if, popf_if_at
/* Each begins with IF clear and an interrupt pending. */
sti_shadow:
	sti
	nop
sti_shadow_at:
	nop
	cli
	ret
sti_sti:
	sti
	sti			/* STI with IF set makes no new shadow */
sti_sti_at:
	nop
	cli
	ret
sti_cli:
	sti
	cli			/* in the shadow: nothing is taken */
	ret
sti_hlt:
	sti
	hlt
sti_hlt_at:
	cli
	ret
popf_if:
	pushfq
	orl	$0x200, (%rsp)
	popfq			/* no shadow */
popf_if_at:
	nop
	cli
	ret
/* MOV SS in STI's shadow may, but need not, hold the interrupt for one instruction more (SDM vol. 3, 6.8.3). */
ss_shadow:
	movw	%ss, %ax
	sti
	movw	%ax, %ss
	nop
ss_shadow_at:
	nop
	cli
	ret
	.section .note.GNU-stack, "", @progbits
