/* Compute kernels on bytes: SHA-256, an LZ compressor, string loops. */
#include <string.h>

#include "micro.h"

#define DATA_SIZE 16384u

/* Letters in words that repeat, so that there is something to compress. */
static void fill_text(uint8_t *data, unsigned size, uint64_t seed)
{
	uint8_t words[64][8];
	unsigned at = 0;

	for (unsigned i = 0; i < 64; i++)
		for (unsigned k = 0; k < 8; k++)
			words[i][k] = (uint8_t)('a' + random_next(&seed) % 26);
	while (at < size) {
		const uint8_t *word = words[random_next(&seed) % 64];
		unsigned length = 2 + (unsigned)(random_next(&seed) % 7);

		for (unsigned k = 0; k < length && at < size; k++)
			data[at++] = word[k];
		if (at < size)
			data[at++] = random_next(&seed) & 7 ? ' ' : '\n';
	}
}

/* k-sha256: one iteration digests 16 KiB (FIPS 180-4), chained to the one before. */
static const uint32_t sha_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned by)
{
	return x >> by | x << (32 - by);
}

static void sha_block(uint32_t h[8], const uint8_t *block)
{
	uint32_t w[64], v[8];

	for (unsigned i = 0; i < 16; i++)
		w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
		       block[4 * i + 3];
	for (unsigned i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (unsigned i = 0; i < 8; i++)
		v[i] = h[i];
	for (unsigned i = 0; i < 64; i++) {
		uint32_t choose = (v[4] & v[5]) ^ (~v[4] & v[6]), major = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
		uint32_t one = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + choose + sha_constants[i] + w[i];
		uint32_t two = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) + major;

		v[7] = v[6];
		v[6] = v[5];
		v[5] = v[4];
		v[4] = v[3] + one;
		v[3] = v[2];
		v[2] = v[1];
		v[1] = v[0];
		v[0] = one + two;
	}
	for (unsigned i = 0; i < 8; i++)
		h[i] += v[i];
}

static void *sha_open(uint64_t n)
{
	uint8_t *data = micro_alloc(DATA_SIZE);

	fill_text(data, DATA_SIZE, 0x5aa5f00d12345678ull);
	return data;
}

static uint64_t sha_run(void *ctx, uint64_t n)
{
	const uint8_t *data = ctx;
	uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

	for (uint64_t i = 0; i < n; i++)
		for (unsigned at = 0; at < DATA_SIZE; at += 64)
			sha_block(h, data + at);
	return (uint64_t)h[0] << 32 | h[7];
}

static void data_close(void *ctx)
{
	micro_free(ctx, DATA_SIZE);
}

/*
 * k-lz: one iteration compresses 16 KiB, expands the result and compares. A token byte is 0LLLLLLL (L + 1 literals
 * follow) or 1LLLLLLL and two bytes of distance (a match of L + 4 bytes); matches are found by a hash of four bytes.
 */
#define LZ_BITS 12u
#define LZ_OUT (DATA_SIZE * 2)

struct lz {
	uint8_t data[DATA_SIZE], packed[LZ_OUT], unpacked[DATA_SIZE + 256];
	uint16_t table[1u << LZ_BITS]; /* position + 1 of what had this hash last */
};

static void *lz_open(uint64_t n)
{
	struct lz *lz = micro_alloc(sizeof(*lz));

	fill_text(lz->data, DATA_SIZE, 0x7777abcd12345678ull);
	return lz;
}

static uint32_t load32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static uint8_t *put_literals(uint8_t *out, const uint8_t *from, unsigned count)
{
	while (count) {
		unsigned part = count < 128 ? count : 128;

		*out++ = (uint8_t)(part - 1);
		for (unsigned i = 0; i < part; i++)
			*out++ = *from++;
		count -= part;
	}
	return out;
}

