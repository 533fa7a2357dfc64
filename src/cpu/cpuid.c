/*
 * CPUID leaves and constant MSRs of the model (SDM vol. 2, CPUID; AMD APM vol. 3, appendix E). Caches and topology
 * are made up and the same on every host: one package, one thread per core, 32 KiB + 32 KiB L1, 1 MiB L2, 16 MiB L3.
 */
#include <string.h>

#include "vmm/cpu.h"

#define LEAF_MAX 0x16u
#define LEAF_EXT_MAX 0x80000021u
#define LEAF_HYPERVISOR 0x40000000u
#define LEAF_HYPERVISOR_TIMING 0x40000010u
#define LEAF_KVM 0x40000100u
#define LEAF_KVM_FEATURES 0x40000101u

/* What of KVM's interface there is; none of it is a hypercall. */
#define KVM_NOP_IO_DELAY (1u << 1) /* writes to port 0x80 delay nothing */
#define KVM_CLOCK (1u << 3)	   /* MSR_PV_WALL_CLOCK, MSR_PV_SYSTEM_TIME */
#define KVM_CLOCK_STABLE (1u << 24)

#define XSAVE_LEGACY_SIZE 576u
#define XSAVE_AVX_SIZE 256u

static uint32_t lapic_hz(const struct cpu_model *m)
{
	return m->lapic_tick_ns ? 1000000000u / m->lapic_tick_ns : CPU_LAPIC_HZ;
}

/* Bits needed to number `count` things. */
static uint32_t number_width(uint32_t count)
{
	uint32_t width = 0;

	while ((1u << width) < count)
		width++;
	return width;
}

static void leaf_1(const struct cpu_model *m, const struct cpu_state *s, uint32_t out[4])
{
	uint32_t logical = m->cpu_count > 1 ? 1u << number_width(m->cpu_count) : 1;

	out[0] = m->host_signature;
	out[1] = m->apic_id << 24 | (logical & 0xff) << 16 | 8u << 8; /* CLFLUSH line: 8 × 8 bytes */
	out[2] = m->host_features[CPU_WORD_1_ECX] & ~(1u << 27);
	if (s && s->cr4 & CR4_OSXSAVE)
		out[2] |= 1u << 27;
	out[3] = m->host_features[CPU_WORD_1_EDX];
}

/* Intel's deterministic cache parameters: type 1 data, 2 instruction, 3 unified. */
static void leaf_4(const struct cpu_model *m, uint32_t subleaf, uint32_t out[4])
{
	static const struct {
		uint32_t type, level, ways, sets;
	} caches[] = { { 1, 1, 8, 64 }, { 2, 1, 8, 64 }, { 3, 2, 16, 1024 }, { 3, 3, 16, 16384 } };
	uint32_t sharing, cores = 1u << number_width(m->cpu_count);

	if (subleaf >= sizeof(caches) / sizeof(caches[0]))
		return;
	sharing = caches[subleaf].level == 3 ? cores - 1 : 0;
	out[0] = caches[subleaf].type | caches[subleaf].level << 5 | 1u << 8 | sharing << 14 | ((cores - 1) & 0x3f) << 26;
	out[1] = 63u | (caches[subleaf].ways - 1) << 22;
	out[2] = caches[subleaf].sets - 1;
}

static void leaf_b(const struct cpu_model *m, uint32_t subleaf, uint32_t out[4])
{
	out[2] = subleaf & 0xff;
	out[3] = m->apic_id;
	if (subleaf == 0) { /* SMT */
		out[0] = 0;
		out[1] = 1;
		out[2] |= 1u << 8;
	} else if (subleaf == 1) { /* core */
		out[0] = number_width(m->cpu_count);
		out[1] = m->cpu_count;
		out[2] |= 2u << 8;
	}
}

static void leaf_d(const struct cpu_model *m, const struct cpu_state *s, uint32_t subleaf, uint32_t out[4])
{
	uint64_t allowed = cpu_xcr0_allowed(m);

	if (subleaf == 0) {
		out[0] = (uint32_t)allowed;
		out[1] = XSAVE_LEGACY_SIZE + (s && s->xcr0 & XCR0_AVX ? XSAVE_AVX_SIZE : 0);
		out[2] = XSAVE_LEGACY_SIZE + (allowed & XCR0_AVX ? XSAVE_AVX_SIZE : 0);
	} else if (subleaf == 2 && allowed & XCR0_AVX) {
		out[0] = XSAVE_AVX_SIZE;
		out[1] = XSAVE_LEGACY_SIZE;
	}
}

/*
 * TSC frequency as crystal × numerator / denominator. The crystal is the APIC timer's clock; the best fraction whose
 * numerator keeps crystal_khz × numerator in 32 bits (operating systems multiply so) comes from the continued fraction.
 */
