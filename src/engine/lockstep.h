/* Lock step: every translated block is first run by the interpreter, on the side, and the results are compared. */
#ifndef ENGINE_LOCKSTEP_H
#define ENGINE_LOCKSTEP_H

#include "engine/engine_state.h"

struct lockstep;

/* At create, after the translator. 0, -ENOMEM; -ENOTSUP without a translator. */
int lockstep_create(struct engine *e);
void lockstep_destroy(struct engine *e);
/* The memory layout is another: the interpreter on the side has a copy. */
void lockstep_layout_changed(struct engine *e);
/* Before translated code of the instructions [insns, insns + count), which begin at RIP, is entered … */
void lockstep_before(struct engine *e, const struct insn *insns, unsigned count);
/* … and after it has been left. stopped: before an instruction of the block that the interpreter is to do. */
void lockstep_after(struct engine *e, bool stopped);

#endif
