/*
 * A boot sector that counts its starts in the CMOS and resets the machine in another way each time, ten times; then it ends the
 * machine by the debug-exit port. Says "start N", and "writable" if the firmware's segment is, which a BIOS has locked.
 */
	.code16
	.globl _start
_start:
	cli
	cld
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %ss
	mov $0x7c00, %sp
	/* RAM is as after power-up: nothing of an earlier start is there. */
	cmpw $0, 0x8000
	jne bad_ram
	movw $0x1234, 0x8000
	mov $0xf000, %ax
	mov %ax, %es
	mov %es:0x1234, %al
	notb %es:0x1234
	cmp %al, %es:0x1234
	mov $writable, %si
	jne complain
	cmpb $0xea, %es:0xfff0
	mov $no_jump, %si
	jne complain
	mov $0x60, %al
	out %al, $0x70
	in $0x71, %al
	inc %al
	out %al, $0x71
	mov %al, %bl
	mov $text, %si
	call print
	mov %bl, %al
	add $'a' - 1, %al
	call put
	mov $end, %si
	call print
	cmp $11, %bl
	je done
	mov %bl, %al
	xor %ah, %ah
	mov $5, %cl
	div %cl
	mov %ah, %al
	cmp $1, %al
	jb keyboard
	je port92
	cmp $3, %al
	jb control
	je triple
	ljmp $0xf000, $0xfff0

keyboard:
	mov $0xfe, %al
	out %al, $0x64
	jmp stop
port92:
	in $0x92, %al
	or $1, %al
	out %al, $0x92
	jmp stop
control:
	mov $0xcf9, %dx
	mov $2, %al
	out %al, %dx
	mov $6, %al
	out %al, %dx
	jmp stop
triple:
	lidt nothing
	int3
stop:	hlt
	jmp stop

bad_ram:
	mov $ram, %si
complain:
	call print
	mov $0x10, %al
	out %al, $0xf4
done:
	mov $0x35, %al
	out %al, $0xf4
	jmp stop

print:	lodsb
	test %al, %al
	jz 1f
	call put
	jmp print
put:	mov $0x3f8, %dx
	out %al, %dx
1:	ret

nothing: .word 0, 0, 0
text:	.asciz "start "
end:	.asciz "\r\n"
ram:	.asciz "RAM keeps what it had\r\n"
writable: .asciz "writable\r\n"
no_jump: .asciz "no jump at the reset vector\r\n"
	.org 510
	.word 0xaa55
