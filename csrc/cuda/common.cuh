// What the CUDA kernels share: types, launches, the table of levels and the samples of an item.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../ms_deform_attn.h"
#include "../token_depthwise_conv.h"

namespace comer_d2::cuda {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// Kernel arguments are limited to 4 KB; a hundred levels is more than anybody has.
constexpr int kMaxLevels = 100;
// Samples of one (query, head) that are in shared memory at a time.
constexpr int kSampleTile = 16;

struct LevelTable {
  Level level[kMaxLevels];
};

// Sizes without the vector, passed to kernels by value.
struct CallSizes {
  int64_t pixels, queries, items; // items: N * Q * M
  int32_t heads, channels, levels, points;
};

template <typename T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T value[4];
};

// kCount channels that are loaded and stored as one.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T value[kCount];
};

__device__ __forceinline__ double real_of(double x) { return x; }
__device__ __forceinline__ float real_of(float x) { return x; }
__device__ __forceinline__ float real_of(__half x) { return __half2float(x); }
__device__ __forceinline__ float real_of(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(RealOf<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// (batch, query, head) of an item, and its place in the tensors.
struct Item {
  int64_t batch, query;
  int32_t head;

  __device__ Item(const CallSizes& sizes, int64_t item)
      : batch(item / sizes.heads / sizes.queries),
        query(item / sizes.heads % sizes.queries),
        head(static_cast<int32_t>(item % sizes.heads)) {}

  __device__ int64_t row(const CallSizes& sizes) const { return batch * sizes.queries + query; }
};

// Rows of samples of one item, in the type that they are stored in. Offsets become locations here,
// logits are left to the caller.
template <typename Real, typename Stored>
struct ItemSamples {
  const Stored* locations;
  const Stored* weights;
  const Real* reference; // null: plain locations and attention weights
  int64_t level_stride;

  __device__ ItemSamples(const Samples& samples, const CallSizes& sizes, const Item& item) {
    const int64_t first = static_cast<int64_t>(item.head) * sizes.levels * sizes.points;
    const int64_t row = item.row(sizes);
    locations =
        static_cast<const Stored*>(samples.locations) + row * samples.locations_stride + 2 * first;
    weights = static_cast<const Stored*>(samples.weights) + row * samples.weights_stride + first;
    reference = samples.reference == nullptr ? nullptr
                                             : static_cast<const Real*>(samples.reference) +
            item.batch * samples.reference_batch_stride +
            item.query * samples.reference_query_stride;
    level_stride = samples.reference_level_stride;
  }

  __device__ __forceinline__ Real weight(int sample) const { return real_of(weights[sample]); }

  __device__ __forceinline__ void axes(
      int sample, int level_index, const Level& level, AxisSample<Real>& x,
      AxisSample<Real>& y) const {
    Real location_x = real_of(locations[2 * sample]);
    Real location_y = real_of(locations[2 * sample + 1]);
    if (reference != nullptr) {
      const Real* point = reference + level_index * level_stride;
      location_x = point[0] + location_x / static_cast<Real>(level.width);
      location_y = point[1] + location_y / static_cast<Real>(level.height);
    }
    x = sample_axis<Real>(pixel_coordinate(location_x, level.width), level.width);
    y = sample_axis<Real>(pixel_coordinate(location_y, level.height), level.height);
  }
};

// A group of neighbouring lanes, a power of two of them, works on one item.
template <typename Real>
__device__ __forceinline__ Real group_max(Real x, int group) {
  for (int step = group / 2; step > 0; step /= 2) {
    const Real other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

template <typename Real>
__device__ __forceinline__ Real group_sum(Real x, int group) {
  for (int step = group / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, step);
  }
  return x;
}

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }

// Largest logit and the reciprocal of the sum of exponentials; 0 and 1 where weights are given.
template <typename Real>
struct Softmax {
  Real largest = Real(0), scale = Real(1);
  bool active;

  template <typename Stored>
  __device__ Softmax(
      const ItemSamples<Real, Stored>& samples, int count, int lane, int group, bool valid)
      : active(samples.reference != nullptr) {
    if (!active) { // the same for all threads of a launch
      return;
    }
    Real most = -INFINITY;
    for (int i = lane; valid && i < count; i += group) {
      most = samples.weight(i) > most ? samples.weight(i) : most;
    }
    largest = group_max(most, group);
    Real sum = Real(0);
    for (int i = lane; valid && i < count; i += group) {
      sum += exp_of(samples.weight(i) - largest);
    }
    scale = Real(1) / group_sum(sum, group);
  }

  __device__ __forceinline__ Real operator()(Real weight) const {
    return active ? exp_of(weight - largest) * scale : weight;
  }
};

// ---------------------------------------------------------------------------------------------
// Host

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(concat(kernel, " did not launch: ", cudaGetErrorString(error)));
  }
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != TORCH_SUCCESS) {
    throw std::runtime_error("the current CUDA stream could not be read");
  }
  return static_cast<cudaStream_t>(stream);
}

