// The kernels for AVX2 with FMA and F16C.
#if defined(__x86_64__)
#include "kernels_common.h"

#define COMER_D2_VECTOR_BYTES 32
#define COMER_D2_CAPABILITY "avx2"
#define COMER_D2_KERNELS kAvx2Kernels
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#include "kernels.inc"
#pragma GCC pop_options
#endif
