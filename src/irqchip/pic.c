/*
 * Intel 8259A programmable interrupt controllers, cascaded as in a PC: the slave's INT is the master's input 2.
 * Intel 8259A data sheet (231468); the edge/level control registers are the ISA bridge's (82371AB 4.2.5).
 *
 *   ICW1  a0=0  0 0 0 1 LTIM ADI SNGL IC4      OCW1  a0=1  mask
 *   ICW2  a0=1  T7..T3 x x x                   OCW2  a0=0  R SL EOI 0 0 L2 L1 L0
 *   ICW3  a0=1  master: slaves, slave: its ID  OCW3  a0=0  0 ESMM SMM 0 1 P RR RIS
 *   ICW4  a0=1  0 0 0 SFNM BUF M/S AEOI uPM
 *
 * Invariants: an edge-triggered request stays in IRR until acknowledged or reinitialised; a level-triggered one
 * follows its line. The master's IRR bit 2 is at all times the slave's INT output.
 */
#include "pic.h"

#include <string.h>

#define CASCADE 2

/* Places an input in the priority order: 0 is the highest. */
static unsigned pic_rank(const struct pic_state *pic, unsigned input)
{
	return (input - pic->lowest - 1) & 7;
}

/* The input of the highest priority in set, or -1. */
static int pic_highest(const struct pic_state *pic, uint8_t set)
{
	for (unsigned rank = 0; rank < 8; rank++) {
		unsigned input = (pic->lowest + 1 + rank) & 7;

		if (set & (1u << input))
			return (int)input;
	}
	return -1;
}

/* The request that drives INT, or -1. */
static int pic_pending(const struct pic_state *pic, bool is_master)
{
	int request = pic_highest(pic, pic->irr & ~pic->imr), service;
	uint8_t isr = pic->isr;

	if (request < 0 || pic->init_step)
		return -1;
	if (pic->special_mask)
		isr &= ~pic->imr;
	if (is_master && pic->special_nested && request == CASCADE)
		isr &= ~(1u << CASCADE);
	service = pic_highest(pic, isr);
	if (service >= 0 && pic_rank(pic, (unsigned)request) >= pic_rank(pic, (unsigned)service))
		return -1;
	return request;
}

static void pic_set_line(struct pic_state *pic, unsigned input, bool level)
{
	uint8_t bit = (uint8_t)(1u << input);

	if (pic->elcr & bit)
		pic->irr = level ? pic->irr | bit : pic->irr & ~bit;
	else if (level && !(pic->lines & bit))
		pic->irr |= bit;
	pic->lines = level ? pic->lines | bit : pic->lines & ~bit;
}

static void pic_acknowledge(struct pic_state *pic, unsigned input)
{
	uint8_t bit = (uint8_t)(1u << input);

	if (!(pic->elcr & bit))
		pic->irr &= ~bit;
	if (!pic->auto_eoi)
		pic->isr |= bit;
	else if (pic->rotate_on_auto_eoi)
		pic->lowest = (uint8_t)input;
}

static void pic_write_icw1(struct pic_state *pic, uint8_t value)
{
	pic->irr &= pic->elcr & pic->lines;
	pic->isr = 0;
	pic->imr = 0;
	pic->lowest = 7;
	pic->special_mask = false;
	pic->read_isr = false;
	pic->poll = false;
	pic->need_icw4 = value & 1;
	pic->single = value & 2;
	if (!pic->need_icw4) {
		pic->auto_eoi = false;
		pic->special_nested = false;
	}
	pic->rotate_on_auto_eoi = false;
	pic->init_step = 2;
}

static void pic_write_ocw2(struct pic_state *pic, uint8_t value)
{
	unsigned level = value & 7;
	int service = -1;

	switch (value >> 5) {
	case 0: /* clear rotate in automatic EOI mode */
	case 4: /* set it */
		pic->rotate_on_auto_eoi = value >> 7;
		break;
	case 1: /* non-specific EOI */
	case 5: /* with rotation */
		service = pic_highest(pic, pic->special_mask ? pic->isr & ~pic->imr : pic->isr);
		if (service < 0)
			break;
		pic->isr &= ~(1u << service);
		if (value & 0x80)
			pic->lowest = (uint8_t)service;
		break;
	case 3: /* specific EOI */
	case 7: /* with rotation */
		pic->isr &= ~(1u << level);
		if (value & 0x80)
			pic->lowest = (uint8_t)level;
		break;
	case 6: /* set priority */
		pic->lowest = (uint8_t)level;
		break;
	default: /* no operation */
		break;
	}
}

