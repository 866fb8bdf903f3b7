// Entry points of deformable attention on the CPU: checks and allocation.

#include "kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

namespace comer_d2::cpu {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;

Tensor run_forward(const Sizes& sizes, const Tensor& value, const Samples& samples) {
  Tensor output = new_empty(value, {{sizes.batch, sizes.queries, sizes.heads * sizes.channels}});
  kernels().forward(
      {sizes, value.const_data_ptr(), samples, output.mutable_data_ptr()}, value.scalar_type());
  return output;
}

Tensor zeros_for_empty(const Sizes& sizes, const Tensor& value) {
  return new_zeros(value, {{sizes.batch, sizes.queries, sizes.heads * sizes.channels}});
}

Tensor forward(
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  if (sizes.empty()) {
    return zeros_for_empty(sizes, value);
  }
  const Tensor locations = contiguous(sampling_locations), weights = contiguous(attention_weights);
  return run_forward(sizes, contiguous(value), samples_of(locations, weights, sizes));
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output,
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations,
    const Tensor& attention_weights,
    bool /*deterministic: always*/) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  Tensor grad_value = new_zeros(value, value.sizes());
  if (sizes.empty()) {
    return {grad_value, new_zeros(sampling_locations, sampling_locations.sizes()),
            new_zeros(attention_weights, attention_weights.sizes())};
  }
  Tensor grad_locations = new_empty(sampling_locations, sampling_locations.sizes());
  Tensor grad_weights = new_empty(attention_weights, attention_weights.sizes());
  const Tensor grad = contiguous(grad_output), values = contiguous(value);
  const Tensor locations = contiguous(sampling_locations), weights = contiguous(attention_weights);
  kernels().backward(
      {sizes, values.const_data_ptr(), samples_of(locations, weights, sizes), grad.const_data_ptr(),
       grad_value.mutable_data_ptr(),
       {grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr()}},
      value.scalar_type());
  return {grad_value, grad_locations, grad_weights};
}

// Reference points in the type of the arithmetic: they are few, and often float32 already.
Tensor reference_of(const Tensor& reference_points, const Tensor& value) {
  const ScalarType wanted =
      value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return contiguous(
      reference_points.scalar_type() == wanted ? reference_points
                                               : torch::stable::to(reference_points, wanted));
}

Tensor fused_forward(
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& projected,
    const Tensor& reference_points) {
  const Sizes sizes = check_fused_arguments(value, spatial_shapes, projected, reference_points);
  if (sizes.empty()) {
    return zeros_for_empty(sizes, value);
  }
  const Tensor raw = contiguous(projected), reference = reference_of(reference_points, value);
  return run_forward(sizes, contiguous(value), fused_samples_of(raw, reference, sizes));
}

std::tuple<Tensor, Tensor> fused_backward(
    const Tensor& grad_output,
    const Tensor& value,
    std::vector<int64_t> spatial_shapes,
    const Tensor& projected,
    const Tensor& reference_points,
    bool /*deterministic: always*/) {
  const Sizes sizes = check_fused_arguments(value, spatial_shapes, projected, reference_points);
  check_grad_output(grad_output, value, sizes);
  Tensor grad_value = new_zeros(value, value.sizes());
  if (sizes.empty()) {
    return {grad_value, new_zeros(projected, projected.sizes())};
  }
  Tensor grad_projected = new_empty(projected, projected.sizes());
  const Tensor grad = contiguous(grad_output), values = contiguous(value);
  const Tensor raw = contiguous(projected), reference = reference_of(reference_points, value);
  char* start = static_cast<char*>(grad_projected.mutable_data_ptr());
  kernels().backward(
      {sizes, values.const_data_ptr(), fused_samples_of(raw, reference, sizes),
       grad.const_data_ptr(), grad_value.mutable_data_ptr(),
       {start, start + 2 * sizes.samples_per_query() * projected.element_size()}},
      value.scalar_type());
  return {grad_value, grad_projected};
}

} // namespace

} // namespace comer_d2::cpu

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&comer_d2::cpu::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&comer_d2::cpu::backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&comer_d2::cpu::fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&comer_d2::cpu::fused_backward));
}
