// What the CPU and the CUDA kernels of the token convolution share: the checks of the arguments, the sizes
// of a call and the layout of its weights.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"

namespace comer_d2 {

// Neighbouring channels with kernels of one size. A set of weights holds its groups one after the
// other: as given, (channels, k, k); packed for the kernels, (k, k, channels).
struct ConvGroup {
  int32_t first, channels, kernel;
  int64_t offset; // of its weights in a set

  int64_t taps() const { return static_cast<int64_t>(kernel) * kernel; }
};

// N batches, S pixels, C channels; one set of weights for all levels, or one a level.
struct ConvSizes {
  int64_t batch, pixels, channels, sets, set_size;
  std::vector<Level> levels;
  std::vector<ConvGroup> groups;

  int64_t set_of(int64_t level) const { return sets == 1 ? 0 : level; }
  bool empty() const { return batch == 0 || pixels == 0 || channels == 0; }
};

constexpr int64_t kMaxKernel = 255;

// `weight` is flat: for every set and group (channels, k, k). `bias` is flat: (sets, C).
inline ConvSizes check_conv_arguments(
    const Tensor& tokens,
    const std::vector<int64_t>& spatial_shapes,
    const Tensor& weight,
    const Tensor& bias,
    const std::vector<int64_t>& kernel_sizes) {
  check_dims(tokens, "tokens", 3, "(B, S, C)");
  check_floating(tokens, "tokens");
  ConvSizes sizes{};
  sizes.batch = tokens.size(0);
  sizes.pixels = tokens.size(1);
  sizes.channels = tokens.size(2);
  sizes.levels = read_levels(spatial_shapes, tokens, "tokens");
  for (const auto& [tensor, name] : {std::pair{&weight, "weight"}, std::pair{&bias, "bias"}}) {
    check_dims(*tensor, name, 1, "(sets of weights, one behind the other)");
    check_type_beside(*tensor, name, tokens, "tokens");
    check_device(*tensor, name, tokens, "tokens");
  }
  const int64_t groups = static_cast<int64_t>(kernel_sizes.size());
  COMER_D2_CHECK(
      groups > 0 && sizes.channels % groups == 0 && sizes.channels <= kMaxInt32,
      "the channels of tokens ", shape_of(tokens), " must be shared equally by the ", groups,
      " kernel_sizes");
  const int64_t share = sizes.channels / groups;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t kernel = kernel_sizes[i];
    COMER_D2_CHECK(
        kernel > 0 && kernel <= kMaxKernel && kernel % 2 == 1,
        "kernel_sizes must be odd and at most ", kMaxKernel, ", got ", kernel);
    sizes.groups.push_back(
        {static_cast<int32_t>(i * share), static_cast<int32_t>(share), static_cast<int32_t>(kernel),
         sizes.set_size});
    sizes.set_size += share * kernel * kernel;
  }
  const int64_t levels = static_cast<int64_t>(sizes.levels.size());
  sizes.sets = sizes.channels == 0 || bias.size(0) == sizes.channels ? 1 : levels;
  COMER_D2_CHECK(
      bias.size(0) == sizes.sets * sizes.channels, "bias must hold the ", sizes.channels,
      " channels of tokens once, or once for each of the ", levels, " levels, got ", bias.size(0),
      " numbers");
  COMER_D2_CHECK(
      weight.size(0) == sizes.sets * sizes.set_size, "weight must hold ", sizes.sets, " times ",
      sizes.set_size, " numbers for ", sizes.channels, " channels and these kernel_sizes, got ",
      weight.size(0));
  return sizes;
}

inline void check_conv_grad(const Tensor& grad_output, const Tensor& tokens) {
  check_dims(grad_output, "grad_output", 3, "(B, S, C)");
  COMER_D2_CHECK(
      grad_output.scalar_type() == tokens.scalar_type(), "grad_output must have tokens' dtype");
  check_device(grad_output, "grad_output", tokens, "tokens");
  COMER_D2_CHECK(
      grad_output.size(0) == tokens.size(0) && grad_output.size(1) == tokens.size(1) &&
          grad_output.size(2) == tokens.size(2),
      "grad_output must have the shape of tokens ", shape_of(tokens), ", got ",
      shape_of(grad_output));
}

} // namespace comer_d2
