/*
 * A vcpu on a RAM buffer with a fake outside world, for tests that run small machine-code programs in the engine.
 * Port and MMIO accesses are recorded; HLT with nothing pending ends a run.
 */
#ifndef ENGINE_FIXTURE_H
#define ENGINE_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/access.h"

#ifndef FIXTURE_RAM
#define FIXTURE_RAM (4u << 20)
#endif
#define FIXTURE_CODE 0x10000u  /* programs */
#define FIXTURE_STACK 0x20000u /* initial RSP, supervisor */
#define FIXTURE_DATA 0x30000u
#define FIXTURE_GDT 0x5000u
#define FIXTURE_IDT 0x6000u
#define FIXTURE_TSS 0x7000u
#define FIXTURE_HANDLERS 0x8000u /* handler of vector n: 16n: push n; hlt */
#define FIXTURE_PML4 0x100000u
#define FIXTURE_SEL_CODE64 0x08
#define FIXTURE_SEL_DATA 0x10
#define FIXTURE_SEL_CODE32 0x18
#define FIXTURE_SEL_UDATA 0x23
#define FIXTURE_SEL_UCODE64 0x2b
#define FIXTURE_SEL_CODE16 0x30
#define FIXTURE_SEL_TSS 0x38

struct fixture {
	struct vcpu_block *block;
	struct vm_shared *shared;
	uint8_t *ram;
	int ram_fd;
	struct cpu_state *cpu;
	struct engine *engine;
	unsigned accesses;
	uint64_t last_addr, last_value;
	unsigned last_space, last_size;
};

static inline uint64_t fixture_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct fixture *f = ctx;

	f->accesses++;
	f->last_space = space;
	f->last_addr = addr;
	f->last_size = size;
	if (is_write)
		f->last_value = value;
	return 0x1122334455667788ull;
}

static inline uint64_t fixture_exit(void *ctx, enum vcpu_exit_kind kind)
{
	return 0x20;
}

static inline void fixture_wait(void *ctx, uint64_t deadline_ns)
{
	struct fixture *f = ctx;

	atomic_fetch_or(&f->block->events, VCPU_EVENT_EXIT);
}

static inline void fixture_set_timer(void *ctx, uint64_t deadline_ns)
{
}

static inline void fixture_put64(struct fixture *f, uint64_t gpa, uint64_t value)
{
	memcpy(f->ram + gpa, &value, 8);
}

static inline uint64_t fixture_get64(struct fixture *f, uint64_t gpa)
{
	uint64_t value;

	memcpy(&value, f->ram + gpa, 8);
	return value;
}

static inline void fixture_set_segment(struct cpu_segment *s, uint16_t selector, uint32_t ar, uint64_t base, uint32_t limit)
{
	*s = (struct cpu_segment){ .selector = selector, .ar = ar, .base = base, .limit = limit };
}

static inline void fixture_gate64(struct fixture *f, unsigned vector, unsigned type, unsigned dpl, unsigned ist)
{
	uint64_t offset = FIXTURE_HANDLERS + vector * 16;

	fixture_put64(f, FIXTURE_IDT + vector * 16, (offset & 0xffff) | FIXTURE_SEL_CODE64 << 16 | (uint64_t)ist << 32 |
		(uint64_t)(0x80 | dpl << 5 | type) << 40 | (offset >> 16 & 0xffff) << 48);
	fixture_put64(f, FIXTURE_IDT + vector * 16 + 8, offset >> 32);
}

/* 4-level paging maps the first 2 MiB by 4 KiB pages (user, writable), the next 2 MiB by one large page. */
static inline void fixture_map(struct fixture *f)
{
	fixture_put64(f, FIXTURE_PML4, (FIXTURE_PML4 + 0x1000) | 7);
	fixture_put64(f, FIXTURE_PML4 + 0x1000, (FIXTURE_PML4 + 0x2000) | 7);
	fixture_put64(f, FIXTURE_PML4 + 0x2000, (FIXTURE_PML4 + 0x3000) | 7);
	fixture_put64(f, FIXTURE_PML4 + 0x2008, 0x200000 | 0x87);
	for (unsigned n = 0; n < 512; n++)
		fixture_put64(f, FIXTURE_PML4 + 0x3000 + n * 8, n * 0x1000ull | 7);
}

static inline uint64_t fixture_pte(uint64_t gva)
{
	return FIXTURE_PML4 + 0x3000 + (gva >> 12) * 8;
}

