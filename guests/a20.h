/* Where the code of the guest `a20` runs, its page tables and its results, in low memory: what is in the image is gone with the line. */
#ifndef A20_H
#define A20_H

#define TRAMPOLINE 0x8000
#define RESULTS 0x9000
#define TABLES 0x10000 /* PML4, PDPT, directory */
#define PROBE 0x20000  /* bytes that are told from those 1 MiB above */
#define MIB 0x100000
/* Offsets of 32-bit results. */
#define R_OPEN 0x00
#define R_SHUT 0x04
#define R_THIRD 0x08
#define R_CODE 0x0c
#define R_TABLES 0x10
#define R_PORT92 0x14
#define R_OUTPORT 0x18
#define R_AGAIN 0x1c
#define R_PORT92_AGAIN 0x20
#define R_STRING 0x24
#define R_PAGED 0x28

#endif
