/*
 * fw_cfg: the key/value channel by which firmware learns about the machine (QEMU's docs/specs/fw_cfg; ports
 * 0x510–0x51b, with the DMA interface). Device lock held for every call.
 */
#ifndef VMM_DEV_FW_CFG_H
#define VMM_DEV_FW_CFG_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/bus.h"

struct error;
struct guest_mem;
struct fw_cfg;

/* Well-known keys. */
#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_ID 0x01
#define FW_CFG_UUID 0x02
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_NOGRAPHIC 0x04
#define FW_CFG_NB_CPUS 0x05
#define FW_CFG_KERNEL_ADDR 0x07
#define FW_CFG_KERNEL_SIZE 0x08
#define FW_CFG_INITRD_ADDR 0x0a
#define FW_CFG_INITRD_SIZE 0x0b
#define FW_CFG_BOOT_DEVICE 0x0c
#define FW_CFG_NUMA 0x0d
#define FW_CFG_BOOT_MENU 0x0e
#define FW_CFG_MAX_CPUS 0x0f
#define FW_CFG_KERNEL_ENTRY 0x10
#define FW_CFG_KERNEL_DATA 0x11
#define FW_CFG_INITRD_DATA 0x12
#define FW_CFG_CMDLINE_ADDR 0x13
#define FW_CFG_CMDLINE_SIZE 0x14
#define FW_CFG_CMDLINE_DATA 0x15
#define FW_CFG_SETUP_ADDR 0x16
#define FW_CFG_SETUP_SIZE 0x17
#define FW_CFG_SETUP_DATA 0x18
#define FW_CFG_FILE_DIR 0x19

/* The signature, the ID and the file directory are there from the start. Destroy before the bus. */
int fw_cfg_create(struct bus *bus, struct guest_mem *mem, struct fw_cfg **fw, struct error *err);
void fw_cfg_destroy(struct fw_cfg *fw);
/* Selection and offset go to zero; the items stay. */
void fw_cfg_reset(struct fw_cfg *fw);

/* Data is copied. -EEXIST if the key or name is taken, -ENOSPC, -ENOMEM. Before vcpus run. */
int fw_cfg_add_bytes(struct fw_cfg *fw, uint16_t key, const void *data, size_t size);
int fw_cfg_add_u16(struct fw_cfg *fw, uint16_t key, uint16_t value);
int fw_cfg_add_u32(struct fw_cfg *fw, uint16_t key, uint32_t value);
int fw_cfg_add_u64(struct fw_cfg *fw, uint16_t key, uint64_t value);
/* A named file, e.g. "etc/e820" (at most 55 characters). The directory is kept sorted by name. */
int fw_cfg_add_file(struct fw_cfg *fw, const char *name, const void *data, size_t size);
/* A file whose bytes the guest may write by DMA (etc/tpm…, vmgenid-like). */
int fw_cfg_add_writable_file(struct fw_cfg *fw, const char *name, const void *data, size_t size);

/*
 * fn is called when the guest selects a named file, before it reads it: fw_cfg_update_file() may then give it new bytes
 * (as many as before; else -EINVAL; -ENOENT: no such file). Some content depends on what firmware has done so far.
 */
void fw_cfg_on_select(struct fw_cfg *fw, void (*fn)(void *ctx, const char *name), void *ctx);
int fw_cfg_update_file(struct fw_cfg *fw, const char *name, const void *data, size_t size);

#endif