static void leaf_15(const struct cpu_model *m, uint32_t out[4])
{
	uint32_t hz = lapic_hz(m);
	uint64_t a = m->tsc_khz, b = hz / 1000, limit = 0xffffffffull / b;
	uint64_t p0 = 0, q0 = 1, p1 = 1, q1 = 0;

	while (b) {
		uint64_t k = a / b, r = a % b, p2 = k * p1 + p0, q2 = k * q1 + q0;

		if (p2 > limit)
			break;
		p0 = p1, q0 = q1, p1 = p2, q1 = q2;
		a = b, b = r;
	}
	if (!q1)
		return;
	out[0] = (uint32_t)q1;
	out[1] = (uint32_t)p1;
	out[2] = hz;
}

static void leaf_basic(const struct cpu_model *m, const struct cpu_state *s, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	const uint32_t *f = m->host_features;
	bool amd = cpu_model_is_amd(m);

	switch (leaf) {
	case 0:
		out[0] = LEAF_MAX;
		out[1] = m->host_vendor[0];
		out[2] = m->host_vendor[2];
		out[3] = m->host_vendor[1];
		break;
	case 1:
		leaf_1(m, s, out);
		break;
	case 2: /* "see leaf 4", 64-byte prefetch */
		if (!amd) {
			out[0] = 0x00feff01;
			out[1] = 0xf0;
		}
		break;
	case 4:
		if (!amd)
			leaf_4(m, subleaf, out);
		break;
	case 6:
		out[0] = 1u << 2; /* ARAT: the APIC timer never stops */
		break;
	case 7:
		if (subleaf == 0) {
			out[1] = f[CPU_WORD_7_EBX];
			out[2] = f[CPU_WORD_7_ECX];
			out[3] = f[CPU_WORD_7_EDX];
		}
		break;
	case 0xb:
		leaf_b(m, subleaf, out);
		break;
	case 0xd:
		leaf_d(m, s, subleaf, out);
		break;
	case 0x15:
		leaf_15(m, out);
		break;
	case 0x16:
		out[0] = out[1] = (uint32_t)((m->tsc_khz + 500) / 1000);
		out[2] = 100;
		break;
	}
}

static void leaf_extended(const struct cpu_model *m, uint32_t leaf, uint32_t out[4])
{
	const uint32_t *f = m->host_features;
	bool amd = cpu_model_is_amd(m);

	switch (leaf) {
	case 0x80000000u:
		out[0] = LEAF_EXT_MAX;
		if (amd) {
			out[1] = m->host_vendor[0];
			out[2] = m->host_vendor[2];
			out[3] = m->host_vendor[1];
		}
		break;
	case 0x80000001u:
		out[0] = amd ? m->host_signature : 0;
		out[2] = f[CPU_WORD_EXT1_ECX];
		out[3] = f[CPU_WORD_EXT1_EDX];
		break;
	case 0x80000002u:
	case 0x80000003u:
	case 0x80000004u:
		memcpy(out, m->brand + 4 * (leaf - 0x80000002u), 16);
		break;
	case 0x80000005u: /* TLBs, L1: 32 KiB, 8 ways, 64-byte lines */
		if (amd) {
			out[0] = out[1] = 0xff40ff40;
			out[2] = out[3] = 32u << 24 | 8u << 16 | 1u << 8 | 64;
		}
		break;
	case 0x80000006u: /* L2: 1 MiB, 16 ways (code 8); AMD also TLBs and L3: 32 × 512 KiB */
		out[2] = 1024u << 16 | 8u << 12 | (amd ? 1u << 8 : 0) | 64;
		if (amd) {
			out[0] = out[1] = 0x64006400;
			out[3] = 32u << 18 | 8u << 12 | 1u << 8 | 64;
		}
		break;
	case 0x80000007u:
		out[3] = 1u << 8; /* invariant TSC */
		break;
	case 0x80000008u:
		out[0] = m->phys_bits | 48u << 8;
		out[1] = f[CPU_WORD_EXT8_EBX];
		if (amd)
			out[2] = (m->cpu_count - 1) | number_width(m->cpu_count) << 12;
		break;
	case 0x80000021u:
		out[0] = f[CPU_WORD_EXT21_EAX];
		out[2] = f[CPU_WORD_EXT21_ECX];
		break;
	}
}

/*
 * Our own signature comes first, so that nobody takes us for KVM. Its paravirtual clock is an interface of its own, found
 * where a guest looks for further ones: every 0x100.
 */
static void leaf_hypervisor(const struct cpu_model *m, uint32_t leaf, uint32_t out[4])
{
	switch (leaf) {
	case LEAF_HYPERVISOR:
		out[0] = LEAF_HYPERVISOR_TIMING;
		memcpy(out + 1, "vmmvmmvmmvmm", 12);
		break;
	case LEAF_HYPERVISOR_TIMING:
		out[0] = (uint32_t)m->tsc_khz;
		out[1] = lapic_hz(m) / 1000;
		break;
	case LEAF_KVM:
		out[0] = LEAF_KVM_FEATURES;
		memcpy(out + 1, "KVMKVMKVM\0\0", 12);
		break;
	case LEAF_KVM_FEATURES:
		out[0] = KVM_NOP_IO_DELAY | KVM_CLOCK | KVM_CLOCK_STABLE;
		break;
	}
}

