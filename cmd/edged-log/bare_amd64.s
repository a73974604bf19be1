#include "textflag.h"

#define SYS_arch_prctl 158
#define ARCH_SET_FS 0x1002

// func bare()
//
// The kernel starts the program here when it is linked with -E main.bare. The code that
// the compiler makes needs two things that Go's runtime has made by then: a g, which it
// finds by way of FS (only its stack bound is read, and 0 means that the kernel's own
// stack, which grows by itself, is never too small), and an aligned stack.
TEXT ·bare(SB), NOSPLIT|NOFRAME, $0-0
	LEAQ ·standIn(SB), AX
	MOVQ AX, ·thread(SB)
	LEAQ ·thread+8(SB), SI
	MOVQ $ARCH_SET_FS, DI
	MOVQ $SYS_arch_prctl, AX
	SYSCALL
	MOVB $1, ·alone(SB)
	ANDQ $~15, SP
	CALL ·keep(SB)
	INT  $3
