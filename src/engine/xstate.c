/*
 * FXSAVE, FXRSTOR, XSAVE, XRSTOR, XGETBV, XSETBV on the memory image in cpu_state.xsave (SDM vol. 1, 10.5 and chapter 13),
 * standard format:
 *
 *   0 x87 (24 bytes) | 24 MXCSR, mask | 32 ST0–7 | 160 XMM0–15 | 416 | 512 header: XSTATE_BV, XCOMP_BV | 576 YMM high halves
 *
 * The FPU's instruction and data pointers are stored as zero: natively run instructions would leave host addresses there.
 */
#include "engine/decode.h"
#include "engine/system.h"

#define LEGACY_SIZE 512
#define HEADER 512
#define AVX_OFFSET 576
#define AVX_SIZE 256
#define XSTATE_SIZE (AVX_OFFSET + AVX_SIZE)

static uint32_t mxcsr_mask(void)
{
	uint8_t image[512] __attribute__((aligned(16)));
	uint32_t mask;

	__asm__ volatile("fxsave %0" : "=m"(image));
	memcpy(&mask, image + 28, 4);
	return mask ? mask : 0xffbf;
}

static void check_available(struct engine *e, bool xsave)
{
	uint64_t cr0 = e->cpu->cr0;

	if (xsave && !(e->cpu->cr4 & CR4_OSXSAVE))
		engine_raise(e, EXC_UD);
	if ((cr0 & CR0_TS) || (!xsave && (cr0 & CR0_EM)))
		engine_raise(e, EXC_NM);
}

static void put_initial(uint8_t *image, uint64_t component)
{
	if (component == XCR0_X87) {
		memset(image, 0, 24);
		memset(image + 32, 0, 128);
		image[0] = 0x7f;
		image[1] = 0x03;
	} else if (component == XCR0_SSE) {
		memset(image + 160, 0, 256);
	} else {
		memset(image + AVX_OFFSET, 0, AVX_SIZE);
	}
}

static void copy_component(uint8_t *dst, const uint8_t *src, uint64_t component)
{
	if (component == XCR0_X87) {
		memcpy(dst, src, 8);
		memset(dst + 8, 0, 16); /* FIP, FDP */
		memcpy(dst + 32, src + 32, 128);
	} else if (component == XCR0_SSE) {
		memcpy(dst + 160, src + 160, 256);
	} else {
		memcpy(dst + AVX_OFFSET, src + AVX_OFFSET, AVX_SIZE);
	}
}

/* The own image with every component spelled out. */
static uint8_t *own_image(struct engine *e)
{
	uint8_t *image = e->cpu->xsave;
	uint64_t bv;

	memcpy(&bv, image + HEADER, 8);
	for (uint64_t component = 1; component <= XCR0_AVX; component <<= 1)
		if (!(bv & component))
			put_initial(image, component);
	bv = XCR0_X87 | XCR0_SSE | XCR0_AVX;
	memcpy(image + HEADER, &bv, 8);
	return image;
}

static uint64_t area_address(struct engine *e, const struct insn *i, unsigned size, unsigned alignment, unsigned access)
{
	uint64_t gva = insn_linear(e, i, size, access);

	if (gva & (alignment - 1))
		engine_raise_error(e, EXC_GP, 0);
	return gva;
}

void op_fxsave(struct engine *e, const struct insn *i)
{
	uint8_t area[LEGACY_SIZE];
	const uint8_t *image;
	uint32_t mask = mxcsr_mask();
	unsigned size = e->mode == MODE_64 ? 416 : 288;
	uint64_t gva;

	check_available(e, false);
	gva = area_address(e, i, LEGACY_SIZE, 16, ACCESS_WRITE);
	image = own_image(e);
	copy_component(area, image, XCR0_X87);
	copy_component(area, image, XCR0_SSE);
	memcpy(area + 24, image + 24, 4);
	memcpy(area + 28, &mask, 4);
	linear_write_bytes(e, gva, area, size, ACCESS_WRITE);
}