inline CallSizes call_sizes(const Sizes& sizes) {
  COMER_D2_CHECK(
      sizes.num_levels <= kMaxLevels, "at most ", kMaxLevels, " levels on CUDA, got ",
      sizes.num_levels);
  COMER_D2_CHECK(
      sizes.heads <= kMaxInt32 && sizes.channels <= kMaxInt32 &&
          sizes.samples_per_head() <= kMaxInt32 / 4,
      "more than 2**31 heads, channels or samples of a head on CUDA");
  return {sizes.pixels, sizes.queries, sizes.batch * sizes.queries * sizes.heads,
          static_cast<int32_t>(sizes.heads), static_cast<int32_t>(sizes.channels),
          static_cast<int32_t>(sizes.num_levels), static_cast<int32_t>(sizes.points)};
}

inline LevelTable level_table(const Sizes& sizes) {
  LevelTable table{};
  for (size_t i = 0; i < sizes.levels.size(); ++i) {
    table.level[i] = sizes.levels[i];
  }
  return table;
}

inline ScalarType real_type(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Contiguous and of type `type`.
inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

inline bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// How many lanes work on one item, and what follows.
struct Launch {
  int group, threads, items_per_block;
  size_t shared; // bytes
  int64_t blocks;

  Launch(const CallSizes& sizes, int channels_per_lane, size_t shared_per_item) {
    const int wanted = (sizes.channels + channels_per_lane - 1) / channels_per_lane;
    for (group = 1; group < wanted && group < kWarp; group *= 2) {
    }
    threads = std::min(256, 64 * group);
    // Every GPU has 48 KB for a block; Turing has no more than 64. A warp's items always fit.
    while (threads > kWarp && threads / group * shared_per_item > 48 * 1024) {
      threads /= 2;
    }
    items_per_block = threads / group;
    shared = items_per_block * shared_per_item;
    blocks = (sizes.items + items_per_block - 1) / items_per_block;
    COMER_D2_CHECK(blocks <= kMaxInt32, "more than 2**31 blocks of queries and heads");
  }
};

// Calls run.operator()<T>() with the type of the call's first tensor.
template <typename Run>
void dispatch(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double:
      return run.template operator()<double>();
    case ScalarType::Half:
      return run.template operator()<__half>();
    case ScalarType::BFloat16:
      return run.template operator()<__nv_bfloat16>();
    default:
      return run.template operator()<float>();
  }
}

// Calls run.operator()<Stored>() with the type of the samples: that of the value, T, or float32.
template <typename T, typename Run>
void dispatch_stored(const Samples& samples, const Run& run) {
  if constexpr (sizeof(T) == 2) {
    if (samples.type != ScalarType::Float) {
      return run.template operator()<T>();
    }
  }
  run.template operator()<RealOf<T>>();
}

// The C++ of the stable ABI throws out of kernels; a device stays selected for the call's duration.
using torch::stable::accelerator::DeviceGuard;

} // namespace comer_d2::cuda
