/* The syntax of port forwarding: PROTOCOL:HOSTADDR:PORT-GUESTADDR:PORT, both addresses optional. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "vmm/error.h"
#include "vmm/host_net.h"

/* Takes "ADDR:PORT" up to `end` (a character that must follow) and returns what comes after it, or NULL. */
static const char *parse_end(const char *text, char end, uint8_t addr[4], uint16_t *port)
{
	const char *colon = strchr(text, ':');
	char dotted[INET_ADDRSTRLEN];
	unsigned value = 0, digits = 0;
	const char *p;

	if (!colon || (size_t)(colon - text) >= sizeof(dotted))
		return NULL;
	memcpy(dotted, text, colon - text);
	dotted[colon - text] = 0;
	memset(addr, 0, 4);
	if (dotted[0] && inet_pton(AF_INET, dotted, addr) != 1)
		return NULL;
	for (p = colon + 1; *p >= '0' && *p <= '9' && digits < 6; p++, digits++)
		value = value * 10 + (*p - '0');
	if (!digits || !value || value > 65535 || *p != end)
		return NULL;
	*port = value;
	return p + 1;
}

int host_slirp_parse_hostfwd(const char *text, struct host_hostfwd *fwd, struct error *err)
{
	const char *p = text;

	memset(fwd, 0, sizeof(*fwd));
	if (!strncmp(p, "udp:", 4))
		fwd->is_udp = 1;
	else if (strncmp(p, "tcp:", 4))
		goto bad;
	p = parse_end(p + 4, '-', fwd->host_addr, &fwd->host_port);
	if (p)
		p = parse_end(p, 0, fwd->guest_addr, &fwd->guest_port);
	if (p)
		return 0;
bad:
	return error_set(err, -EINVAL, "\"%s\" is no port forwarding; write tcp:[HOSTADDR]:PORT-[GUESTADDR]:GUESTPORT",
		text);
}
