// Entry points of the token convolution on the CPU: checks, allocation and the packing of weights.

#include "kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

namespace comer_d2::cpu {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;

Tensor as_type(const Tensor& tensor, ScalarType type) {
  return contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

ScalarType real_type(const Tensor& tokens) {
  return tokens.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls move(index as given, index packed) for every weight; turned: kernels rotated by 180 degrees.
template <typename Move>
void for_weights(const ConvSizes& sizes, bool turned, const Move& move) {
  for (int64_t set = 0; set < sizes.sets; ++set) {
    for (const ConvGroup& group : sizes.groups) {
      const int64_t offset = set * sizes.set_size + group.offset, taps = group.taps();
      for (int64_t channel = 0; channel < group.channels; ++channel) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          move(
              offset + channel * taps + (turned ? taps - 1 - tap : tap),
              offset + tap * group.channels + channel);
        }
      }
    }
  }
}

template <typename Real>
void move_weights(
    const ConvSizes& sizes, bool turned, bool pack, const Tensor& from, Tensor& to) {
  const Real* source = static_cast<const Real*>(from.const_data_ptr());
  Real* target = static_cast<Real*>(to.mutable_data_ptr());
  for_weights(sizes, turned, [&](int64_t given, int64_t packed) {
    (pack ? target[packed] : target[given]) = pack ? source[given] : source[packed];
  });
}

Tensor moved(const ConvSizes& sizes, bool turned, bool pack, const Tensor& from) {
  Tensor to = new_empty(from, from.sizes());
  if (from.scalar_type() == ScalarType::Double) {
    move_weights<double>(sizes, turned, pack, from, to);
  } else {
    move_weights<float>(sizes, turned, pack, from, to);
  }
  return to;
}

Tensor forward(
    const Tensor& tokens, std::vector<int64_t> spatial_shapes, const Tensor& weight,
    const Tensor& bias, std::vector<int64_t> kernel_sizes) {
  const ConvSizes sizes = check_conv_arguments(tokens, spatial_shapes, weight, bias, kernel_sizes);
  Tensor output = new_empty(tokens, tokens.sizes());
  if (sizes.empty()) {
    return output;
  }
  const ScalarType real = real_type(tokens);
  const Tensor values = contiguous(tokens), biases = as_type(bias, real);
  const Tensor packed = moved(sizes, false, true, as_type(weight, real));
  kernels().convolve(
      {sizes, values.const_data_ptr(), packed.const_data_ptr(), biases.const_data_ptr(),
       output.mutable_data_ptr()},
      tokens.scalar_type());
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& tokens, std::vector<int64_t> spatial_shapes,
    const Tensor& weight, const Tensor& bias, std::vector<int64_t> kernel_sizes) {
  const ConvSizes sizes = check_conv_arguments(tokens, spatial_shapes, weight, bias, kernel_sizes);
  check_conv_grad(grad_output, tokens);
  Tensor grad_tokens = new_empty(tokens, tokens.sizes());
  if (sizes.empty()) {
    return {grad_tokens, new_zeros(weight, weight.sizes()), new_zeros(bias, bias.sizes())};
  }
  const ScalarType real = real_type(tokens);
  const Tensor values = contiguous(tokens), grads = contiguous(grad_output);
  const Tensor flipped = moved(sizes, true, true, as_type(weight, real));
  Tensor grad_packed = new_empty(flipped, flipped.sizes());
  Tensor grad_bias = new_empty(flipped, bias.sizes());
  kernels().convolve_backward(
      {sizes, values.const_data_ptr(), grads.const_data_ptr(), flipped.const_data_ptr(),
       grad_tokens.mutable_data_ptr(), grad_packed.mutable_data_ptr(), grad_bias.mutable_data_ptr()},
      tokens.scalar_type());
  return {grad_tokens, as_type(moved(sizes, false, false, grad_packed), weight.scalar_type()),
          as_type(grad_bias, bias.scalar_type())};
}

} // namespace
} // namespace comer_d2::cpu

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CPU, m) {
  m.impl("token_depthwise_conv", TORCH_BOX(&comer_d2::cpu::forward));
  m.impl("token_depthwise_conv_backward", TORCH_BOX(&comer_d2::cpu::backward));
}
