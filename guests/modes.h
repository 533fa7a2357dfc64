/* Where the trampoline of the guest `modes` lives and leaves its results, in low memory. */
#ifndef MODES_H
#define MODES_H

#define TRAMPOLINE 0x8000
#define RESULTS 0x9000
/* Offsets of 32-bit results. */
#define R_COMPAT_INC 0x00
#define R_COMPAT_WRAP 0x04
#define R_EFER 0x08
#define R_LEGACY 0x0c
#define R_SP16 0x10
#define R_REAL_CR0 0x14
#define R_UNREAL 0x18
#define R_INT_SP 0x1c
#define R_DE_IP 0x20
#define R_UD_IP 0x24
#define R_GP_IP 0x28
#define R_GP_SP 0x2c
#define R_SEGMENT 0x30
#define R_HMA 0x34
#define R_FAR_CS 0x38
#define R_SP_WRAP 0x3c
#define R_LOOP 0x40
#define R_LOOP_ECX 0x44
#define R_PAGING32 0x48
#define R_PAGING_PAE 0x4c
#define R_IP_EXPECT_DE 0x50
#define R_IP_EXPECT_UD 0x54
#define R_IP_EXPECT_GP 0x58
#define R_PUSHF16 0x5c
#define R_IRET_IF 0x60
#define R_V86 0x64
#define R_BACK 0x68
#define R_HMA_SHUT 0x6c
#define R_HMA_AGAIN 0x70

#endif