/* A CPU in 64-bit mode at CPL 0, handlers for all vectors. */
static inline void fixture_open(struct fixture *f)
{
	static const uint64_t gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x00cff3000000ffff,
		0x00affb000000ffff, 0x00009b000000ffff, 0x00008b0070000067ull, 0 };
	struct engine_env env = { fixture_access, fixture_exit, fixture_wait, fixture_set_timer, f, -1 };
	struct cpu_state *cpu;

	memset(f, 0, sizeof(*f));
	f->block = aligned_alloc(4096, (sizeof(*f->block) + 4095) & ~4095ul);
	memset(f->block, 0, sizeof(*f->block));
	f->shared = calloc(1, sizeof(*f->shared) + FIXTURE_RAM / 4096 / 8 + 64);
	f->shared->cpu_count = 1;
	f->ram_fd = memfd_create("fixture", MFD_CLOEXEC);
	if (f->ram_fd < 0 || ftruncate(f->ram_fd, FIXTURE_RAM))
		abort();
	f->ram = mmap(NULL, FIXTURE_RAM, PROT_READ | PROT_WRITE, MAP_SHARED, f->ram_fd, 0);
	if (f->ram == MAP_FAILED)
		abort();
	f->block->ram.ranges[0] = (struct ram_range){ .gpa = 0, .size = FIXTURE_RAM };
	f->block->ram.file_size = FIXTURE_RAM;
	cpu_model_create("common", 1, &f->block->model, NULL);
	f->cpu = cpu = &f->block->cpu;
	cpu_reset(cpu, true);
	cpu_lapic_reset(&f->block->lapic, 0, true);
	memcpy(f->ram + FIXTURE_GDT, gdt, sizeof(gdt));
	for (unsigned n = 0; n < 256; n++) {
		uint8_t *h = f->ram + FIXTURE_HANDLERS + n * 16;

		h[0] = 0x68; /* push imm32; hlt */
		h[1] = (uint8_t)n;
		h[5] = 0xf4;
		fixture_gate64(f, n, 14, 3, 0);
	}
	fixture_map(f);
	memset(f->ram + FIXTURE_TSS + 102, 0xff, 2); /* no I/O bitmap */
	fixture_put64(f, FIXTURE_TSS + 4, 0x28000);  /* RSP0 */
	fixture_put64(f, FIXTURE_TSS + 36, 0x29000); /* IST1 */
	cpu->gdtr = (struct cpu_table){ .base = FIXTURE_GDT, .limit = 0x47 };
	cpu->idtr = (struct cpu_table){ .base = FIXTURE_IDT, .limit = 0xfff };
	cpu->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP;
	cpu->cr3 = FIXTURE_PML4;
	cpu->cr4 = CR4_PAE;
	cpu->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	fixture_set_segment(&cpu->seg[SEG_CS], FIXTURE_SEL_CODE64, 0xa09b, 0, ~0u);
	fixture_set_segment(&cpu->seg[SEG_SS], FIXTURE_SEL_DATA, 0xc093, 0, ~0u);
	fixture_set_segment(&cpu->seg[SEG_DS], FIXTURE_SEL_DATA, 0xc093, 0, ~0u);
	fixture_set_segment(&cpu->seg[SEG_ES], FIXTURE_SEL_DATA, 0xc093, 0, ~0u);
	fixture_set_segment(&cpu->tr, FIXTURE_SEL_TSS, 0x8b, FIXTURE_TSS, 0x67);
	cpu->rflags = FLAG_FIXED;
	cpu->gpr[GPR_RIP] = FIXTURE_CODE;
	cpu->gpr[GPR_RSP] = FIXTURE_STACK;
	env.ram_fd = f->ram_fd;
	if (engine_create(f->block, f->shared, f->ram, &env, &f->engine))
		abort();
}

static inline void fixture_close(struct fixture *f)
{
	engine_destroy(f->engine);
	free(f->block);
	free(f->shared);
	munmap(f->ram, FIXTURE_RAM);
	close(f->ram_fd);
}

/* To CPL 3, 64-bit. */
static inline void fixture_user(struct fixture *f)
{
	fixture_set_segment(&f->cpu->seg[SEG_CS], FIXTURE_SEL_UCODE64, 0xa0fb, 0, ~0u);
	fixture_set_segment(&f->cpu->seg[SEG_SS], FIXTURE_SEL_UDATA, 0xc0f3, 0, ~0u);
	fixture_set_segment(&f->cpu->seg[SEG_DS], FIXTURE_SEL_UDATA, 0xc0f3, 0, ~0u);
	fixture_set_segment(&f->cpu->seg[SEG_ES], FIXTURE_SEL_UDATA, 0xc0f3, 0, ~0u);
}

/* Runs bytes at FIXTURE_CODE until HLT, shutdown or max instructions. */
static inline enum vcpu_exit_kind fixture_run(struct fixture *f, const void *code, unsigned size, uint64_t max)
{
	memcpy(f->ram + FIXTURE_CODE, code, size);
	f->ram[FIXTURE_CODE + size] = 0xf4;
	f->cpu->gpr[GPR_RIP] = FIXTURE_CODE;
	f->cpu->activity = CPU_RUNNING;
	engine_state_changed(f->engine);
	return engine_run(f->engine, max);
}

/* The vector whose handler ran last (it pushed its number and halted), -1 if the CPU is not in a handler. */
static inline int fixture_vector(const struct fixture *f)
{
	uint64_t rip = f->cpu->gpr[GPR_RIP];

	if (rip < FIXTURE_HANDLERS || rip >= FIXTURE_HANDLERS + 256 * 16)
		return -1;
	return (int)((rip - FIXTURE_HANDLERS) / 16);
}

/* The frame below the handler's push: [0] is the error code or RIP. */
static inline uint64_t fixture_frame(struct fixture *f, unsigned word)
{
	return fixture_get64(f, f->cpu->gpr[GPR_RSP] + 8 + word * 8);
}

#endif
