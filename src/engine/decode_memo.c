/*
 * Instructions that were decoded before, by their bytes. Programs are made of few different ones: with displacements and the distances of
 * branches left out some thousands are nearly all of a compiler's. To decode one of those is to copy it and to fill in the number.
 *
 * How many bytes an instruction has, and which of them are that number, is its shape. The shape is foreseen by the bytes up to ModRM, in a
 * small table that may err: an entry says itself of which shape it is.
 *
 *   shapes   prefixes, opcode, ModRM ──► shape, whatever was there last
 *   entries  shape, mode, bytes without the number ──► struct insn
 *
 * An entry with the same shape, mode and bytes is the right one, for the decoder reads bytes in their order: what it has read before the
 * number decides that it is one, and that the instruction has no more bytes.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/decode.h"

#define ENTRY_BITS 13
#define SHAPE_BITS 12
#define VIEW_BITS 11
#define VIEW_OPERANDS 4

/* 0: not known. The number's place, 0 none; its size 0, 1, 2 bytes, or 3: four. */
struct shape {
	uint8_t length, number; /* at | size << 4 | mode << 6 */
};

/* A line of the cache. */
struct memo_entry {
	uint8_t code[MEMO_BYTES]; /* 0 where the number is and behind the end; the last byte: shape.number */
	struct insn insn;
};

/* Likewise. Instructions of more operands are left to the decoder. */
struct memo_view {
	uint8_t code[MEMO_BYTES];
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand op[VIEW_OPERANDS];
};

struct memo {
	struct memo_entry entry[1 << ENTRY_BITS];
	struct memo_view view[1 << VIEW_BITS];
	struct shape shape[1 << SHAPE_BITS];
};

int memo_create(struct decode_state *s)
{
	void *p = mmap(NULL, sizeof(*s->memo), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	s->memo = p;
	return 0;
}

void memo_destroy(struct decode_state *s)
{
	if (s->memo)
		munmap(s->memo, sizeof(*s->memo));
	s->memo = NULL;
}

void memo_forget(struct decode_state *s)
{
	memset(s->memo->entry, 0, sizeof(s->memo->entry));
}

/* How many bytes tell the shape of most instructions that begin with this one: 0: a prefix, 3: it is 0F. */
static const uint8_t telling[256] = {
	/* clang-format off */
	2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 3, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1,
	2, 2, 2, 2, 1, 1, 0, 1, 2, 2, 2, 2, 1, 1, 0, 1, 2, 2, 2, 2, 1, 1, 0, 1, 2, 2, 2, 2, 1, 1, 0, 1,
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
	1, 1, 2, 2, 0, 0, 0, 0, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
	1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
	2, 2, 1, 1, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2,
	1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2,
	/* clang-format on */
};

static struct shape *find_shape(struct memo *m, enum engine_mode mode, const uint8_t *code)
{
	unsigned at = 0, count;
	uint64_t bytes, mask = ~0ull;

	memcpy(&bytes, code, sizeof(bytes));
	for (; at < 3 && !telling[code[at]]; at++)
		if ((code[at] & 0xf0) == 0x40)
			mask &= ~(7ull << at * 8); /* REX: W alone */
	count = telling[code[at]];
	if (code[at] == 0x0f && (code[at + 1] & 0xf0) == 0x80)
		count = 1; /* Jcc */
	else if (count > 1 && (code[at] & 0xfe) != 0xf6)
		mask &= ~(0x38ull << (at + count - 1) * 8); /* ModRM.reg is the opcode's for F6 and F7 */
	mask &= (1ull << (at + count) * 8) - 1;
	return &m->shape[(((bytes & mask) + mode) * 0x9e3779b97f4a7c15ull) >> (64 - SHAPE_BITS)];
}

static unsigned number_size(struct shape s)
{
	unsigned size = s.number >> 4 & 3;

	return size == 3 ? 4 : size;
}

/* The code as entries have it; a hash. */
static uint64_t make_key(struct shape s, const uint8_t *code, uint64_t key[2])
{
	unsigned at = s.number & 15, bits = 8 * s.length, first = 8 * at;
	uint64_t number = (1ull << 8 * number_size(s)) - 1;

	memcpy(key, code, MEMO_BYTES);
	if (bits <= 64) {
		key[0] &= ~0ull >> (64 - bits);
		key[1] = 0;
	} else {
		key[1] &= ~0ull >> (128 - bits);
	}
	if (first < 64) {
		key[0] &= ~(number << first);
		key[1] &= first ? ~(number >> (64 - first)) : ~0ull;
	} else {
		key[1] &= ~(number << (first - 64));
	}
	key[1] |= (uint64_t)s.number << 56;
	return (key[0] ^ key[1] * 0xc2b2ae3d27d4eb4full) * 0x9e3779b97f4a7c15ull;
}

static int64_t read_number(struct shape s, const uint8_t *code)
{
	const uint8_t *at = code + (s.number & 15);
	int16_t word;
	int32_t n;

	switch (number_size(s)) {
	case 1:
		return (int8_t)*at;
	case 2:
		memcpy(&word, at, sizeof(word));
		return word;
	default:
		memcpy(&n, at, sizeof(n));
		return n;
	}
}

bool memo_find(const struct decode_state *s, enum engine_mode mode, const uint8_t *code, struct insn *out)
{
	struct shape shape = *find_shape(s->memo, mode, code);
	const struct memo_entry *entry;
	uint64_t key[2];

	if (!shape.length || shape.number >> 6 != mode)
		return false;
	entry = &s->memo->entry[make_key(shape, code, key) >> (64 - ENTRY_BITS)];
	if (entry->insn.length != shape.length || memcmp(entry->code, key, sizeof(key)))
		return false;
	*out = entry->insn;
	if (!number_size(shape))
		return true;
	if (out->flags & INSN_MEM)
		out->disp = read_number(shape, code);
	else
		out->imm = (uint64_t)read_number(shape, code);
	return true;
}

bool memo_find_view(const struct decode_state *s, enum engine_mode mode, const uint8_t *code, struct decoded *d)
{
	struct shape shape = *find_shape(s->memo, mode, code);
	const struct memo_view *view;
	uint64_t key[2];
	int64_t number;

	if (!shape.length || shape.number >> 6 != mode)
		return false;
	view = &s->memo->view[make_key(shape, code, key) >> (64 - VIEW_BITS)];
	if (view->insn.length != shape.length || memcmp(view->code, key, sizeof(key)))
		return false;
	d->insn = view->insn;
	memcpy(d->op, view->op, sizeof(view->op));
	memset(d->op + VIEW_OPERANDS, 0, sizeof(d->op) - sizeof(view->op));
	if (!number_size(shape))
		return true;
	number = read_number(shape, code);
	if (d->insn.raw.disp.size)
		d->insn.raw.disp.value = number;
	else
		d->insn.raw.imm[0].value.s = number;
	for (unsigned n = 0; n < VIEW_OPERANDS; n++) {
		ZydisDecodedOperand *op = &d->op[n];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			op->mem.disp.value = number;
		else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->imm.is_relative)
			op->imm.value.s = number;
	}
	return true;
}

