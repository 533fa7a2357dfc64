/*
 * A CD-ROM drive's commands. Those of SPC-3 that every device has, and of MMC-3 those for reading, the tray and what the disc is:
 * what SeaBIOS, OVMF and Linux's sr use, and what answers nothing but "one finalized session, one data track".
 *
 *	sense, fixed format (SPC-3, 4.5.3): 70h | 0 | key | 0 … | 7: 10 more bytes | 12: code | 13: qualifier
 *
 * Numbers in SCSI are big-endian. An answer is cut to the command's allocation length.
 */
#include <string.h>

#include "scsi_cd.h"

enum {
	TEST_UNIT_READY = 0x00, REQUEST_SENSE = 0x03, INQUIRY = 0x12, MODE_SENSE_6 = 0x1a, START_STOP_UNIT = 0x1b,
	PREVENT_REMOVAL = 0x1e, READ_CAPACITY = 0x25, READ_10 = 0x28, SEEK_10 = 0x2b, VERIFY_10 = 0x2f, SYNCHRONIZE_CACHE = 0x35,
	READ_TOC = 0x43, GET_CONFIGURATION = 0x46, GET_EVENT_STATUS = 0x4a, READ_DISC_INFORMATION = 0x51, MODE_SENSE_10 = 0x5a,
	REPORT_LUNS = 0xa0, READ_12 = 0xa8, SET_CD_SPEED = 0xbb, MECHANISM_STATUS = 0xbd,
};

/* Sense key 23:16, additional sense code 15:8 and its qualifier 7:0 (SPC-3, 4.5.6). */
enum {
	NO_SENSE = 0,
	NOT_READY_TRAY_OUT = 0x023a02,
	ILLEGAL_OPCODE = 0x052000,
	ILLEGAL_LBA = 0x052100,
	ILLEGAL_FIELD = 0x052400,
	ILLEGAL_REMOVAL_PREVENTED = 0x055302,
	MEDIUM_READ_ERROR = 0x031100,
	ATTENTION_DISC_CHANGED = 0x062800,
};

#define CD_BLOCKS_MAX 450000u /* 100 minutes; what is longer is a DVD */
#define LEAD_OUT 0xaa

static uint32_t load(const uint8_t *p, unsigned size)
{
	uint32_t value = 0;

	while (size--)
		value = value << 8 | *p++;
	return value;
}

static void store(uint8_t *p, unsigned size, uint32_t value)
{
	while (size--) {
		p[size] = (uint8_t)value;
		value >>= 8;
	}
}

static void sense_store(uint8_t sense[SCSI_SENSE_SIZE], unsigned code)
{
	memset(sense, 0, SCSI_SENSE_SIZE);
	sense[0] = 0x70;
	sense[2] = (uint8_t)(code >> 16);
	sense[7] = SCSI_SENSE_SIZE - 8;
	sense[12] = (uint8_t)(code >> 8);
	sense[13] = (uint8_t)code;
}

static void fail(struct scsi_answer *a, unsigned code)
{
	a->status = SCSI_CHECK_CONDITION;
	a->length = 0;
	a->blocks = 0;
	a->sense_length = SCSI_SENSE_SIZE;
	sense_store(a->sense, code);
}

/* The data is complete: as much of it as the guest wants. */
static void give(struct scsi_answer *a, unsigned length, uint32_t allocation)
{
	a->length = length < allocation ? length : allocation;
}

/* An address on the disc as the guest wants it: a number, or minute, second, frame from 2 seconds on (MMC-3, 3.1.44). */
static void store_address(uint8_t p[4], uint32_t lba, bool msf)
{
	if (!msf) {
		store(p, 4, lba);
		return;
	}
	lba += 150;
	p[0] = 0;
	p[1] = lba / 75 / 60 < 255 ? (uint8_t)(lba / 75 / 60) : 255;
	p[2] = (uint8_t)(lba / 75 % 60);
	p[3] = (uint8_t)(lba % 75);
}

static uint32_t last_block(const struct scsi_cd *cd)
{
	return cd->blocks - 1 < 0xfffffffe ? (uint32_t)(cd->blocks - 1) : 0xfffffffe;
}

static bool is_dvd(const struct scsi_cd *cd)
{
	return cd->blocks > CD_BLOCKS_MAX;
}