static void pic_write(struct pic_state *pic, unsigned a0, uint8_t value)
{
	if (!a0) {
		if (value & 0x10) {
			pic_write_icw1(pic, value);
		} else if (value & 0x08) {
			if (value & 0x02)
				pic->read_isr = value & 1;
			if (value & 0x40)
				pic->special_mask = value & 0x20;
			pic->poll = value & 0x04;
		} else {
			pic_write_ocw2(pic, value);
		}
		return;
	}
	switch (pic->init_step) {
	case 2:
		pic->vector_base = value & 0xf8;
		pic->init_step = !pic->single ? 3 : pic->need_icw4 ? 4 : 0;
		break;
	case 3:
		pic->icw3 = value;
		pic->init_step = pic->need_icw4 ? 4 : 0;
		break;
	case 4:
		pic->special_nested = value & 0x10;
		pic->auto_eoi = value & 0x02;
		pic->init_step = 0;
		break;
	default:
		pic->imr = value;
		break;
	}
}

static void pair_update(struct pic_pair_state *pair)
{
	if (pic_pending(&pair->slave, false) >= 0)
		pair->master.irr |= 1u << CASCADE;
	else
		pair->master.irr &= ~(1u << CASCADE);
}

void pic_pair_reset(struct pic_pair_state *pair)
{
	struct pic_state *pics[2] = { &pair->master, &pair->slave };

	for (int i = 0; i < 2; i++) {
		uint8_t lines = pics[i]->lines;

		*pics[i] = (struct pic_state){ .lines = lines, .lowest = 7, .imr = 0xff };
	}
}

void pic_pair_set_line(struct pic_pair_state *pair, unsigned irq, bool level)
{
	if (irq == CASCADE)
		return;
	pic_set_line(irq < 8 ? &pair->master : &pair->slave, irq & 7, level);
	pair_update(pair);
}

bool pic_pair_intr(const struct pic_pair_state *pair)
{
	return pic_pending(&pair->master, true) >= 0;
}

uint8_t pic_pair_intack(struct pic_pair_state *pair)
{
	int input = pic_pending(&pair->master, true);
	uint8_t vector;

	if (input < 0)
		return pair->master.vector_base + 7;
	pic_acknowledge(&pair->master, (unsigned)input);
	vector = (uint8_t)(pair->master.vector_base + input);
	if (input == CASCADE) {
		input = pic_pending(&pair->slave, false);
		if (input >= 0)
			pic_acknowledge(&pair->slave, (unsigned)input);
		vector = (uint8_t)(pair->slave.vector_base + (input < 0 ? 7 : input));
		pair_update(pair);
	}
	return vector;
}

uint8_t pic_pair_read(struct pic_pair_state *pair, bool slave, unsigned a0)
{
	struct pic_state *pic = slave ? &pair->slave : &pair->master;

	if (pic->poll) {
		int input = pic_pending(pic, !slave);

		pic->poll = false;
		if (input < 0)
			return 0;
		pic_acknowledge(pic, (unsigned)input);
		pair_update(pair);
		return (uint8_t)(0x80 | input);
	}
	if (a0)
		return pic->imr;
	return pic->read_isr ? pic->isr : pic->irr;
}

void pic_pair_write(struct pic_pair_state *pair, bool slave, unsigned a0, uint8_t value)
{
	pic_write(slave ? &pair->slave : &pair->master, a0, value);
	pair_update(pair);
}

void pic_pair_write_elcr(struct pic_pair_state *pair, bool slave, uint8_t value)
{
	struct pic_state *pic = slave ? &pair->slave : &pair->master;

	/* IRQ 0, 1, 2, 8 and 13 are always edge-triggered. */
	pic->elcr = value & (slave ? 0xde : 0xf8);
	pic->irr = (uint8_t)((pic->irr & ~pic->elcr) | (pic->lines & pic->elcr));
	pair_update(pair);
}
