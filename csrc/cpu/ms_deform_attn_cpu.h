// The interface between the CPU entry points and the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "../ms_deform_attn.h"

namespace comer_d2::cpu {

// Gradients of locations (or offsets) and weights (or logits), strided as the samples are.
struct SampleGrads {
  void* locations;
  void* weights;
};

struct ForwardCall {
  const Sizes& sizes;
  const void* value;
  Samples samples;
  void* output;
};

struct BackwardCall {
  const Sizes& sizes;
  const void* value;
  Samples samples;
  const void* grad_output;
  void* grad_value; // zeros in value's type
  SampleGrads grads;
};

struct Kernels {
  const char* name;
  void (*forward)(const ForwardCall&, ScalarType);
  void (*backward)(const BackwardCall&, ScalarType);
};

extern const Kernels kBaselineKernels; // SSE2 on x86-64, whatever the compiler targets elsewhere
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The best instruction set of this machine, or the one that COMER_D2_CPU_CAPABILITY names.
const Kernels& kernels();
const char* capability_name();

} // namespace comer_d2::cpu
