// The kernels for the instruction set that every machine of this architecture has.
#include "kernels_common.h"

#define COMER_D2_VECTOR_BYTES 16
#if defined(__x86_64__)
#define COMER_D2_CAPABILITY "sse2"
#else
#define COMER_D2_CAPABILITY "baseline"
#endif
#define COMER_D2_KERNELS kBaselineKernels
#include "kernels.inc"
