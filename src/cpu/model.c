/*
 * The CPU that the guest sees: `common`, described in docs/cpu-model.md. It has the host's vendor and signature, and
 * of each feature word the bits that are both in the model and (where the instruction runs natively) in the host.
 * Everything is decided once, at create; cpu_cpuid() is a pure function of the model and the vcpu's dynamic bits.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "vmm/cpu.h"
#include "vmm/error.h"

#define B(n) (1u << (n))

/*
 * Of each word: bits copied from the host (they run natively), bits that the software CPU provides itself, and bits
 * without which there is no model (x86-64-v2 and XSAVE).
 */
static const struct feature_word {
	uint32_t leaf, subleaf;
	uint8_t reg; /* 0 EAX … 3 EDX */
	uint32_t native, emulated, required;
} words[CPU_WORD_COUNT] = {
	/* SSE3, PCLMUL, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND; PCID, x2APIC, TSC deadline, hypervisor */
	[CPU_WORD_1_ECX] = { 1, 0, 2,
		B(0) | B(1) | B(9) | B(12) | B(13) | B(19) | B(20) | B(22) | B(23) | B(25) | B(26) | B(28) | B(29) | B(30),
		B(17) | B(21) | B(24) | B(31), B(0) | B(9) | B(13) | B(19) | B(20) | B(23) | B(26) },
	/* FPU, CX8, CMOV, CLFSH, MMX, FXSR, SSE, SSE2; VME, DE, PSE, TSC, MSR, PAE, MCE, APIC, SEP, MTRR, PGE, MCA, PAT, PSE36 */
	[CPU_WORD_1_EDX] = { 1, 0, 3, B(0) | B(8) | B(15) | B(19) | B(23) | B(24) | B(25) | B(26),
		B(2) | B(3) | B(4) | B(5) | B(6) | B(7) | B(9) | B(11) | B(12) | B(13) | B(14) | B(16) | B(17),
		B(0) | B(8) | B(15) | B(23) | B(24) | B(25) | B(26) },
	/* BMI1, AVX2, FDP_EXCPTN_ONLY, BMI2, ERMS, RDSEED, ADX, no FCS/FDS, CLFLUSHOPT, SHA; FSGSBASE, TSC_ADJUST, SMEP, INVPCID */
	[CPU_WORD_7_EBX] = { 7, 0, 1, B(3) | B(5) | B(6) | B(8) | B(9) | B(13) | B(18) | B(19) | B(23) | B(29),
		B(0) | B(1) | B(7) | B(10), 0 },
	/* UMIP */
	[CPU_WORD_7_ECX] = { 7, 0, 2, 0, B(2), 0 },
	/* FSRM; the rest is Intel's, below */
	[CPU_WORD_7_EDX] = { 7, 0, 3, B(4), 0, 0 },
	/* LAHF64, LZCNT, PREFETCHW */
	[CPU_WORD_EXT1_ECX] = { 0x80000001, 0, 2, B(0) | B(5) | B(8), 0, B(0) },
	/* SYSCALL, NX, 1 GiB pages, RDTSCP, long mode */
	[CPU_WORD_EXT1_EDX] = { 0x80000001, 0, 3, 0, B(11) | B(20) | B(26) | B(27) | B(29), 0 },
	/* XSAVEERPTR (AMD) */
	[CPU_WORD_EXT8_EBX] = { 0x80000008, 0, 1, 0, 0, 0 },
	[CPU_WORD_EXT21_EAX] = { 0x80000021, 0, 0, 0, 0, 0 },
	[CPU_WORD_EXT21_ECX] = { 0x80000021, 0, 2, 0, 0, 0 },
};

#define INTEL_7_EDX (B(26) | B(27) | B(29) | B(31)) /* SPEC_CTRL and PRED_CMD, STIBP, ARCH_CAPABILITIES, SSBD */
#define AMD_EXT1_EDX_COPY 0x0183f3ffu		    /* bits that AMD repeats from leaf 1 */
#define AMD_EXT1_EDX_MMXEXT B(22)
#define AMD_EXT8_EBX_NATIVE B(2)		   /* XSAVEERPTR */
#define AMD_EXT8_EBX (B(26) | B(29))		   /* SSB_NO, BTC_NO */
#define AMD_EXT21_EAX (B(2) | B(6) | B(8) | B(29)) /* LFENCE serialises, null selectors clear bases, AutoIBRS, SRSO_NO */
#define AMD_EXT21_ECX (B(1) | B(2))		   /* TSA_SQ_NO, TSA_L1_NO */

static uint32_t host_word(const struct feature_word *w)
{
	uint32_t r[4];

	if ((uint32_t)__get_cpuid_max(w->leaf & 0x80000000u, NULL) < w->leaf)
		return 0;
	__cpuid_count(w->leaf, w->subleaf, r[0], r[1], r[2], r[3]);
	return r[w->reg];
}

