/* The 8259A pair. Pure state machines: no bus, no callbacks; irqchip.c samples pic_pair_intr() after each change. */
#ifndef IRQCHIP_PIC_H
#define IRQCHIP_PIC_H

#include <stdbool.h>
#include <stdint.h>

struct pic_state {
	uint8_t lines; /* input levels */
	uint8_t irr, isr, imr;
	uint8_t elcr;	     /* level-triggered inputs */
	uint8_t vector_base; /* ICW2, bits 7:3 */
	uint8_t icw3;
	uint8_t init_step; /* the ICW that comes next: 2, 3, 4; 0 when initialised */
	uint8_t lowest;	   /* the input with the lowest priority */
	bool need_icw4, single;
	bool auto_eoi, rotate_on_auto_eoi, special_nested, special_mask;
	bool read_isr, poll;
};

struct pic_pair_state {
	struct pic_state master, slave;
};

void pic_pair_reset(struct pic_pair_state *pair);
void pic_pair_set_line(struct pic_pair_state *pair, unsigned irq, bool level);
/* The master's INTR output. */
bool pic_pair_intr(const struct pic_pair_state *pair);
/* INTA: the vector, spurious if nothing is pending. */
uint8_t pic_pair_intack(struct pic_pair_state *pair);
/* a0: the address bit; slave: which chip. */
uint8_t pic_pair_read(struct pic_pair_state *pair, bool slave, unsigned a0);
void pic_pair_write(struct pic_pair_state *pair, bool slave, unsigned a0, uint8_t value);
void pic_pair_write_elcr(struct pic_pair_state *pair, bool slave, uint8_t value);

#endif