void cpu_cpuid(const struct cpu_model *m, const struct cpu_state *s, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	memset(out, 0, 4 * sizeof(out[0]));
	if (leaf >= 0x80000000u) {
		leaf_extended(m, leaf, out);
	} else if (leaf >= LEAF_HYPERVISOR) {
		leaf_hypervisor(m, leaf, out);
	} else {
		/* Intel processors answer a leaf above the maximum with the highest one; zeroes are as good and say less. */
		leaf_basic(m, s, leaf, subleaf, out);
	}
}

uint64_t cpu_arch_capabilities(const struct cpu_model *m)
{
	static const uint8_t bits[] = {
		0,  /* RDCL_NO: no Meltdown */
		1,  /* IBRS_ALL: set once, no retpolines */
		3,  /* no need to flush L1D on entry */
		4,  /* SSB_NO */
		5,  /* MDS_NO */
		6,  /* IF_PSCHANGE_MC_NO */
		8,  /* TAA_NO */
		13, 14, 15, /* SBDR_SSDP_NO, FBSDP_NO, PSDP_NO */
		20, /* BHI_NO */
		24, /* PBRSB_NO */
		26, /* GDS_NO */
		27, /* RFDS_NO */
		62, /* ITS_NO */
	};
	uint64_t value = 0;

	if (!cpu_model_has(m, CPU_FEATURE_ARCH_CAPABILITIES))
		return 0;
	for (unsigned i = 0; i < sizeof(bits); i++)
		value |= 1ull << bits[i];
	return value;
}

bool cpu_msr_constant(const struct cpu_model *m, uint32_t msr, uint64_t *value)
{
	bool amd = cpu_model_is_amd(m);

	*value = 0;
	switch (msr) {
	case 0x17:  /* PLATFORM_ID */
	case 0x2a:  /* EBL_CR_POWERON */
	case 0x8b:  /* microcode revision: AMD's PATCH_LEVEL, Intel's BIOS_SIGN_ID (revision in the upper half) */
	case 0xc1:  /* PMC0, PMC1 */
	case 0xc2:
	case 0x179: /* MCG_CAP: no banks */
	case 0x17a: /* MCG_STATUS */
	case 0x17b: /* MCG_CTL */
	case 0x186: /* PERFEVTSEL0, 1 */
	case 0x187:
	case 0x198: /* PERF_STATUS */
	case 0x1d9: /* DEBUGCTL */
	case 0x1db: /* last branch and exception */
	case 0x1dc:
	case 0x1dd:
	case 0x1de:
		if (msr == 0x8b)
			*value = amd ? 0x0fffffff : 0xffffffffull << 32;
		return true;
	case 0x3a: /* FEATURE_CONTROL: locked, no VMX */
		*value = 1;
		return !amd;
	case 0xce: /* PLATFORM_INFO */
	case 0x140: /* MISC_FEATURES_ENABLES */
	case 0x1a2: /* TEMPERATURE_TARGET */
		return !amd;
	case 0xc0010015: /* HWCR: bit 24 TscFreqSel, the TSC counts at the P0 frequency */
		*value = 1u << 24;
		return amd;
	case 0xc0010000: /* K7's four event selects and four counters: every AMD processor has them */
	case 0xc0010001:
	case 0xc0010002:
	case 0xc0010003:
	case 0xc0010004:
	case 0xc0010005:
	case 0xc0010006:
	case 0xc0010007:
	case 0xc0010010: /* SYSCFG */
	case 0xc0010055: /* interrupt pending message */
	case 0xc0010058: /* MMIO configuration base */
	case 0xc0010112: /* SMM base */
	case 0xc0010113:
	case 0xc001001f: /* NB_CFG */
	case 0xc0010140: /* OSVW */
	case 0xc0010141:
	case 0xc0011020: /* LS_CFG */
	case 0xc0011022: /* DC_CFG */
	case 0xc001102a: /* BU_CFG2 */
		return amd;
	case 0xc0011029: /* DE_CFG: bit 1, LFENCE serialises */
		*value = 2;
		return amd;
	}
	return false;
}

bool cpu_msr_ignored(const struct cpu_model *m, uint32_t msr)
{
	uint64_t value;

	/* PRED_CMD: a barrier for predictors that the guest does not share. FLUSH_CMD likewise. Microcode updates: none. */
	if (msr == MSR_PRED_CMD || msr == 0x79)
		return true;
	return msr != 0x179 && cpu_msr_constant(m, msr, &value);
}
