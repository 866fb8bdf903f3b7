// What every operator's C++ shares: error messages and the checks of tensors.
//
// No iostreams, here or anywhere: a library that brings its own libstdc++ (-static-libstdc++, and what
// some toolchains do by themselves) shares the process with the one of torch, and the streams'
// locales of two copies do not mix. Messages are put together only when something is wrong.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__CUDACC__)
#define COMER_D2_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define COMER_D2_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Own macro: torch's own error-check macros are named differently from version to version.
#define COMER_D2_CHECK(condition, ...)                                \
  do {                                                                \
    if (!(condition)) {                                               \
      throw std::invalid_argument(::comer_d2::concat(__VA_ARGS__));   \
    }                                                                 \
  } while (false)

namespace comer_d2 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raised whenever a schema or its meaning changes, so that Python can refuse a stale binary.
constexpr int kOpVersion = 1;

constexpr int64_t kMaxInt32 = (int64_t{1} << 31) - 1;

template <typename Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::is_integral_v<Part> && !std::is_same_v<Part, char>) {
    text += std::to_string(part);
  } else {
    text += part;
  }
}

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    append(text, i ? ", " : "");
    append(text, tensor.size(i));
  }
  return text + ")";
}

// A flat (H0, W0, H1, W1, ...) list as pairs.
inline std::string pairs_of(const std::vector<int64_t>& flat) {
  std::string text = "[";
  for (size_t i = 0; i + 1 < flat.size(); i += 2) {
    text += concat(i ? ", (" : "(", flat[i], ", ", flat[i + 1], ")");
  }
  return text + "]";
}

inline void check_dims(const Tensor& tensor, const char* name, int64_t dims, const char* wanted) {
  COMER_D2_CHECK(
      tensor.dim() == dims, name, " must have shape ", wanted, ", got ", shape_of(tensor));
}

inline void check_device(
    const Tensor& tensor, const char* name, const Tensor& first, const char* first_name) {
  COMER_D2_CHECK(
      tensor.is_cpu() == first.is_cpu() &&
          (first.is_cpu() || tensor.get_device_index() == first.get_device_index()),
      name, " must be on the device of ", first_name);
}

inline bool is_half(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16;
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  COMER_D2_CHECK(
      type == ScalarType::Double || type == ScalarType::Float || is_half(type), name,
      " must be float64, float32, float16 or bfloat16, got ", torch::headeronly::toString(type));
}

// The type of the call's first tensor, or float32 beside a half type.
inline void check_type_beside(
    const Tensor& tensor, const char* name, const Tensor& first, const char* first_name) {
  const ScalarType type = tensor.scalar_type(), wanted = first.scalar_type();
  COMER_D2_CHECK(
      type == wanted || (type == ScalarType::Float && is_half(wanted)), name, " must have ",
      first_name, "'s dtype (", torch::headeronly::toString(wanted),
      ") or float32 beside a half type, got ", torch::headeronly::toString(type));
}

// One level of a pyramid: rows of `width` pixels, the first at pixel `start`.
struct Level {
  int32_t height, width, start;
};

// float32 holds every integer up to here, so pixel coordinates of such a level are exact.
constexpr int64_t kMaxLevelSide = int64_t{1} << 24;

// The levels of a flat (H0, W0, H1, W1, ...) list, which must cover the second dimension of `tensor`.
inline std::vector<Level> read_levels(
    const std::vector<int64_t>& spatial_shapes, const Tensor& tensor, const char* name) {
  COMER_D2_CHECK(
      spatial_shapes.size() % 2 == 0, "spatial_shapes must hold pairs (H, W), got ",
      spatial_shapes.size(), " numbers");
  std::vector<Level> levels;
  levels.reserve(spatial_shapes.size() / 2);
  int64_t start = 0;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i], width = spatial_shapes[i + 1];
    COMER_D2_CHECK(
        height >= 0 && width >= 0 && height <= kMaxLevelSide && width <= kMaxLevelSide,
        "spatial_shapes must hold sizes between 0 and ", kMaxLevelSide, ", got (", height, ", ",
        width, ")");
    // Every index of a level without pixels is clamped to 0, which must be one that exists.
    const bool has_pixels = height > 0 && width > 0;
    levels.push_back(
        has_pixels ? Level{static_cast<int32_t>(height), static_cast<int32_t>(width),
                           static_cast<int32_t>(start)}
                   : Level{0, 0, 0});
    start += height * width;
    COMER_D2_CHECK(
        start <= kMaxInt32, "spatial_shapes must cover fewer than 2**31 pixels, got ", start);
  }
  COMER_D2_CHECK(
      start == tensor.size(1), "spatial_shapes ", pairs_of(spatial_shapes), " cover ", start,
      " pixels, but ", name, " of shape ", shape_of(tensor), " has ", tensor.size(1));
  return levels;
}

} // namespace comer_d2
