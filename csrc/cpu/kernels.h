// The interface between the CPU entry points and the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "../ms_deform_attn.h"
#include "../token_depthwise_conv.h"

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

// Weights are packed, (k, k, channels) for each set and group, in the type of the arithmetic; so is the
// bias, (sets, C).
struct ConvCall {
  const ConvSizes& sizes;
  const void* tokens;
  const void* weight;
  const void* bias;
  void* output;
};

struct ConvBackwardCall {
  const ConvSizes& sizes;
  const void* tokens;
  const void* grad_output;
  const void* flipped_weight; // packed, each kernel turned by 180 degrees
  void* grad_tokens;
  void* grad_weight; // packed
  void* grad_bias;
};

struct Kernels {
  const char* name;
  void (*forward)(const ForwardCall&, ScalarType);
  void (*backward)(const BackwardCall&, ScalarType);
  void (*convolve)(const ConvCall&, ScalarType);
  void (*convolve_backward)(const ConvBackwardCall&, ScalarType);
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
