/* MC146818 real-time clock and 128 bytes of CMOS RAM (ports 0x70, 0x71). Device lock held for every call. */
#ifndef VMM_DEV_RTC_H
#define VMM_DEV_RTC_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/bus.h"

struct event_loop;
struct error;
struct rtc;

/*
 * Time of day is the host's, UTC. ram_low: bytes of RAM below 4 GiB, ram_high: bytes above; they fill the memory size
 * bytes (0x15–0x18, 0x30, 0x31, 0x34, 0x35, 0x5b–0x5d). Destroy before the bus and the loop.
 */
int rtc_create(struct bus *bus, struct event_loop *loop, struct irq_line irq8, uint64_t ram_low, uint64_t ram_high,
	struct rtc **rtc, struct error *err);
void rtc_destroy(struct rtc *rtc);
/* A machine reset: interrupts off; time, alarm and CMOS RAM (the shutdown byte too) stay. */
void rtc_reset(struct rtc *rtc);

/* One byte of CMOS RAM (0x0e–0x7f), for firmware configuration. */
void rtc_set_cmos(struct rtc *rtc, uint8_t index, uint8_t value);
uint8_t rtc_get_cmos(const struct rtc *rtc, uint8_t index);
/* Bit 7 of port 0x70. */
bool rtc_nmi_masked(const struct rtc *rtc);
/* Disconnects the clock from IRQ 8 (HPET legacy replacement) or connects it again. */
void rtc_connect_irq(struct rtc *rtc, bool connected);

#endif
