// The kernels for AVX-512 (F, BW, VL, DQ).
#if defined(__x86_64__)
#include "kernels_common.h"

#define COMER_D2_VECTOR_BYTES 64
#define COMER_D2_CAPABILITY "avx512"
#define COMER_D2_KERNELS kAvx512Kernels
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#include "kernels.inc"
#pragma GCC pop_options
#endif
