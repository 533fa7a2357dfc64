/*
 * The board: interrupt controllers, the legacy devices of a PC, PCI and the virtio devices on it, wired in plain
 * order. What a device may ask of the machine (power off, reset, debug exit) arrives inside a port write with
 * the device lock held, so it is only latched here; machine_run() acts on it.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "machine_internal.h"
#include "vmm/bus.h"
#include "vmm/dev_acpi_pm.h"
#include "vmm/dev_debug.h"
#include "vmm/dev_flash.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/dev_hpet.h"
#include "vmm/dev_i8042.h"
#include "vmm/dev_pit.h"
#include "vmm/dev_rtc.h"
#include "vmm/dev_serial.h"
#include "vmm/dev_testdev.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/host_disk.h"
#include "vmm/host_image.h"
#include "vmm/host_net.h"
#include "vmm/irqchip.h"
#include "vmm/kvm.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/pci.h"
#include "vmm/soft.h"
#include "vmm/vcpu.h"
#include "vmm/virtio.h"
#include "vmm/virtio_pci.h"

#define PCI_LINE_GSI 16u /* INTA to INTD are IOAPIC inputs 16 to 19 */

/* The access that ends a life is the guest's last. */
static void vcpus_request_stop(struct machine *m)
{
	for (unsigned i = 0; i < m->vcpu_count; i++)
		vcpu_request_stop(m->vcpus[i]);
}

static void on_poweroff(void *ctx)
{
	machine_stop(ctx, MACHINE_POWEROFF, 0, "%s", "");
	vcpus_request_stop(ctx);
}

static void on_reset(void *ctx)
{
	struct machine *m = ctx;

	vcpus_request_stop(m);
	if (m->config->on_reboot == MACHINE_REBOOT_EXIT) {
		machine_stop(m, MACHINE_REBOOTED, 0, "%s", "");
		return;
	}
	atomic_store(&m->reset_wanted, true);
	event_loop_stop(m->loop);
}

static void on_a20(void *ctx, bool open)
{
	struct machine *m = ctx;

	mem_set_a20(m->mem, open);
}

static void on_debug_exit(void *ctx, uint32_t value)
{
	machine_stop(ctx, MACHINE_DEBUG_EXIT, (int)((value << 1 | 1) & 0xff), "%s", "");
	vcpus_request_stop(ctx);
}

static void on_console_output(void *ctx, const uint8_t *data, size_t length)
{
	struct machine *m = ctx;

	if (m->console.output)
		m->console.output(m->console.ctx, data, length);
}

static void on_firmware_log(void *ctx, const uint8_t *data, size_t length)
{
	struct machine *m = ctx;

	fwrite(data, 1, length, m->firmware_log);
	if (data[length - 1] == '\n')
		fflush(m->firmware_log);
}

static void on_console_ready(void *ctx)
{
	struct machine *m = ctx;

	if (m->console.ready)
		m->console.ready(m->console.ctx);
}

static void apic_deliver(void *ctx, const struct apic_message *msg)
{
	struct machine *m = ctx;

	if (m->kvm)
		kvm_deliver(m->kvm, msg->dest, msg->logical, msg->delivery_mode, msg->vector, msg->level);
	else
		soft_deliver(m->soft, msg->dest, msg->logical, msg->delivery_mode, msg->vector, msg->level);
}

/* The software backend hears of what follows also when its vcpus only help KVM's. */
static void apic_extint(void *ctx, bool level)
{
	struct machine *m = ctx;

	soft_set_extint(m->soft, level);
	if (m->kvm)
		kvm_set_extint(m->kvm, level);
}

static void apic_eoi_vectors(void *ctx, const uint64_t bitmap[4])
{
	struct machine *m = ctx;

	soft_set_eoi_exit(m->soft, bitmap);
	if (m->kvm)
		kvm_set_eoi_exit(m->kvm, bitmap);
}

/* No free slot: the reads come as bus accesses, which give the same. */
static void on_answer(void *ctx, const struct bus_answer *answer)
{
	struct machine *m = ctx;

	soft_set_answer(m->soft, answer);
}

