/*
 * What a disk image is, told by its bytes: a raw disk with an MBR, a GPT, an ISO 9660 volume or a bare file system, or
 * a format that we do not read (qcow2, a compressed file, …). It says so in words for a person and whether
 * firmware will find something to start. The bytes are hostile: nothing that they say is believed unchecked, and a
 * fixed amount is read.
 */
#ifndef VMM_HOST_IMAGE_H
#define VMM_HOST_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

struct error;

enum host_image_kind {
	HOST_IMAGE_UNKNOWN, /* a disk that says nothing: no table, boot sector or file system known to us */
	HOST_IMAGE_FOREIGN, /* not a raw disk: another image format, or a compressed file */
	HOST_IMAGE_SECTOR,  /* a boot sector without partitions */
	HOST_IMAGE_MBR,
	HOST_IMAGE_GPT,
	HOST_IMAGE_ISO,	      /* ISO 9660 */
	HOST_IMAGE_FILESYSTEM /* a file system, LVM, … from the first sector on */
};

struct host_image {
	enum host_image_kind kind;
	bool bios;	       /* sector 0 holds code for a BIOS */
	bool optical;	       /* an El Torito entry does: a BIOS starts that from an optical drive only */
	bool uefi;	       /* there is an EFI system partition, or an El Torito entry for UEFI on an ISO image */
	uint64_t missing;      /* bytes that the tables promise past the end of the image */
	char foreign[24];      /* HOST_IMAGE_FOREIGN: what it is … */
	char convert[40];      /* … and the command that makes a raw disk of it, less the path; may be empty */
	char description[300]; /* "raw disk, MBR, bootable partition 1 (ext4)" */
};

/* Examines an image of `size` bytes that fd has open for reading. Any thread. Keeps nothing. 0 or -errno of the reading. */
int host_image_probe(int fd, uint64_t size, struct host_image *image);

/* Opens, examines, closes. 0, or -errno with a sentence. */
int host_image_examine(const char *path, struct host_image *image, struct error *err);

/* 0 if the image is one that we can serve as a disk; else -ENOEXEC and a sentence that says what it is and what to do. */
int host_image_check_format(const char *path, const struct host_image *image, struct error *err);

/* The same, and firmware (`uefi`: of that kind) must find something to start on it, as a disk or in a CD drive, and it must be whole. */
int host_image_check_bootable(const char *path, const struct host_image *image, bool uefi, bool cd, struct error *err);

#endif