static struct shape shape_of(enum engine_mode mode, const struct decoded *d, const struct insn *i)
{
	static const uint8_t sizes[33] = {[8] = 1, [16] = 2, [32] = 3};
	const ZydisDecodedInstruction *z = &d->insn;
	struct shape s = {.length = i->length, .number = (uint8_t)(mode << 6)};

	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return s;
	if ((i->flags & INSN_MEM) && (z->attributes & ZYDIS_ATTRIB_HAS_MODRM) && z->raw.disp.size && z->raw.disp.size <= 32 &&
		i->disp == z->raw.disp.value)
		s.number |= (uint8_t)(z->raw.disp.offset | sizes[z->raw.disp.size] << 4);
	else if (!(i->flags & INSN_MEM) && z->raw.imm[0].is_relative && z->raw.imm[0].size && z->raw.imm[0].size <= 32 && !z->raw.imm[1].size &&
		i->imm == (uint64_t)z->raw.imm[0].value.s)
		s.number |= (uint8_t)(z->raw.imm[0].offset | sizes[z->raw.imm[0].size] << 4);
	return s;
}

void memo_add(struct decode_state *s, enum engine_mode mode, const uint8_t *code, const struct decoded *d, const struct insn *i)
{
	struct shape shape = shape_of(mode, d, i);
	struct memo_entry *entry;
	uint64_t key[2];

	*find_shape(s->memo, mode, code) = shape;
	entry = &s->memo->entry[make_key(shape, code, key) >> (64 - ENTRY_BITS)];
	memcpy(entry->code, key, sizeof(key));
	entry->insn = *i;
}

void memo_add_view(struct decode_state *s, enum engine_mode mode, const uint8_t *code, const struct decoded *d, const struct insn *i)
{
	struct shape shape = shape_of(mode, d, i);
	struct memo_view *view;
	uint64_t key[2];

	if (d->insn.operand_count > VIEW_OPERANDS)
		return;
	view = &s->memo->view[make_key(shape, code, key) >> (64 - VIEW_BITS)];
	memcpy(view->code, key, sizeof(key));
	view->insn = d->insn;
	memcpy(view->op, d->op, sizeof(view->op));
}