/* A trace is to show every access, in order. */
static struct answer_sink answers(struct machine *m)
{
	struct answer_sink sink = {m->config->trace ? NULL : on_answer, m};

	return sink;
}

/* PIC, IOAPIC, PIT, RTC, HPET. */
static int timers_create(struct machine *m, struct error *err)
{
	const struct apic_sink sink = {apic_deliver, apic_extint, apic_eoi_vectors, m};
	struct hpet_wiring wiring = {0};
	uint64_t ram_low = mem_low_end(m->mem), ram_high = mem_high_size(m->mem);
	int rc;

	rc = irqchip_create(m->bus, &sink, &m->irqchip, err);
	if (!rc)
		rc = pit_create(m->bus, m->loop, irqchip_line(m->irqchip, 0), &m->pit, err);
	if (!rc)
		rc = rtc_create(m->bus, m->loop, irqchip_line(m->irqchip, 8), ram_low, ram_high, &m->rtc, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < 24; i++)
		if (HPET_ROUTES >> i & 1)
			wiring.gsi[i] = irqchip_line(m->irqchip, i);
	wiring.irq0 = irqchip_line(m->irqchip, 0);
	wiring.irq8 = irqchip_line(m->irqchip, 8);
	wiring.msi = irqchip_msi(m->irqchip);
	wiring.pit = m->pit;
	wiring.rtc = m->rtc;
	wiring.answers = answers(m);
	return hpet_create(m->bus, m->loop, &wiring, &m->hpet, err);
}

static int test_device_create(struct machine *m, struct error *err)
{
	struct irq_line lines[TESTDEV_LINES];

	for (unsigned i = 0; i < TESTDEV_LINES; i++)
		lines[i] = irqchip_line(m->irqchip, i);
	return testdev_create(m->bus, lines, &m->testdev, err);
}

/* Serial ports, keyboard controller, ACPI, fw_cfg, debug ports. */
static int ports_create(struct machine *m, struct error *err)
{
	const struct serial_host com1 = {on_console_output, on_console_ready, m, answers(m)};
	const struct serial_host nobody = {.answers = answers(m)};
	const struct i8042_host kbd = {on_reset, on_a20, m};
	const struct acpi_pm_host pm = {on_poweroff, m, answers(m)};
	const struct debug_host debug = {on_debug_exit, m->firmware_log ? on_firmware_log : NULL, m};
	int rc;

	rc = serial_create(m->bus, m->loop, SERIAL_COM1, irqchip_line(m->irqchip, 4), &com1, "com1", &m->serial[0], err);
	if (!rc)
		rc = serial_create(m->bus, m->loop, SERIAL_COM2, irqchip_line(m->irqchip, 3), &nobody, "com2",
			&m->serial[1], err);
	if (!rc)
		rc = i8042_create(m->bus, irqchip_line(m->irqchip, 1), irqchip_line(m->irqchip, 12), &kbd, &m->i8042, err);
	if (!rc)
		rc = acpi_pm_create(m->bus, m->loop, irqchip_line(m->irqchip, ACPI_SCI_IRQ), &pm, &m->acpi_pm, err);
	if (!rc)
		rc = fw_cfg_create(m->bus, m->mem, &m->fw_cfg, err);
	if (!rc)
		rc = debug_ports_create(m->bus, &debug, &m->debug_ports, err);
	if (!rc && m->config->test_device)
		rc = test_device_create(m, err);
	return rc;
}

/* Tells the vcpus which writes ring a doorbell without an exit. */
static void notify_changed(void *ctx)
{
	struct machine *m = ctx;
	struct virtio_notify list[VIRTIO_QUEUES_MAX];

	for (unsigned i = 0; i < m->virtio_count; i++) {
		int count = virtio_pci_notify_list(m->virtio[i], list, VIRTIO_QUEUES_MAX);

		/* No free slot: the write comes as a bus access, which does the same. */
		for (int j = 0; j < count; j++) {
			soft_set_notify(m->soft, list[j].eventfd, list[j].gpa, 0);
			if (m->kvm)
				kvm_set_notify(m->kvm, list[j].eventfd, list[j].gpa, 0);
		}
	}
}