void op_fxrstor(struct engine *e, const struct insn *i)
{
	uint8_t area[LEGACY_SIZE], *image;
	uint32_t mxcsr;
	uint64_t gva;

	check_available(e, false);
	gva = area_address(e, i, LEGACY_SIZE, 16, ACCESS_READ);
	linear_read_bytes(e, gva, area, LEGACY_SIZE, ACCESS_READ);
	memcpy(&mxcsr, area + 24, 4);
	if (mxcsr & ~mxcsr_mask())
		engine_raise_error(e, EXC_GP, 0);
	image = own_image(e);
	copy_component(image, area, XCR0_X87);
	memcpy(image + 24, area + 24, 4);
	memcpy(image + 160, area + 160, e->mode == MODE_64 ? 256 : 128);
}

static uint64_t requested(struct engine *e)
{
	return ((uint32_t)e->cpu->gpr[GPR_RAX] | e->cpu->gpr[GPR_RDX] << 32) & e->cpu->xcr0;
}

void op_xsave(struct engine *e, const struct insn *i)
{
	uint8_t area[XSTATE_SIZE];
	const uint8_t *image;
	uint32_t mask = mxcsr_mask();
	uint64_t gva, rfbm, bv;
	unsigned size;

	check_available(e, true);
	rfbm = requested(e);
	size = rfbm & XCR0_AVX ? XSTATE_SIZE : AVX_OFFSET;
	gva = area_address(e, i, size, 64, ACCESS_WRITE);
	image = own_image(e);
	/* What is not requested stays as it is in memory. */
	linear_read_bytes(e, gva, area, size, ACCESS_READ);
	for (uint64_t component = 1; component <= XCR0_AVX; component <<= 1)
		if (rfbm & component)
			copy_component(area, image, component);
	if (rfbm & (XCR0_SSE | XCR0_AVX)) {
		memcpy(area + 24, image + 24, 4);
		memcpy(area + 28, &mask, 4);
	}
	memcpy(&bv, area + HEADER, 8);
	bv |= rfbm;
	memcpy(area + HEADER, &bv, 8);
	linear_write_bytes(e, gva, area, size, ACCESS_WRITE);
}

void op_xrstor(struct engine *e, const struct insn *i)
{
	uint8_t area[XSTATE_SIZE], *image;
	uint64_t gva, rfbm, header[8];
	uint32_t mxcsr;
	unsigned size;

	check_available(e, true);
	rfbm = requested(e);
	size = rfbm & XCR0_AVX ? XSTATE_SIZE : AVX_OFFSET;
	gva = area_address(e, i, size, 64, ACCESS_READ);
	linear_read_bytes(e, gva, area, size, ACCESS_READ);
	memcpy(header, area + HEADER, 64);
	if ((header[0] & ~e->cpu->xcr0) || header[1] || header[2])
		engine_raise_error(e, EXC_GP, 0);
	memcpy(&mxcsr, area + 24, 4);
	if ((rfbm & (XCR0_SSE | XCR0_AVX)) && (mxcsr & ~mxcsr_mask()))
		engine_raise_error(e, EXC_GP, 0);
	image = own_image(e);
	for (uint64_t component = 1; component <= XCR0_AVX; component <<= 1) {
		if (!(rfbm & component))
			continue;
		if (header[0] & component)
			copy_component(image, area, component);
		else
			put_initial(image, component);
	}
	if (rfbm & (XCR0_SSE | XCR0_AVX))
		memcpy(image + 24, &mxcsr, 4);
}

void op_xgetbv(struct engine *e, const struct insn *i)
{
	if (!(e->cpu->cr4 & CR4_OSXSAVE))
		engine_raise(e, EXC_UD);
	if ((uint32_t)e->cpu->gpr[GPR_RCX] != 0)
		engine_raise_error(e, EXC_GP, 0);
	e->cpu->gpr[GPR_RAX] = (uint32_t)e->cpu->xcr0;
	e->cpu->gpr[GPR_RDX] = e->cpu->xcr0 >> 32;
}

void op_xsetbv(struct engine *e, const struct insn *i)
{
	uint64_t value = (uint32_t)e->cpu->gpr[GPR_RAX] | e->cpu->gpr[GPR_RDX] << 32;

	if (!(e->cpu->cr4 & CR4_OSXSAVE))
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	if ((uint32_t)e->cpu->gpr[GPR_RCX] != 0 || (value & ~cpu_xcr0_allowed(&e->block->model)) || !(value & XCR0_X87) ||
		((value & XCR0_AVX) && !(value & XCR0_SSE)))
		engine_raise_error(e, EXC_GP, 0);
	e->cpu->xcr0 = value;
	e->leave_block = true;
}
