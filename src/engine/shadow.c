/*
 * The shadow: not yet; without one every hook does nothing.
 */
#include "engine/shadow.h"

#include <errno.h>

int shadow_create(struct engine *e, int ram_fd, enum shadow_policy policy, struct shadow_deltas *deltas)
{
	return -ENOTSUP;
}

void shadow_destroy(struct engine *e)
{
}

bool shadow_fill(struct engine *e, uint64_t gva, bool is_write)
{
	return false;
}

uint64_t shadow_gva(const struct engine *e, uint64_t hva)
{
	return ~0ull;
}

void shadow_set_root(struct engine *e)
{
}

void shadow_flush_page(struct engine *e, uint64_t gva)
{
}

void shadow_flush_nonglobal(struct engine *e)
{
}

void shadow_flush_all(struct engine *e)
{
}

void shadow_protect_code(struct engine *e, uint64_t page)
{
}

void shadow_release_code(struct engine *e, uint64_t page)
{
}