/* ---- any device ---- */

static void inquiry(const uint8_t *cdb, struct scsi_answer *a)
{
	static const uint8_t standard[36] = {
		0x05, 0x80, 0x05, 0x02, 36 - 5, 0, 0, 0x02, /* CD or DVD, removable, SPC-3; command queueing */
		'v', 'm', 'm', ' ', ' ', ' ', ' ', ' ',
		'C', 'D', '-', 'R', 'O', 'M', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ',
		'1', '.', '0', ' '};

	if (!(cdb[1] & 1)) {
		if (cdb[2]) {
			fail(a, ILLEGAL_FIELD);
			return;
		}
		memcpy(a->data, standard, sizeof(standard));
		give(a, sizeof(standard), load(cdb + 3, 2));
		return;
	}
	if (cdb[2]) { /* there is one page of vital product data, the list of them */
		fail(a, ILLEGAL_FIELD);
		return;
	}
	a->data[0] = 0x05;
	a->data[3] = 1;
	give(a, 5, load(cdb + 3, 2));
}

/* Senses are given with the command that failed: here is none left. */
static void request_sense(const uint8_t *cdb, struct scsi_answer *a)
{
	sense_store(a->data, NO_SENSE);
	give(a, SCSI_SENSE_SIZE, cdb[4]);
}

static void report_luns(const uint8_t *cdb, struct scsi_answer *a)
{
	if (cdb[2] > 2) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	store(a->data, 4, cdb[2] == 1 ? 0 : 8); /* 1: well-known ones only */
	give(a, cdb[2] == 1 ? 8 : 16, load(cdb + 6, 4));
}

/* Pages 01h, error recovery, and 2Ah, capabilities (MMC-3, 6.3.4 and 6.3.11), behind a header of 4 or 8 bytes. */
static void mode_sense(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a, unsigned header)
{
	static const uint8_t recovery[8] = {0x01, 6, 0x00, 5};
	static const uint8_t capabilities[20] = {
		0x2a, 18, 0x3b, 0,	 /* reads CD-R, CD-RW, DVD-ROM, -R, -RAM; writes nothing */
		0x70, 0x00, 0x29, 0x00,	 /* sessions, mode 2; locks, ejects, a tray */
		0x16, 0x0c, 0, 0,	 /* 32 × */
		0x08, 0x00, 0x16, 0x0c}; /* 2 MiB of buffer */
	unsigned page = cdb[2] & 0x3f, length = header;

	if (cdb[2] >> 6 == 3) { /* saved values */
		fail(a, ILLEGAL_FIELD);
		return;
	}
	if (page != 0x01 && page != 0x2a && page != 0x3f) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	/* Changeable values: none. */
	if (page != 0x2a) {
		memcpy(a->data + length, recovery, cdb[2] >> 6 == 1 ? 2 : sizeof(recovery));
		length += sizeof(recovery);
	}
	if (page != 0x01) {
		memcpy(a->data + length, capabilities, cdb[2] >> 6 == 1 ? 2 : sizeof(capabilities));
		if (cd->locked && cdb[2] >> 6 != 1)
			a->data[length + 6] |= 0x02;
		length += sizeof(capabilities);
	}
	if (header == 8)
		store(a->data, 2, length - 2);
	else
		a->data[0] = (uint8_t)(length - 1);
	give(a, length, header == 8 ? load(cdb + 7, 2) : cdb[4]);
}

/* ---- the disc ---- */

static void read_blocks(const struct scsi_cd *cd, struct scsi_answer *a, uint32_t lba, uint32_t count)
{
	if (lba > cd->blocks || count > cd->blocks - lba) {
		fail(a, ILLEGAL_LBA);
		return;
	}
	a->lba = lba;
	a->blocks = count;
}

/* Is it on the disc? */
static void seek(const struct scsi_cd *cd, struct scsi_answer *a, uint32_t lba, uint32_t count)
{
	read_blocks(cd, a, lba, count);
	a->blocks = 0;
}

/* Not against bytes that come along. */
static void verify(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	if (cdb[1] & 6)
		fail(a, ILLEGAL_FIELD);
	else
		seek(cd, a, load(cdb + 2, 4), load(cdb + 7, 2));
}

