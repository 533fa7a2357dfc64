/*
 * A writer for ACPI Machine Language (ACPI 6.4, chapter 20): a growing buffer, terms that are closed in the
 * reverse order of their opening, and the resource descriptors that our namespace needs (chapter 6.4).
 *
 * An opened term is written without its length; closing it inserts the PkgLength, whose size depends on what
 * is inside. Out of memory is sticky: the caller looks at `failed` once, at the end.
 */
#ifndef BOOT_AML_H
#define BOOT_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
	uint8_t *data;
	size_t size, capacity;
	bool failed;
};

void aml_bytes(struct aml *a, const void *bytes, size_t n);
void aml_byte(struct aml *a, uint8_t v);
void aml_word(struct aml *a, uint16_t v);
void aml_dword(struct aml *a, uint32_t v);
void aml_qword(struct aml *a, uint64_t v);
/* Zero bytes up to a multiple of align. */
void aml_align(struct aml *a, size_t align);

/*
 * A path of name segments as source writes it: "\\_S5_", "_SB_", "PCI0"; every segment has four characters.
 */
void aml_name_string(struct aml *a, const char *name);
/* Name(name, …): the object follows. */
void aml_name(struct aml *a, const char *name);
void aml_integer(struct aml *a, uint64_t v);
void aml_string(struct aml *a, const char *text);
/* EisaId("PNP0A08") */
void aml_eisa_id(struct aml *a, const char *id);
void aml_name_integer(struct aml *a, const char *name, uint64_t v);
void aml_name_eisa_id(struct aml *a, const char *name, const char *id);

/* Each returns the position to pass to aml_close(). */
size_t aml_open_scope(struct aml *a, const char *name);
size_t aml_open_device(struct aml *a, const char *name);
size_t aml_open_package(struct aml *a, uint8_t elements);
void aml_close(struct aml *a, size_t position);

/* Name(_CRS, ResourceTemplate () { descriptors }): the descriptors go between open and close. */
size_t aml_open_resources(struct aml *a);
void aml_close_resources(struct aml *a, size_t position);

void aml_io(struct aml *a, uint16_t port, uint8_t length);
void aml_irq(struct aml *a, unsigned irq);
void aml_memory32(struct aml *a, bool writable, uint32_t base, uint32_t length);
/* Windows of a bridge (ResourceProducer), positively decoded, fixed. */
void aml_window_bus(struct aml *a, uint16_t first, uint16_t last);
void aml_window_io(struct aml *a, uint16_t first, uint16_t last);
void aml_window_memory32(struct aml *a, uint32_t first, uint32_t last);
void aml_window_memory64(struct aml *a, uint64_t first, uint64_t last);

#endif
