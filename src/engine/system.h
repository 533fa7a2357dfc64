/* What system.c's table needs from the other files of system instructions. */
#ifndef ENGINE_SYSTEM_H
#define ENGINE_SYSTEM_H

#include "engine/segment.h"

static inline void require_cpl0(struct engine *e)
{
	if (e->cpl)
		engine_raise_error(e, EXC_GP, 0);
}

/* msr.c */
void op_rdmsr(struct engine *e, const struct insn *i);
void op_wrmsr(struct engine *e, const struct insn *i);
/* debug.c */
void op_mov_from_dr(struct engine *e, const struct insn *i);
void op_mov_to_dr(struct engine *e, const struct insn *i);
/* I/O breakpoints. */
void watch_check_io(struct engine *e, uint16_t port, unsigned size);
/* fastcall.c */
void op_syscall(struct engine *e, const struct insn *i);
void op_sysret(struct engine *e, const struct insn *i);
void op_sysenter(struct engine *e, const struct insn *i);
void op_sysexit(struct engine *e, const struct insn *i);
/* xstate.c */
void op_xsave(struct engine *e, const struct insn *i);
void op_xrstor(struct engine *e, const struct insn *i);
void op_fxsave(struct engine *e, const struct insn *i);
void op_fxrstor(struct engine *e, const struct insn *i);
void op_xgetbv(struct engine *e, const struct insn *i);
void op_xsetbv(struct engine *e, const struct insn *i);

#endif