static int virtio_attach(struct machine *m, struct virtio_device *dev, struct error *err)
{
	struct virtio_pci *vpci;
	int rc = virtio_pci_create(m->pci, 0, m->loop, dev, &vpci, err);

	if (rc)
		return rc;
	m->virtio[m->virtio_count++] = vpci;
	virtio_pci_set_notify_changed(vpci, notify_changed, m);
	return 0;
}

static int disk_create(struct machine *m, const struct machine_disk *config, struct error *err)
{
	const char *serial = config->serial[0] ? config->serial : NULL;
	struct virtio_device *dev;
	struct host_disk *disk;
	int rc = host_disk_open(m->loop, m->pool, config->path, config->readonly || config->cd, &disk, err);

	if (rc)
		return rc;
	rc = config->cd ? virtio_scsi_cd_create(m->mem, disk, &dev, err) : virtio_blk_create(m->mem, disk, serial, &dev, err);
	if (rc)
		return rc;
	m->disks[m->disk_count++] = disk;
	return virtio_attach(m, dev, err);
}

/* A disc goes into a CD drive. It, another image of a CD, and one that we may only read: so may the guest. */
static int guest_disk_create(struct machine *m, const char *path, struct error *err)
{
	struct machine_disk disk = {.readonly = false};
	struct host_image image;
	int rc = host_image_examine(path, &image, err);

	if (rc)
		return rc;
	if (strlen(path) >= sizeof(disk.path))
		return error_set(err, -ENAMETOOLONG, "The path of GUEST is longer than %d bytes.", MACHINE_PATH_MAX - 1);
	memcpy(disk.path, path, strlen(path) + 1);
	disk.cd = machine_guest_is_cd(m, &image);
	disk.readonly = image.kind == HOST_IMAGE_ISO;
	if (!disk.readonly && access(path, W_OK) && (errno == EACCES || errno == EROFS || errno == EPERM)) {
		log_message(LOG_WARNING, "%.300s is not writable: the guest may only read it.", path);
		disk.readonly = true;
	}
	return disk_create(m, &disk, err);
}

static int disks_create(struct machine *m, struct error *err)
{
	const struct machine_config *config = m->config;
	int rc = 0;

	if (config->guest && m->boot.kernel != config->guest)
		rc = guest_disk_create(m, config->guest, err);
	for (unsigned i = 0; i < config->disk_count && !rc; i++)
		rc = disk_create(m, &config->disks[i], err);
	return rc;
}

/* "10.0.0.1" → bytes; the command line has checked it. */
static void ipv4_bytes(const char *text, uint8_t bytes[4])
{
	unsigned part = 0;

	memset(bytes, 0, 4);
	for (; *text && part < 4; text++) {
		if (*text == '.')
			part++;
		else
			bytes[part] = (uint8_t)(bytes[part] * 10 + (*text - '0'));
	}
}

static int net_create(struct machine *m, const struct machine_net *net, unsigned index, struct error *err)
{
	const uint8_t mac[6] = {0x02, 'v', 'm', 'm', 0, (uint8_t)(index + 1)};
	struct host_hostfwd fwds[MACHINE_HOSTFWD_MAX] = {0};
	struct net_endpoint *endpoint;
	struct virtio_device *dev;
	int rc;

	if (net->kind == MACHINE_NET_TAP) {
		rc = host_tap_create(m->loop, net->ifname, &endpoint, err);
	} else {
		for (unsigned i = 0; i < net->hostfwd_count; i++) {
			ipv4_bytes(net->hostfwd[i].host_addr, fwds[i].host_addr);
			fwds[i].host_port = net->hostfwd[i].host_port;
			fwds[i].guest_port = net->hostfwd[i].guest_port;
		}
		rc = host_slirp_create(m->loop, fwds, net->hostfwd_count, &endpoint, err);
	}
	if (rc)
		return rc;
	rc = virtio_net_create(m->mem, endpoint, mac, &dev, err);
	return rc ? rc : virtio_attach(m, dev, err);
}

