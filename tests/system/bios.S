/*
 * A boot loader's ways with a BIOS: sectors by INT 13h, addressed by cylinder and by number; the A20 gate and the memory map by
 * INT 15h; unreal mode; protected mode and back. Ends with 35h at the debug-exit port, or the number of the step that failed.
 */
	.code16
	.globl _start
_start:
	cli
	cld
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	sti
	mov %dl, drive
	/* The rest of this program, as sectors 2 to 4 of cylinder 0, head 0. */
	movb $1, step
	mov $0x0203, %ax
	mov $0x7e00, %bx
	mov $2, %cx
	xor %dh, %dh
	int $0x13
	jc fail
	cmp $3, %al
	jne fail
	jmp more
fail:	mov step, %al
	out %al, $0xf4
	hlt
drive:	.byte 0
step:	.byte 0
packet:	.byte 16, 0
	.word 1, 0x9000, 0	/* one sector to 0:9000 */
	.quad 4
	.org 510
	.word 0xaa55

more:	/* Extensions: there; a sector by its number. */
	movb $2, step
	mov $0x4100, %ax
	mov $0x55aa, %bx
	mov drive, %dl
	int $0x13
	jc fail
	cmp $0xaa55, %bx
	jne fail
	mov $0x4200, %ax
	mov $packet, %si
	mov drive, %dl
	int $0x13
	jc fail
	cmpl $0x20746168, 0x9000	/* "hat " */
	jne fail
	/* What there is not. */
	movl $0x7fffffff, packet + 8
	mov $0x4200, %ax
	mov $packet, %si
	mov drive, %dl
	int $0x13
	jnc fail

	movb $3, step		/* which ways the gate has, and that it is open */
	mov $0x2403, %ax
	int $0x15
	jc fail
	mov $0x2402, %ax
	int $0x15
	jc fail
	cmp $1, %al
	jne fail
	movl $0x11111111, 0x500
	mov $0xffff, %ax
	mov %ax, %fs
	movl $0x22222222, %fs:0x510	/* 0x100500 */
	cmpl $0x11111111, 0x500
	jne fail
	movb $4, step
	mov $0x2400, %ax
	int $0x15
	jc fail
	cmpl $0x11111111, %fs:0x510
	jne fail
	movl $0x33333333, %fs:0x510
	cmpl $0x33333333, 0x500
	jne fail
	mov $0x2402, %ax
	int $0x15
	jc fail
	cmp $0, %al
	jne fail
	movb $5, step		/* shut, a disk's sector still comes to where it shall */
	movl $4, packet + 8
	movl $0, 0x9000
	mov $0x4200, %ax
	mov $packet, %si
	mov drive, %dl
	int $0x13
	jc fail
	cmpl $0x20746168, 0x9000
	jne fail
	cmpl $0x33333333, %fs:0x510
	jne fail
	mov $0x2401, %ax
	int $0x15
	jc fail
	cmpl $0x22222222, %fs:0x510
	jne fail

	movb $6, step		/* the memory map has the first 640 KiB and what lies from 1 MiB on */
	xor %ebx, %ebx
	xor %bp, %bp
1:	mov $0xe820, %eax
	mov $0x534d4150, %edx
	mov $24, %ecx
	mov $0x9200, %di
	int $0x15
	jc fail
	cmp $0x534d4150, %eax
	jne fail
	cmpl $1, 0x9210
	jne 2f
	cmpl $0x100000, 0x9200
	jne 2f
	inc %bp
2:	test %ebx, %ebx
	jnz 1b
	cmp $1, %bp
	jne fail
	mov $0x88, %ah
	int $0x15
	jc fail
	cmp $0x3c00, %ax	/* 15 MiB at least */
	jb fail

	movb $7, step		/* unreal mode: 32-bit offsets stay in reach when protection is off again */
	cli
	lgdt gdt_pointer
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	mov $8, %bx
	mov %bx, %gs
	and $0xfe, %al
	mov %eax, %cr0
	mov $0x1800000, %edi
	movl $0xcafe, %gs:(%edi)
	addr32 movl %gs:(%edi), %ecx
	cmp $0xcafe, %ecx
	jne fail
	sti
	mov $0x0e, %ah		/* an interrupt of the BIOS goes through protected mode and back */
	mov $'.', %al
	mov $7, %bx
	int $0x10

	movb $8, step		/* 32-bit code, BIOS calls, 32-bit code */
	mov $50, %bp
3:	cli
	lgdt gdt_pointer
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x10, $in32
	.code32
in32:	mov $8, %eax
	mov %ax, %ds
	incl 0x1900000
	ljmp $0x18, $in16
	.code16
in16:	mov %cr0, %eax
	and $0xfe, %al
	mov %eax, %cr0
	ljmp $0, $real
real:	xor %ax, %ax
	mov %ax, %ds
	sti
	mov $0x0100, %ax	/* is there a key? */
	int $0x16
	dec %bp
	jnz 3b
	mov $done, %si		/* the BIOS's own console takes its time */
	mov $0x3f8, %dx
4:	lodsb
	test %al, %al
	jz 5f
	out %al, %dx
	jmp 4b
5:	mov $0x35, %al
	out %al, $0xf4
	hlt

done:	.asciz "the BIOS answers\r\n"
	.balign 8
gdt:	.quad 0
	.quad 0x00cf92000000ffff	/* 08 data, 4 GiB */
	.quad 0x00cf9a000000ffff	/* 10 code, 32 bits */
	.quad 0x00009a000000ffff	/* 18 code, 16 bits */
gdt_pointer:
	.word 31
	.long gdt
	.org 2048
	.ascii "hat is sector 4"
	.org 4096