static void read_capacity(const struct scsi_cd *cd, struct scsi_answer *a)
{
	store(a->data, 4, last_block(cd));
	store(a->data + 4, 4, SCSI_CD_BLOCK);
	a->length = 8;
}

/* MMC-3, 5.23: one data track and what comes after it; or the one session. */
static void read_toc(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	bool msf = cdb[1] & 2;
	/* Older ones have the format in the last byte. */
	unsigned format = cdb[2] & 0xf ? cdb[2] & 0xf : cdb[9] >> 6, track = cdb[6], at = 4;

	if (format > 1 || (format == 0 && track > 1 && track != LEAD_OUT)) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	a->data[2] = a->data[3] = 1;
	if (format == 1 || track <= 1) {
		a->data[at + 1] = 0x14; /* position, data */
		a->data[at + 2] = 1;
		store_address(a->data + at + 4, 0, msf);
		at += 8;
	}
	if (format == 0) {
		a->data[at + 1] = 0x14;
		a->data[at + 2] = LEAD_OUT;
		store_address(a->data + at + 4, last_block(cd) + 1, msf);
		at += 8;
	}
	store(a->data, 2, at - 2);
	give(a, at, load(cdb + 7, 2));
}

/* Complete, one session, one track; the rest is of no meaning on such a disc (MMC-3, 5.19). */
static void read_disc_information(const uint8_t *cdb, struct scsi_answer *a)
{
	if (cdb[1] & 7) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	store(a->data, 2, 32);
	a->data[2] = 0x0e;
	a->data[3] = a->data[4] = a->data[5] = a->data[6] = 1;
	memset(a->data + 16, 0xff, 8);
	give(a, 34, load(cdb + 7, 2));
}

/* ---- the drive ---- */

static void feature_add(struct scsi_answer *a, unsigned *at, unsigned code, bool current, unsigned length)
{
	store(a->data + *at, 2, code);
	a->data[*at + 2] = current;
	a->data[*at + 3] = (uint8_t)length;
	*at += 4 + length;
}

/* MMC-3, 5.6 and 5.3: the profiles and the features behind them, those from the wanted one on. */
static void get_configuration(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	unsigned from = load(cdb + 2, 2), at = 8;
	bool one = (cdb[1] & 3) == 2, disc = !cd->out, dvd = is_dvd(cd);
	static const struct {
		uint16_t code;
		uint8_t length;
		uint8_t when; /* it is current: 0 always, 1 with a disc, 2 with a CD, 3 with a DVD */
	} features[] = {{0x0000, 8, 0}, {0x0001, 4, 0}, {0x0003, 4, 0}, {0x0010, 8, 1}, {0x001e, 4, 2}, {0x001f, 4, 3}};

	if ((cdb[1] & 3) == 3) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	store(a->data + 6, 2, !disc ? 0 : dvd ? 0x10 : 0x08);
	for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		unsigned when = features[i].when, code = features[i].code;
		bool current = !when || (disc && (when == 1 || dvd == (when == 3)));
		uint8_t *data = a->data + at + 4;

		if (one ? code != from : code < from || ((cdb[1] & 3) == 1 && !current))
			continue;
		feature_add(a, &at, code, current, features[i].length);
		switch (code) {
		case 0x0000: /* the profiles DVD-ROM and CD-ROM */
			store(data, 4, 0x00100000u | (disc && dvd) << 8);
			store(data + 4, 4, 0x00080000u | (disc && !dvd) << 8);
			break;
		case 0x0001: /* SCSI family */
			store(data, 4, 1);
			break;
		case 0x0003: /* tray; ejects, locks */
			data[0] = 0x29;
			break;
		case 0x0010: /* blocks of 2,048 bytes, one at a time */
			store(data, 4, SCSI_CD_BLOCK);
			store(data + 4, 2, 1);
			break;
		}
		a->data[at - features[i].length - 2] |= code < 0x0004 ? 2 : 0; /* persistent */
	}
	store(a->data, 4, at - 4);
	give(a, at, load(cdb + 7, 2));
}

