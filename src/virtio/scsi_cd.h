/*
 * The drive behind virtio-scsi: a CD-ROM or DVD-ROM drive with a disc in it, as a command set (SPC-3, MMC-3). It turns a command
 * block into an answer; it moves no data itself and knows nothing of the transport. The command block is hostile.
 */
#ifndef SCSI_CD_H
#define SCSI_CD_H

#include <stdbool.h>
#include <stdint.h>

#define SCSI_CD_BLOCK 2048u
#define SCSI_CDB_MAX 16u
#define SCSI_DATA_MAX 96u /* bytes of the longest answer that does not come off the disc */
#define SCSI_SENSE_SIZE 18u

enum scsi_status { SCSI_GOOD = 0, SCSI_CHECK_CONDITION = 2 };

struct scsi_cd {
	uint64_t blocks;  /* of the disc; set at create */
	bool out, locked; /* the tray is out; the guest holds it fast */
	bool changed;	  /* the disc is new to the guest: told once */
};

struct scsi_answer {
	enum scsi_status status;
	unsigned sense_length;
	uint8_t sense[SCSI_SENSE_SIZE];
	/* Bytes from here … */
	unsigned length;
	uint8_t data[SCSI_DATA_MAX];
	/* … or so many blocks of the disc, all of which are there. */
	uint64_t lba;
	uint32_t blocks;
};

void scsi_cd_execute(struct scsi_cd *cd, const uint8_t cdb[SCSI_CDB_MAX], struct scsi_answer *answer);
/* The host could not read the blocks. */
void scsi_cd_read_failed(struct scsi_answer *answer);

#endif
