// Entry points of the CPU: checks, allocation, and the choice of an instruction set.

#include "ms_deform_attn_cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string_view>
#include <tuple>

namespace comer_d2::cpu {
namespace {

const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq");
  const struct {
    const Kernels* kernels;
    bool supported;
  } known[] = {{&kAvx512Kernels, avx512}, {&kAvx2Kernels, avx2}, {&kBaselineKernels, true}};
#else
  const struct {
    const Kernels* kernels;
    bool supported;
  } known[] = {{&kBaselineKernels, true}};
#endif
  const char* wanted = std::getenv("COMER_D2_CPU_CAPABILITY");
  std::string names;
  for (const auto& candidate : known) {
    if (!candidate.supported) {
      continue;
    }
    if (wanted == nullptr || *wanted == '\0' || std::string_view(wanted) == candidate.kernels->name) {
      return candidate.kernels;
    }
    names += std::string(names.empty() ? "" : ", ") + candidate.kernels->name;
  }
  COMER_D2_CHECK(
      false, "COMER_D2_CPU_CAPABILITY must be one of ", names, " on this machine, got ", wanted);
}

Samples samples_of(const Tensor& locations, const Tensor& weights, const Sizes& sizes) {
  const int64_t samples = sizes.samples_per_query();
  return {locations.const_data_ptr(), weights.const_data_ptr(), 2 * samples, samples,
          locations.scalar_type()};
}

Tensor forward(
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const std::vector<int64_t> shape{sizes.batch, sizes.queries, sizes.heads * sizes.channels};
  if (sizes.empty()) {
    return torch::stable::new_zeros(value, shape);
  }
  Tensor output = torch::stable::new_empty(value, shape);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor weights = torch::stable::contiguous(attention_weights);
  kernels().forward(
      {sizes, v.const_data_ptr(), samples_of(locations, weights, sizes), output.mutable_data_ptr()},
      value.scalar_type());
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output,
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  const auto empty_as = [](const Tensor& tensor) {
    return torch::stable::new_empty(tensor, tensor.sizes());
  };
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes());
  if (sizes.empty()) {
    return {grad_value, torch::stable::new_zeros(sampling_locations, sampling_locations.sizes()),
            torch::stable::new_zeros(attention_weights, attention_weights.sizes())};
  }
  Tensor grad_locations = empty_as(sampling_locations);
  Tensor grad_weights = empty_as(attention_weights);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor weights = torch::stable::contiguous(attention_weights);
  kernels().backward(
      {sizes, v.const_data_ptr(), samples_of(locations, weights, sizes), grad.const_data_ptr(),
       grad_value.mutable_data_ptr(),
       {grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr()}},
      value.scalar_type());
  return {grad_value, grad_locations, grad_weights};
}

} // namespace

const Kernels& kernels() {
  static const Kernels* chosen = choose();
  return *chosen;
}

const char* capability_name() {
  return kernels().name;
}

} // namespace comer_d2::cpu

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&comer_d2::cpu::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&comer_d2::cpu::backward));
}