/* By asking only (MMC-3, 5.7); the one class is 4, media. */
static void get_event_status(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	unsigned length = 4;

	if (!(cdb[1] & 1)) {
		fail(a, ILLEGAL_FIELD);
		return;
	}
	a->data[2] = 0x80; /* no such event */
	a->data[3] = 0x10;
	if (cdb[4] & 0x10) {
		a->data[2] = 4;
		a->data[5] = cd->out ? 0x01 : 0x02; /* nothing has happened; tray out, or a disc */
		length = 8;
	}
	store(a->data, 2, length - 2);
	give(a, length, load(cdb + 7, 2));
}

static void mechanism_status(const struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	a->data[1] = cd->out ? 0x10 : 0;
	give(a, 8, load(cdb + 8, 2));
}

/* LOEJ with START loads the disc, without START it ejects it. */
static void start_stop(struct scsi_cd *cd, const uint8_t *cdb, struct scsi_answer *a)
{
	bool in = cdb[4] & 1;

	if (cdb[4] >> 4 || !(cdb[4] & 2)) /* power, or the motor: nothing to be seen */
		return;
	if (!in && cd->locked) {
		fail(a, ILLEGAL_REMOVAL_PREVENTED);
		return;
	}
	cd->changed = cd->changed || (in && cd->out);
	cd->out = !in;
}

void scsi_cd_read_failed(struct scsi_answer *answer)
{
	fail(answer, MEDIUM_READ_ERROR);
}

static bool needs_disc(unsigned opcode)
{
	switch (opcode) {
	case TEST_UNIT_READY:
	case READ_CAPACITY:
	case READ_10:
	case READ_12:
	case SEEK_10:
	case VERIFY_10:
	case READ_TOC:
	case READ_DISC_INFORMATION:
		return true;
	}
	return false;
}

/* False: the command ends here. Some are answered in any state of the unit (SPC-3, 5.6.1; MMC-3, 4.1.6). */
static bool is_ready(struct scsi_cd *cd, unsigned opcode, struct scsi_answer *a)
{
	bool always = opcode == INQUIRY || opcode == REQUEST_SENSE || opcode == REPORT_LUNS || opcode == GET_EVENT_STATUS ||
		opcode == GET_CONFIGURATION;

	if (cd->changed && !always) {
		cd->changed = false;
		fail(a, ATTENTION_DISC_CHANGED);
		return false;
	}
	if (cd->out && needs_disc(opcode)) {
		fail(a, NOT_READY_TRAY_OUT);
		return false;
	}
	return true;
}

void scsi_cd_execute(struct scsi_cd *cd, const uint8_t cdb[SCSI_CDB_MAX], struct scsi_answer *a)
{
	memset(a, 0, sizeof(*a));
	if (!is_ready(cd, cdb[0], a))
		return;
	switch (cdb[0]) {
	case TEST_UNIT_READY:
	case SYNCHRONIZE_CACHE:
	case SET_CD_SPEED:
		break;
	case REQUEST_SENSE: request_sense(cdb, a); break;
	case INQUIRY: inquiry(cdb, a); break;
	case MODE_SENSE_6: mode_sense(cd, cdb, a, 4); break;
	case MODE_SENSE_10: mode_sense(cd, cdb, a, 8); break;
	case START_STOP_UNIT: start_stop(cd, cdb, a); break;
	case PREVENT_REMOVAL: cd->locked = cdb[4] & 1; break;
	case READ_CAPACITY: read_capacity(cd, a); break;
	case READ_10: read_blocks(cd, a, load(cdb + 2, 4), load(cdb + 7, 2)); break;
	case READ_12: read_blocks(cd, a, load(cdb + 2, 4), load(cdb + 6, 4)); break;
	case SEEK_10: seek(cd, a, load(cdb + 2, 4), 0); break;
	case VERIFY_10: verify(cd, cdb, a); break;
	case READ_TOC: read_toc(cd, cdb, a); break;
	case READ_DISC_INFORMATION: read_disc_information(cdb, a); break;
	case GET_CONFIGURATION: get_configuration(cd, cdb, a); break;
	case GET_EVENT_STATUS: get_event_status(cd, cdb, a); break;
	case REPORT_LUNS: report_luns(cdb, a); break;
	case MECHANISM_STATUS: mechanism_status(cd, cdb, a); break;
	default: fail(a, ILLEGAL_OPCODE); break;
	}
}
