/* Interrupt flags of code that may not touch IF: see vme.c. All raise architectural faults by the engine's long jump. */
#ifndef ENGINE_VME_H
#define ENGINE_VME_H

#include "engine/access.h"

/* CPL is above IOPL: do CLI and STI act on VIF? Then vme_sti() does the latter. */
bool vme_takes_if(const struct engine *e);
void vme_sti(struct engine *e);

/* In virtual-8086 mode with IOPL below 3: do PUSHF, POPF, IRET of that size work on VIF instead of faulting? */
bool vme_takes_flags(const struct engine *e, unsigned size);
/* What PUSHF pushes then. */
uint64_t vme_flags_image(const struct engine *e);
/* #GP for an image that POPF or IRET may not load; before any state changes. */
void vme_check_flags(struct engine *e, uint64_t image);
void vme_set_flags(struct engine *e, uint64_t image);

/* INT n in virtual-8086 mode: true if the program's own handler was entered. RIP is that of the next instruction. */
bool vme_int(struct engine *e, uint8_t vector);

#endif