/* XCR0 of the host, 0 if its system does not use XSAVE. */
__attribute__((target("xsave"))) static uint64_t host_xcr0(void)
{
	uint32_t a, b, c, d;

	__cpuid(1, a, b, c, d);
	return c & B(27) ? _xgetbv(0) : 0;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Clock and TSC at one moment: the tightest of a few tries. */
static void sample_clock(uint64_t *ns, uint64_t *tsc)
{
	uint64_t best = ~0ull;

	for (int i = 0; i < 16; i++) {
		uint64_t before = __rdtsc(), t = clock_ns(), after = __rdtsc();

		if (after - before < best) {
			best = after - before;
			*ns = t;
			*tsc = before + (after - before) / 2;
		}
	}
}

/* From leaf 0x15 where it is complete, else 20 ms against CLOCK_MONOTONIC. */
static uint64_t measure_tsc_khz(void)
{
	uint32_t a, b, c, d;
	uint64_t ns0, tsc0, ns1, tsc1;
	struct timespec nap = { 0, 20000000 };

	if (__get_cpuid_max(0, NULL) >= 0x15) {
		__cpuid(0x15, a, b, c, d);
		if (a && b && c)
			return (uint64_t)c * b / a / 1000;
	}
	sample_clock(&ns0, &tsc0);
	clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	sample_clock(&ns1, &tsc1);
	return (uint64_t)((__uint128_t)(tsc1 - tsc0) * 1000000u / (ns1 - ns0));
}

bool cpu_model_is_amd(const struct cpu_model *model)
{
	/* AuthenticAMD, HygonGenuine */
	return model->host_vendor[0] == 0x68747541 || model->host_vendor[0] == 0x6f677948;
}

static void mask_vendor_words(struct cpu_model *m)
{
	uint32_t *f = m->host_features;

	if (!cpu_model_is_amd(m)) {
		f[CPU_WORD_7_EDX] |= INTEL_7_EDX;
		return;
	}
	f[CPU_WORD_EXT1_EDX] |= (f[CPU_WORD_1_EDX] & AMD_EXT1_EDX_COPY) | AMD_EXT1_EDX_MMXEXT;
	if (m->cpu_count > 1)
		f[CPU_WORD_EXT1_ECX] |= B(1); /* CmpLegacy: cores, not threads */
	f[CPU_WORD_EXT8_EBX] = (host_word(&words[CPU_WORD_EXT8_EBX]) & AMD_EXT8_EBX_NATIVE) | AMD_EXT8_EBX;
	f[CPU_WORD_EXT21_EAX] = AMD_EXT21_EAX;
	f[CPU_WORD_EXT21_ECX] = AMD_EXT21_ECX;
}

/* AVX and what is encoded with VEX go together. */
static void drop_avx(uint32_t *f)
{
	f[CPU_WORD_1_ECX] &= ~(B(12) | B(28) | B(29));
	f[CPU_WORD_7_EBX] &= ~(B(3) | B(5) | B(8));
}

static int parse_spec(const char *spec, struct cpu_model *m, struct error *err)
{
	if (!spec || !strcmp(spec, "common"))
		return 0;
	if (!strcmp(spec, "common,+smap")) {
		m->features |= CPU_MODEL_SMAP;
		return 0;
	}
	if (!strcmp(spec, "common,-smap"))
		return 0;
	return error_set(err, -EINVAL, "there is no CPU model '%s': use 'common' or 'common,+smap'", spec);
}

int cpu_model_create(const char *spec, unsigned cpu_count, struct cpu_model *m, struct error *err)
{
	return cpu_model_create_at(spec, cpu_count, 0, m, err);
}

int cpu_model_create_at(const char *spec, unsigned cpu_count, uint64_t tsc_khz, struct cpu_model *m, struct error *err)
{
	uint32_t a, b, c, d;
	int rc;

	memset(m, 0, sizeof(*m));
	m->cpu_count = cpu_count;
	rc = parse_spec(spec, m, err);
	if (rc)
		return rc;
	__cpuid(0, a, m->host_vendor[0], m->host_vendor[2], m->host_vendor[1]);
	__cpuid(1, m->host_signature, b, c, d);
	for (unsigned i = 0; i < CPU_WORD_COUNT; i++) {
		uint32_t host = host_word(&words[i]);

		if (words[i].required & ~host)
			return error_set(err, -ENOTSUP, "this host's processor lacks a feature that the CPU model 'common' "
				"needs (x86-64-v2 and XSAVE; bits %#x of CPUID leaf %#x)", words[i].required & ~host, words[i].leaf);
		m->host_features[i] = (host & words[i].native) | words[i].emulated;
	}
	if ((host_xcr0() & 7) != 7 || !cpu_model_has(m, CPU_FEATURE_AVX))
		drop_avx(m->host_features);
	if (m->features & CPU_MODEL_SMAP)
		m->host_features[CPU_WORD_7_EBX] |= B(20);
	if (cpu_count > 1)
		m->host_features[CPU_WORD_1_EDX] |= B(28); /* HTT: more than one logical processor in the package */
	mask_vendor_words(m);
	m->phys_bits = 40; /* the highest BARs end below 1 TiB; UEFI firmware maps all that could be, page by page */
	for (uint32_t i = 0; i < 3; i++)
		__cpuid(0x80000002u + i, m->brand[4 * i], m->brand[4 * i + 1], m->brand[4 * i + 2], m->brand[4 * i + 3]);
	m->tsc_khz = tsc_khz ? tsc_khz : measure_tsc_khz();
	m->lapic_tick_ns = CPU_LAPIC_TICK_NS;
	m->clock_tsc = __rdtsc();
	return 0;
}

uint64_t cpu_cr4_allowed(const struct cpu_model *m)
{
	uint64_t bits = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR |
		CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP;

	if (cpu_model_has(m, CPU_FEATURE_SMAP))
		bits |= CR4_SMAP;
	return bits;
}

uint64_t cpu_xcr0_allowed(const struct cpu_model *m)
{
	return XCR0_X87 | XCR0_SSE | (cpu_model_has(m, CPU_FEATURE_AVX) ? XCR0_AVX : 0);
}

uint64_t cpu_efer_allowed(const struct cpu_model *m)
{
	return EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | (cpu_model_has(m, CPU_FEATURE_AUTOIBRS) ? 1ull << 21 : 0);
}