/* Every guest has it: at its first boot it has no other entropy than RDRAND, if the host has that. */
static int rng_create(struct machine *m, struct error *err)
{
	struct virtio_device *dev;
	int rc = virtio_rng_create(m->mem, &dev, err);

	return rc ? rc : virtio_attach(m, dev, err);
}

/*
 * Writes that nobody waits for: bytes to send (where the divisor's low byte is, too), the address of the next
 * configuration access (the access itself leaves, after it), the POST code that Linux writes for a short delay.
 */
static void posted_ports(struct machine *m)
{
	static const uint16_t ports[] = {SERIAL_COM1, SERIAL_COM2, 0xcf8, 0x80, 0x402};
	unsigned count = sizeof(ports) / sizeof(ports[0]) - !m->firmware_log;

	for (unsigned i = 0; i < count && !m->config->trace; i++)
		soft_set_posted_pio(m->soft, ports[i]);
	/* Not the serial ports: KVM keeps a write until the next exit, which may be long. */
	for (unsigned i = 2; i < count && !m->config->trace && m->kvm && m->config->cpus == 1; i++)
		kvm_set_posted_pio(m->kvm, ports[i]);
}

int machine_devices_create(struct machine *m, struct error *err)
{
	struct irq_line lines[4];
	int rc;

	posted_ports(m);
	rc = timers_create(m, err);
	if (!rc)
		rc = ports_create(m, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < 4; i++)
		lines[i] = irqchip_line(m->irqchip, PCI_LINE_GSI + i);
	rc = pci_bus_create(m->bus, lines, irqchip_msi(m->irqchip), on_reset, m, &m->pci, err);
	if (!rc)
		rc = disks_create(m, err);
	for (unsigned i = 0; i < m->config->net_count && !rc; i++)
		rc = net_create(m, &m->config->nets[i], i, err);
	if (!rc)
		rc = rng_create(m, err);
	if (!rc)
		notify_changed(m);
	return rc;
}

/* Device lock held, vcpus stopped. Disk requests in flight end first: RAM is about to be given to a new guest. */
void machine_devices_reset(struct machine *m)
{
	for (unsigned i = 0; i < m->disk_count; i++)
		host_disk_drain(m->disks[i]);
	pci_bus_reset(m->pci);
	if (m->flash)
		flash_reset(m->flash);
	fw_cfg_reset(m->fw_cfg);
	acpi_pm_reset(m->acpi_pm);
	serial_reset(m->serial[0]);
	serial_reset(m->serial[1]);
	i8042_reset(m->i8042);
	hpet_reset(m->hpet);
	rtc_reset(m->rtc);
	pit_reset(m->pit);
	irqchip_reset(m->irqchip);
}

void machine_devices_destroy(struct machine *m)
{
	/* Each unmapped BAR would have notify_changed() look at all devices, some of them gone. */
	for (unsigned i = 0; i < m->virtio_count; i++)
		virtio_pci_set_notify_changed(m->virtio[i], NULL, NULL);
	machine_firmware_destroy(m);
	if (m->pci)
		pci_bus_destroy(m->pci);
	if (m->testdev)
		testdev_destroy(m->testdev);
	if (m->debug_ports)
		debug_ports_destroy(m->debug_ports);
	if (m->fw_cfg)
		fw_cfg_destroy(m->fw_cfg);
	if (m->acpi_pm)
		acpi_pm_destroy(m->acpi_pm);
	if (m->i8042)
		i8042_destroy(m->i8042);
	for (unsigned i = 0; i < 2; i++)
		if (m->serial[i])
			serial_destroy(m->serial[i]);
	if (m->hpet)
		hpet_destroy(m->hpet);
	if (m->rtc)
		rtc_destroy(m->rtc);
	if (m->pit)
		pit_destroy(m->pit);
	if (m->irqchip)
		irqchip_destroy(m->irqchip);
}
