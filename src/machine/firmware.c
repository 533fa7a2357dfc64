/*
 * What surrounds firmware: the ROM's place below 1 MiB, the flash with UEFI's variables, and what fw_cfg tells. All of it is
 * made once; a reset finds it in place.
 *
 * Variables: a split UEFI image (…CODE….fd) wants a flash directly below it. Its content comes from --firmware-vars, a file that
 * is written back to whenever the firmware has changed something, or from the template beside the image (…VARS….fd), which
 * is never written: then they live as long as the machine. A file that does not exist begins as a copy of the template.
 *
 * ACPI: the tables say where the ECAM and the 64-bit BARs are, and firmware has its own ideas of both. So they are built
 * again when it asks for them, after it has placed everything.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine_internal.h"
#include "vmm/boot_acpi.h"
#include "vmm/boot_smbios.h"
#include "vmm/bytes.h"
#include "vmm/dev_flash.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/error.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/pci.h"
#include "vmm/virtio.h"
#include "vmm/virtio_pci.h"

#define LOW_ROM_MAX 0x20000ull
#define SEGMENT 0x4000ull
#define VARS_MAX (4ull << 20)
#define COM1_PORT 0x3f8

struct firmware_vars {
	int fd; /* −1: none, changes stay here */
	bool failed;
	char path[MACHINE_PATH_MAX];
};

/* ---- variables ---- */

/* "…CODE….fd" → "…VARS….fd". */
static bool template_path(const char *code, char *path, size_t size)
{
	const char *name = strrchr(code, '/'), *at = strstr(name ? name : code, "CODE");

	if (!at || strlen(code) >= size)
		return false;
	memcpy(path, code, strlen(code) + 1);
	memcpy(path + (at - code), "VARS", 4);
	return true;
}

/* A whole file of a size that a flash can have. *data is owned by the caller. */
static int vars_read(int fd, const char *path, uint8_t **data, uint64_t *size, struct error *err)
{
	struct stat st;
	uint64_t done = 0;

	if (fstat(fd, &st))
		return error_set(err, -errno, "%.300s cannot be examined: %s.", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || !st.st_size || st.st_size % FLASH_BLOCK || (uint64_t)st.st_size > VARS_MAX)
		return error_set(err, -EINVAL,
			"%.300s holds no firmware variables: a file of a multiple of 4 KiB, at most 4 MiB, is expected.", path);
	*size = (uint64_t)st.st_size;
	*data = malloc(*size);
	if (!*data)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	while (done < *size) {
		ssize_t n = pread(fd, *data + done, *size - done, (off_t)done);

		if (n <= 0) {
			free(*data);
			return error_set(err, n ? -errno : -EIO, "%.300s cannot be read.", path);
		}
		done += (uint64_t)n;
	}
	if (memcmp(*data + 40, "_FVH", 4)) {
		free(*data);
		return error_set(err, -EINVAL, "%.300s holds no firmware variables: it does not begin as a UEFI volume.", path);
	}
	return 0;
}

static int template_read(const char *path, uint8_t **data, uint64_t *size, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;

	if (fd < 0)
		return error_set(err, -errno, "The template of the firmware's variables, %.300s, cannot be read: %s.", path,
			strerror(errno));
	rc = vars_read(fd, path, data, size, err);
	close(fd);
	return rc;
}