static unsigned lz_pack(struct lz *lz)
{
	uint8_t *out = lz->packed;
	unsigned literal = 0, at = 0;

	for (unsigned i = 0; i < 1u << LZ_BITS; i++)
		lz->table[i] = 0;
	while (at + 4 <= DATA_SIZE) {
		uint32_t four = load32(lz->data + at), slot = four * 2654435761u >> (32 - LZ_BITS);
		unsigned from = lz->table[slot], length = 4;

		lz->table[slot] = (uint16_t)(at + 1);
		if (!from || load32(lz->data + from - 1) != four) {
			at++;
			continue;
		}
		from--;
		while (length < 131 && at + length < DATA_SIZE && lz->data[from + length] == lz->data[at + length])
			length++;
		out = put_literals(out, lz->data + literal, at - literal);
		*out++ = (uint8_t)(0x80 | (length - 4));
		*out++ = (uint8_t)(at - from);
		*out++ = (uint8_t)((at - from) >> 8);
		at += length;
		literal = at;
	}
	out = put_literals(out, lz->data + literal, DATA_SIZE - literal);
	return (unsigned)(out - lz->packed);
}

static unsigned lz_unpack(struct lz *lz, unsigned size)
{
	const uint8_t *in = lz->packed, *end = in + size;
	uint8_t *out = lz->unpacked;

	while (in < end && out < lz->unpacked + DATA_SIZE) {
		unsigned token = *in++;

		if (token & 0x80) {
			const uint8_t *from = out - (in[0] | in[1] << 8);

			for (unsigned i = 0; i < (token & 0x7f) + 4; i++)
				*out++ = *from++;
			in += 2;
		} else {
			for (unsigned i = 0; i <= token; i++)
				*out++ = *in++;
		}
	}
	return (unsigned)(out - lz->unpacked);
}

static uint64_t lz_run(void *ctx, uint64_t n)
{
	struct lz *lz = ctx;
	uint64_t check = 9;

	for (uint64_t i = 0; i < n; i++) {
		unsigned size = lz_pack(lz), back = lz_unpack(lz, size), same = 0;

		while (same < back && same < DATA_SIZE && lz->unpacked[same] == lz->data[same])
			same++;
		check = check_mix(check, (uint64_t)size << 32 | same);
		lz->data[i * 97 % DATA_SIZE] ^= 1;
	}
	return check;
}

static void lz_close(void *ctx)
{
	micro_free(ctx, sizeof(struct lz));
}

/*
 * k-bytes: one iteration goes over 16 KiB byte by byte four times: length to the end, a search for each newline, upper
 * case into a second buffer, and CRC-32 by table.
 */
struct bytes {
	uint8_t text[DATA_SIZE], upper[DATA_SIZE];
	uint32_t crc[256];
};

static void *bytes_open(uint64_t n)
{
	struct bytes *b = micro_alloc(sizeof(*b));

	fill_text(b->text, DATA_SIZE - 1, 0x13579bdf2468ace0ull);
	b->text[DATA_SIZE - 1] = 0;
	for (unsigned i = 0; i < 256; i++) {
		b->crc[i] = i;
		for (unsigned k = 0; k < 8; k++)
			b->crc[i] = b->crc[i] >> 1 ^ (b->crc[i] & 1 ? 0xedb88320u : 0);
	}
	return b;
}

__attribute__((noinline)) static unsigned length_of(const uint8_t *text)
{
	const uint8_t *at = text;

	while (*at)
		at++;
	return (unsigned)(at - text);
}

static uint64_t bytes_run(void *ctx, uint64_t n)
{
	struct bytes *b = ctx;
	uint64_t check = 10;

	for (uint64_t i = 0; i < n; i++) {
		unsigned length = length_of(b->text), lines = 0;
		uint32_t crc = ~0u;

		for (const uint8_t *at = b->text; *at; at++)
			lines += *at == '\n';
		for (unsigned k = 0; k < length; k++)
			b->upper[k] = b->text[k] >= 'a' && b->text[k] <= 'z' ? (uint8_t)(b->text[k] - 32) : b->text[k];
		for (unsigned k = 0; k < length; k++)
			crc = crc >> 8 ^ b->crc[(crc ^ b->upper[k]) & 0xff];
		check = check_mix(check, (uint64_t)~crc << 32 | (length + lines));
		b->text[i * 61 % (DATA_SIZE - 1)] ^= 2;
	}
	return check;
}

static void bytes_close(void *ctx)
{
	micro_free(ctx, sizeof(struct bytes));
}

const struct workload byte_kernels[] = {
	{.name = "k-sha256", .n = 450, .open = sha_open, .run = sha_run, .close = data_close},
	{.name = "k-lz", .n = 550, .open = lz_open, .run = lz_run, .close = lz_close},
	{.name = "k-bytes", .n = 500, .open = bytes_open, .run = bytes_run, .close = bytes_close},
	{0},
};