static int write_all(int fd, const uint8_t *data, uint64_t length, uint64_t offset)
{
	while (length) {
		ssize_t n = pwrite(fd, data, length, (off_t)offset);

		if (n <= 0)
			return n ? -errno : -EIO;
		data += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

/* The person's own file, made from the template if it is not there. Locked: two guests would ruin each other's. */
static int vars_open(struct firmware_vars *vars, const char *code, uint8_t **data, uint64_t *size, struct error *err)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char template[MACHINE_PATH_MAX];
	int rc;

	vars->fd = open(vars->path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (vars->fd < 0 && errno == ENOENT) {
		if (!template_path(code, template, sizeof(template)))
			return error_set(err, -ENOENT, "%.300s does not exist, and no template is known to make it of.", vars->path);
		rc = template_read(template, data, size, err);
		if (rc)
			return rc;
		vars->fd = open(vars->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
		if (vars->fd >= 0)
			rc = write_all(vars->fd, *data, *size, 0);
		free(*data);
		if (vars->fd >= 0 && rc)
			return error_set(err, rc, "%.300s cannot be written: %s.", vars->path, strerror(-rc));
	}
	if (vars->fd < 0)
		return error_set(err, -errno, "%.300s cannot be opened for the firmware's variables: %s.", vars->path, strerror(errno));
	if (fcntl(vars->fd, F_OFD_SETLK, &lock) && (errno == EAGAIN || errno == EACCES))
		return error_set(err, -EBUSY, "%.300s is in use by another process.", vars->path);
	return vars_read(vars->fd, vars->path, data, size, err);
}

/* Device lock held: into the page cache, and rarely. */
static void vars_changed(void *ctx, uint64_t offset, const uint8_t *data, uint64_t length)
{
	struct firmware_vars *vars = ctx;
	int rc = vars->fd < 0 ? 0 : write_all(vars->fd, data, length, offset);

	if (rc && !vars->failed)
		log_message(LOG_ERROR, "The firmware's variables cannot be written to %.300s: %s.", vars->path, strerror(-rc));
	vars->failed = rc != 0;
}

static int vars_create(struct machine *m, uint64_t rom_gpa, struct error *err)
{
	const char *code = m->boot.firmware ? m->boot.firmware : BOOT_FIRMWARE_DEFAULT, *path = m->config->firmware_vars;
	struct firmware_vars *vars;
	char template[MACHINE_PATH_MAX];
	struct flash_host host = {.changed = vars_changed};
	uint8_t *data;
	uint64_t size;
	int rc;

	if (!path && !template_path(code, template, sizeof(template)))
		return 0; /* one image with its variables in it, which it will find read-only */
	if (!path && access(template, R_OK)) {
		log_message(LOG_WARNING, "There are no variables (%.300s) beside the firmware: it may not start without --firmware-vars.",
			template);
		return 0;
	}
	vars = calloc(1, sizeof(*vars));
	if (!vars)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	vars->fd = -1;
	m->firmware_vars = vars;
	host.ctx = vars;
	if (path)
		snprintf(vars->path, sizeof(vars->path), "%s", path);
	rc = path ? vars_open(vars, code, &data, &size, err) : template_read(template, &data, &size, err);
	if (rc)
		return rc;
	rc = flash_create(m->bus, m->mem, rom_gpa - size, data, size, &host, &m->flash, err);
	free(data);
	return rc;
}

/* ---- fw_cfg ---- */

static struct acpi_config acpi_config_now(const struct machine *m)
{
	struct acpi_config acpi = {.cpus = m->config->cpus, .ecam = pci_ecam_address(m->pci)};
	uint64_t first = ~0ull, end = 0;

	pci_bars_above_4g(m->pci, &first, &end);
	if (!end || (first >= GPA_PCI_MMIO64 && end <= GPA_PCI_MMIO64 + GPA_PCI_MMIO64_SIZE))
		return acpi;
	/* Room to move in: whole GiB, and beyond RAM. */
	acpi.mmio64 = first & ~((1ull << 30) - 1);
	if (acpi.mmio64 < GPA_HIGH_RAM + mem_high_size(m->mem))
		acpi.mmio64 = first;
	acpi.mmio64_size = ((end + (1ull << 30) - 1) & ~((1ull << 30) - 1)) - acpi.mmio64;
	return acpi;
}

static void acpi_selected(void *ctx, const char *name)
{
	struct machine *m = ctx;
	struct acpi_config acpi = acpi_config_now(m);
	struct acpi_tables tables;
	struct error err;
	int rc;

	if (strncmp(name, "etc/acpi/", 9) && strcmp(name, "etc/table-loader"))
		return;
	if (acpi_tables_build(&acpi, &tables, &err))
		return; /* those of the start are nearly right */
	rc = fw_cfg_update_file(m->fw_cfg, "etc/acpi/tables", tables.tables, tables.tables_size);
	if (rc)
		log_message(LOG_ERROR, "The ACPI tables have changed their size.");
	acpi_tables_free(&tables);
}

static int acpi_items_add(struct machine *m, struct error *err)
{
	const struct acpi_config acpi = {.cpus = m->config->cpus};
	struct acpi_tables tables;
	int rc = acpi_tables_build(&acpi, &tables, err);

	if (rc)
		return rc;
	rc = fw_cfg_add_file(m->fw_cfg, "etc/acpi/tables", tables.tables, tables.tables_size);
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/acpi/rsdp", tables.rsdp, tables.rsdp_size);
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/table-loader", tables.loader, tables.loader_size);
	acpi_tables_free(&tables);
	fw_cfg_on_select(m->fw_cfg, acpi_selected, m);
	return rc;
}

static int smbios_items_add(struct machine *m, struct error *err)
{
	struct smbios_tables tables;
	int rc = smbios_build(m->config->cpus, mem_low_end(m->mem), mem_high_size(m->mem), &tables, err);

	if (rc)
		return rc;
	rc = fw_cfg_add_file(m->fw_cfg, "etc/smbios/smbios-anchor", tables.anchor, sizeof(tables.anchor));
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/smbios/smbios-tables", tables.tables, tables.size);
	free(tables.tables);
	return rc;
}

static bool is_cd(const struct machine *m, unsigned disk)
{
	return virtio_pci_device(m->virtio[disk])->id == VIRTIO_ID_SCSI;
}

/*
 * Lines of Open Firmware paths; firmware takes the first that it finds. Without --boot-order it is left to the firmware, unless
 * there is a CD, which it would try last whatever the command line says.
 */
static int boot_order_add(struct machine *m, struct error *err)
{
	char list[(MACHINE_DISK_MAX + 1) * 50];
	unsigned count = m->config->boot_order_count;
	bool any_cd = false;
	size_t size = 0;

	for (unsigned i = 0; i < m->disk_count; i++)
		any_cd = any_cd || is_cd(m, i);
	if (!count && any_cd)
		count = m->disk_count;
	for (unsigned i = 0; i < count; i++) {
		unsigned disk = m->config->boot_order_count ? m->config->boot_order[i] : i;

		if (disk >= m->disk_count)
			return error_set(err, -EINVAL, "--boot-order names disk%u, and there are %u disks, from disk0 on.", disk,
				m->disk_count);
		size += (size_t)snprintf(list + size, sizeof(list) - size, is_cd(m, disk) ?
			"/pci@i0cf8/scsi@%x/channel@0/disk@0,0\n" : "/pci@i0cf8/scsi@%x/disk@0,0\n",
			virtio_pci_slot(m->virtio[disk]));
	}
	if (!size)
		return 0;
	list[size - 1] = 0;
	return fw_cfg_add_file(m->fw_cfg, "bootorder", list, size);
}

static int add_number(struct machine *m, const char *name, unsigned size, uint64_t value)
{
	uint8_t bytes[8];

	bytes_store(bytes, sizeof(bytes), value);
	return fw_cfg_add_file(m->fw_cfg, name, bytes, size);
}

static int items_add(struct machine *m, struct error *err)
{
	struct boot_e820 e820[BOOT_E820_MAX];
	unsigned count = boot_e820_build(m->mem, 1, e820), wait = m->config->boot_menu;
	/* S3 and S4 off: bit 7 would say that they are there. */
	static const uint8_t states[6] = {0x80, 0, 0, 0, 0, 0x80};
	struct fw_cfg *fw = m->fw_cfg;
	int rc;

	rc = fw_cfg_add_u64(fw, FW_CFG_RAM_SIZE, m->mem->size);
	if (!rc)
		rc = fw_cfg_add_u16(fw, FW_CFG_NB_CPUS, (uint16_t)m->config->cpus);
	if (!rc)
		rc = fw_cfg_add_u16(fw, FW_CFG_MAX_CPUS, (uint16_t)m->config->cpus);
	if (!rc)
		rc = fw_cfg_add_u16(fw, FW_CFG_NOGRAPHIC, 1);
	if (!rc)
		rc = fw_cfg_add_u16(fw, FW_CFG_BOOT_MENU, wait != 0);
	if (!rc && wait)
		rc = add_number(m, "etc/boot-menu-wait", 2, wait * 1000);
	if (!rc)
		rc = add_number(m, "etc/sercon-port", 2, COM1_PORT);
	if (!rc)
		rc = fw_cfg_add_file(fw, "etc/system-states", states, sizeof(states));
	if (!rc)
		rc = fw_cfg_add_file(fw, "etc/e820", e820, count * sizeof(e820[0]));
	if (!rc)
		rc = boot_order_add(m, err);
	if (!rc)
		rc = acpi_items_add(m, err);
	if (!rc)
		rc = smbios_items_add(m, err);
	return rc && !err->message[0] ? error_set(err, rc, "The firmware's configuration items could not be set up.") : rc;
}

int machine_firmware_create(struct machine *m, uint64_t rom_gpa, uint64_t rom_size, struct error *err)
{
	const uint8_t *rom = mem_ptr(m->mem, rom_gpa, rom_size, false);
	uint64_t low = rom_size < LOW_ROM_MAX ? rom_size & ~(SEGMENT - 1) : LOW_ROM_MAX;
	bool uefi = rom_size > 44 && !memcmp(rom + 40, "_FVH", 4);
	int rc;

	rc = pci_host_set_shadow(m->pci, m->mem, (uint64_t)(rom - m->mem->base) + rom_size - low, low);
	if (rc)
		return error_set(err, rc, "The firmware has no room below 1 MiB.");
	if (!uefi && m->config->firmware_vars)
		return error_set(err, -EINVAL, "--firmware-vars is for UEFI firmware (--firmware uefi); this one keeps no variables.");
	if (uefi)
		rc = vars_create(m, rom_gpa, err);
	return rc ? rc : items_add(m, err);
}

void machine_firmware_destroy(struct machine *m)
{
	flash_destroy(m->flash);
	if (m->firmware_vars && m->firmware_vars->fd >= 0)
		close(m->firmware_vars->fd);
	free(m->firmware_vars);
}
