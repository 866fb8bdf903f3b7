// The backward on CUDA.
//
// Laid out as the forward. Of each sample every lane has part of the dot products of the four corners
// with the output's gradient; they are summed over the group by shuffles and put into shared memory,
// from where the lanes take whole samples and compute the gradients of locations and weights. The
// value's gradient is added atomically in float32 (float64 for float64).
//
// Floating-point addition in the order of arrival is not reproducible. Where determinism is asked
// for, the value's gradient is added in 64-bit fixed point instead, whose sums do not depend on
// the order; the unit comes from the largest magnitudes of the call, so that no sum overflows.

#include <limits>

#include "common.cuh"

namespace comer_d2::cuda {
namespace {

// The largest finite magnitudes of the output's gradient and of the attention weights, as the bits of
// non-negative floats, which are ordered like them.
struct Magnitudes {
  unsigned grad, weight;
};

template <typename T>
__global__ void magnitude_kernel(const T* values, int64_t rows, int64_t stride, int64_t columns, unsigned* largest) {
  float most = 0.0f;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns;
       i += step) {
    // What is not finite matters only where it is added, and is found there.
    const RealOf<T> x = fabs(real_of(values[i / columns * stride + i % columns]));
    if (x < RealOf<T>(INFINITY)) {
      if constexpr (std::is_same_v<T, double>) {
        most = fmaxf(most, __double2float_ru(x)); // infinity beyond float32, which the reader handles
      } else {
        most = fmaxf(most, x);
      }
    }
  }
  atomicMax(largest, __float_as_uint(most));
}

// What fixed point is multiplied with, and whether something came that it cannot hold.
struct FixedPoint {
  double scale;
  int not_finite;
};

// Fixed point holds 2**62. A pixel's sum has at most one term per corner, sample and
// query of its head, each below grad * weight; a softmax's weights are below 1. No term is above
// `largest_term`, the largest number of the arithmetic, or `not_finite` is set.
__global__ void scale_kernel(
    const Magnitudes* magnitudes, const bool softmax, const double terms, const double largest_term,
    FixedPoint* point) {
  const double weight = softmax ? 1.0 : static_cast<double>(__uint_as_float(magnitudes->weight));
  const double grad = static_cast<double>(__uint_as_float(magnitudes->grad));
  const double bound = fmin(grad * weight, largest_term) * terms;
  // A power of two, so that scaling itself rounds nothing, that float32 can hold.
  const double scale = bound > 0 ? exp2(fmin(floor(61.0 - log2(bound)), 126.0)) : 1.0;
  *point = {scale, !(bound < INFINITY)};
}

// Hopper adds four floats in one instruction.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kVectorAtomics = true;
__device__ __forceinline__ void add_four(float* to, float weight, const float* grad) {
  atomicAdd(
      reinterpret_cast<float4*>(to),
      make_float4(weight * grad[0], weight * grad[1], weight * grad[2], weight * grad[3]));
}
#else
constexpr bool kVectorAtomics = false;
[[maybe_unused]] __device__ __forceinline__ void add_four(float*, float, const float*) {}
#endif

__device__ __forceinline__ long long fixed_of(float x) { return __float2ll_rn(x); }
__device__ __forceinline__ long long fixed_of(double x) { return __double2ll_rn(x); }

// Lanes that work on the channels from `base` on: all of the group, but for the last tile.
__host__ __device__ __forceinline__ int lanes_at(int channels, int base, int group, int per_lane) {
  const int wanted = (channels - base) / per_lane;
  return wanted < group ? wanted : group;
}

template <typename Real>
struct ValueGrad {
  Real* sums;
  unsigned long long* fixed; // null where sums are used
  FixedPoint* point;
  Real scale;

  // `tile` is the first channel of the group's tile, which `lanes` lanes share. Fixed point lies
  // there with the lanes side by side, so that one instruction of a group adds to whole sectors.
  template <int kChannels>
  __device__ __forceinline__ void add(
      int64_t tile, int lane, int lanes, Real weight, const Real (&grad)[kChannels]) const {
    if (fixed != nullptr) {
      bool finite = true;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const Real term = weight * grad[c];
        finite = finite && fabs(term) < Real(INFINITY);
        atomicAdd(
            fixed + tile + c * lanes + lane,
            static_cast<unsigned long long>(fixed_of(term * scale)));
      }
      if (!finite) {
        point->not_finite = 1;
      }
      return;
    }
    Real* to = sums + tile + lane * kChannels;
    if constexpr (kVectorAtomics && std::is_same_v<Real, float> && kChannels % 4 == 0) {
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        add_four(to + c, weight, grad + c);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        atomicAdd(to + c, weight * grad[c]);
      }
    }
  }
};

// Sums four numbers over a group. In a group of four lanes or more every lane ends with one of the
// sums, that of corner `lane % 4`, in dots[0]; in smaller groups every lane has all four.
template <typename Real>
__device__ __forceinline__ void group_dots(Real (&dots)[4], int lane, int group) {
  if (group < 4) {
    for (int corner = 0; corner < 4; ++corner) {
      dots[corner] = group_sum(dots[corner], group);
    }
    return;
  }
  // Each step hands half of the numbers to the partner: 2 + 1 shuffles instead of 4 + 4.
  const bool upper = lane & 2, odd = lane & 1;
  const Real give0 = upper ? dots[0] : dots[2], give1 = upper ? dots[1] : dots[3];
  Real keep0 = upper ? dots[2] : dots[0], keep1 = upper ? dots[3] : dots[1];
  keep0 += __shfl_xor_sync(kAllLanes, give0, 2);
  keep1 += __shfl_xor_sync(kAllLanes, give1, 2);
  Real mine = odd ? keep1 : keep0;
  mine += __shfl_xor_sync(kAllLanes, odd ? keep0 : keep1, 1);
  for (int step = 4; step < group; step *= 2) {
    mine += __shfl_xor_sync(kAllLanes, mine, step);
  }
  dots[0] = mine;
}

template <typename Stored>
struct Outputs {
  Stored* locations; // strided as the samples
  Stored* weights;
};

// Samples of a head whose weights' gradients are kept in shared memory until their softmax's is known,
// where the output's type would round them in between.
constexpr int kMostKept = 32;

template <typename T, typename Stored, int kChannels>
__global__ void __launch_bounds__(256) backward_kernel(
    const T* __restrict__ value,
    const T* __restrict__ grad_output,
    const Samples samples,
    const CallSizes sizes,
    const LevelTable levels,
    const int group,
    RealOf<T>* grad_value,
    unsigned long long* fixed,
    FixedPoint* point,
    const Outputs<Stored> outputs) {
  using Real = RealOf<T>;
  constexpr bool kKeep = !std::is_same_v<Stored, Real>;
  extern __shared__ __align__(32) char shared[];
  constexpr int kRow = kSampleTile + 1;
  const int items_per_block = blockDim.x / group;
  const int local = threadIdx.x / group, lane = threadIdx.x % group;
  Four<Real>* all_weights = reinterpret_cast<Four<Real>*>(shared);
  Four<Real>* all_dots = all_weights + items_per_block * kRow;
  Four<Real>* weights = all_weights + local * kRow;
  Four<Real>* dots = all_dots + local * kRow;
  Four<int32_t>* all_pixels = reinterpret_cast<Four<int32_t>*>(all_dots + items_per_block * kRow);
  Four<int32_t>* pixels = all_pixels + local * kRow;

  const int64_t index = static_cast<int64_t>(blockIdx.x) * items_per_block + local;
  const bool valid = index < sizes.items;
  const Item item(sizes, valid ? index : 0);
  const ItemSamples<Real, Stored> rows(samples, sizes, item);
  const int count = sizes.levels * sizes.points;
  Real* kept = reinterpret_cast<Real*>(all_pixels + items_per_block * kRow) + local * count;
  const Softmax<Real> softmax(rows, count, lane, group, valid);
  const int64_t stride = static_cast<int64_t>(sizes.heads) * sizes.channels;
  const int64_t head_channel = static_cast<int64_t>(item.head) * sizes.channels;
  const int64_t first_channel = item.batch * sizes.pixels * stride + head_channel;
  const T* from = value + first_channel;
  const T* grads = grad_output + item.row(sizes) * stride + head_channel;
  const ValueGrad<Real> target{
      grad_value, fixed, point, fixed == nullptr ? Real(1) : static_cast<Real>(point->scale)};
  const int64_t first_sample = static_cast<int64_t>(item.head) * count;
  Stored* grad_locations =
      outputs.locations + item.row(sizes) * samples.locations_stride + 2 * first_sample;
  Stored* grad_weights = outputs.weights + item.row(sizes) * samples.weights_stride + first_sample;
  Real mean = Real(0); // of the weights' gradients, weighted by the attention

  for (int first = 0; first < count; first += kSampleTile) {
    const int tile = min(kSampleTile, count - first);
    __syncwarp();
    for (int i = lane; valid && i < tile; i += group) {
      const int level_index = (first + i) / sizes.points;
      const Level level = levels.level[level_index];
      AxisSample<Real> x, y;
      rows.axes(first + i, level_index, level, x, y);
      Corners<Real> found = corners<Real>(x, y, level.width, level.start);
      weigh_for_grad<Real>(found, x, y, softmax(rows.weight(first + i)));
      for (int corner = 0; corner < 4; ++corner) {
        pixels[i].value[corner] = found.pixel[corner];
        weights[i].value[corner] = found.weight[corner];
        dots[i].value[corner] = Real(0);
      }
    }
    __syncwarp();
    for (int base = 0; base < sizes.channels; base += group * kChannels) {
      const int channel = base + lane * kChannels;
      const bool active = valid && channel < sizes.channels;
      const int lanes = lanes_at(sizes.channels, base, group, kChannels);
      Real grad[kChannels] = {};
      if (active) {
        const Pack<T, kChannels> pack =
            *reinterpret_cast<const Pack<T, kChannels>*>(grads + channel);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          grad[c] = real_of(pack.value[c]);
        }
      }
      // The items of a warp have equally many samples: all lanes reach every shuffle.
      for (int i = 0; i < tile; ++i) {
        Real sums[4] = {};
        if (active) {
          const Four<int32_t> pixel = pixels[i];
          const Four<Real> weight = weights[i];
          Pack<T, kChannels> pack[4];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            pack[corner] = *reinterpret_cast<const Pack<T, kChannels>*>(
                from + pixel.value[corner] * stride + channel);
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              sums[corner] += grad[c] * real_of(pack[corner].value[c]);
            }
            if (weight.value[corner] != Real(0)) { // outside, or on the border: nothing to add
              target.add(
                  first_channel + pixel.value[corner] * stride + base, lane, lanes,
                  weight.value[corner], grad);
            }
          }
        }
        group_dots(sums, lane, group);
        if (group < 4) {
          for (int corner = lane; corner < 4; corner += group) {
            dots[i].value[corner] += sums[corner];
          }
        } else if (lane < 4) {
          dots[i].value[lane] += sums[0];
        }
      }
    }
    __syncwarp();
    for (int i = lane; valid && i < tile; i += group) {
      const int level_index = (first + i) / sizes.points;
      const Level level = levels.level[level_index];
      AxisSample<Real> x, y;
      rows.axes(first + i, level_index, level, x, y);
      const Four<Real> dot = dots[i];
      const SampleGrad<Real> grad = sample_grad<Real>(
          x, y, dot.value[0], dot.value[1], dot.value[2], dot.value[3]);
      const Real attention = softmax(rows.weight(first + i));
      const bool moves = touches<Real>(x, y);
      // By location: one level is width pixels wide. By offset: offsets are in pixels.
      const Real width = softmax.active ? Real(1) : static_cast<Real>(level.width);
      const Real height = softmax.active ? Real(1) : static_cast<Real>(level.height);
      grad_locations[2 * (first + i)] =
          narrow<Stored>(moves ? attention * grad.x * width : Real(0));
      grad_locations[2 * (first + i) + 1] =
          narrow<Stored>(moves ? attention * grad.y * height : Real(0));
      if (kKeep && softmax.active) {
        kept[first + i] = grad.attention;
      } else {
        grad_weights[first + i] = narrow<Stored>(grad.attention);
      }
      mean += attention * grad.attention;
    }
  }
  if (softmax.active) {
    mean = group_sum(mean, group);
    for (int first = 0; first < count; first += kSampleTile) {
      // The same samples as above, so every lane reads what it wrote itself.
      for (int i = first + lane; valid && i < min(first + kSampleTile, count); i += group) {
        Real raw;
        if constexpr (kKeep) {
          raw = kept[i];
        } else {
          raw = grad_weights[i];
        }
        grad_weights[i] = narrow<Stored>(softmax(rows.weight(i)) * (raw - mean));
      }
    }
  }
}

// Puts the channels of fixed point, which lie as ValueGrad says, in order.
template <typename Real>
__global__ void from_fixed_kernel(
    const long long* fixed, const FixedPoint* point, const int channels, const int group,
    const int per_lane, const int64_t count, Real* sums) {
  const double unit = 1.0 / point->scale;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const int channel = static_cast<int>(i % channels), tile = group * per_lane;
    const int within = channel % tile;
    const int lanes = lanes_at(channels, channel - within, group, per_lane);
    const int64_t from = i - within + within % per_lane * lanes + within / per_lane;
    sums[i] = point->not_finite ? NAN : static_cast<Real>(static_cast<double>(fixed[from]) * unit);
  }
}

struct Backward {
  const Sizes& sizes;
  const Tensor& value;
  const Tensor& grad_output;
  const Samples& samples;
  Tensor& grad_value; // zeros in the type of the arithmetic
  void* grad_locations; // in the type of the samples
  void* grad_weights;
  bool deterministic;

  template <typename T>
  void operator()() const {
    dispatch_stored<T>(samples, [this]<typename Stored>() { choose<T, Stored>(); });
  }

  template <typename T, typename Stored>
  void choose() const {
    // Four channels a lane for half types, too: one 16-byte atomic a corner, and the neighbour's
    // goes on where it ends. Eight were measured to take half as long again on an H200.
    constexpr int kWide = sizeof(T) == 8 ? 2 : 4;
    if (sizes.channels % kWide == 0 && aligned(value.const_data_ptr()) &&
        aligned(grad_output.const_data_ptr())) {
      run<T, Stored, kWide>();
    } else {
      run<T, Stored, 1>();
    }
  }

  template <typename T, typename Stored, int kChannels>
  void run() const {
    using Real = RealOf<T>;
    const CallSizes call = call_sizes(sizes);
    const bool softmax = samples.reference != nullptr;
    const bool keeps = softmax && !std::is_same_v<Stored, Real>;
    const Launch launch(
        call, kChannels,
        (kSampleTile + 1) * (2 * sizeof(Four<Real>) + sizeof(Four<int32_t>)) +
            (keeps ? sizes.samples_per_head() * sizeof(Real) : 0));
    const cudaStream_t stream = current_stream(value);
    Tensor fixed, made;
    if (deterministic) {
      fixed = new_zeros(grad_value, grad_value.sizes(), ScalarType::Long);
      made = fixed_point<T, Stored>(softmax);
    }
    FixedPoint* point = deterministic ? static_cast<FixedPoint*>(made.mutable_data_ptr()) : nullptr;
    backward_kernel<T, Stored, kChannels>
        <<<static_cast<unsigned>(launch.blocks), launch.threads, launch.shared, stream>>>(
            static_cast<const T*>(value.const_data_ptr()),
            static_cast<const T*>(grad_output.const_data_ptr()), samples, call, level_table(sizes),
            launch.group, static_cast<Real*>(grad_value.mutable_data_ptr()),
            deterministic ? static_cast<unsigned long long*>(fixed.mutable_data_ptr()) : nullptr,
            point,
            Outputs<Stored>{
                static_cast<Stored*>(grad_locations), static_cast<Stored*>(grad_weights)});
    check_launch("the backward of ms_deform_attn");
    if (deterministic) {
      from_fixed_kernel<Real><<<1024, 256, 0, stream>>>(
          static_cast<const long long*>(fixed.const_data_ptr()), point, call.channels, launch.group,
          kChannels, grad_value.numel(), static_cast<Real*>(grad_value.mutable_data_ptr()));
      check_launch("the end of ms_deform_attn's deterministic backward");
    }
  }

  template <typename T, typename Stored>
  Tensor fixed_point(bool softmax) const {
    const cudaStream_t stream = current_stream(value);
    Tensor magnitudes = new_zeros(grad_value, {{2}}, ScalarType::Int);
    Tensor point = new_empty(grad_value, {{sizeof(FixedPoint) / sizeof(double)}}, ScalarType::Double);
    unsigned* largest = static_cast<unsigned*>(magnitudes.mutable_data_ptr());
    magnitude_kernel<T><<<256, 256, 0, stream>>>(
        static_cast<const T*>(grad_output.const_data_ptr()), 1, 0, grad_output.numel(), largest);
    if (!softmax) {
      magnitude_kernel<Stored><<<256, 256, 0, stream>>>(
          static_cast<const Stored*>(samples.weights), sizes.batch * sizes.queries,
          samples.weights_stride, sizes.samples_per_query(), largest + 1);
    }
    scale_kernel<<<1, 1, 0, stream>>>(
        static_cast<const Magnitudes*>(magnitudes.const_data_ptr()), softmax,
        static_cast<double>(sizes.queries) * sizes.samples_per_head() * 4.0,
        static_cast<double>(std::numeric_limits<RealOf<T>>::max()),
        static_cast<FixedPoint*>(point.mutable_data_ptr()));
    check_launch("the magnitudes of ms_deform_attn's backward");
    return point;
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool deterministic) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  if (sizes.empty()) {
    return {new_zeros(value, value.sizes()),
            new_zeros(sampling_locations, sampling_locations.sizes()),
            new_zeros(attention_weights, attention_weights.sizes())};
  }
  const DeviceGuard guard(value.get_device_index());
  const Tensor values = contiguous(value), grads = contiguous(grad_output);
  const Tensor locations = contiguous(sampling_locations), weights = contiguous(attention_weights);
  Tensor grad_value = new_zeros(value, value.sizes(), real_type(value));
  Tensor grad_locations = new_empty(locations, locations.sizes());
  Tensor grad_weights = new_empty(weights, weights.sizes());
  dispatch(
      value.scalar_type(),
      Backward{sizes, values, grads, samples_of(locations, weights, sizes), grad_value,
               grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), deterministic});
  return {as_type(grad_value, value.scalar_type()), grad_locations, grad_weights};
}

std::tuple<Tensor, Tensor> fused(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& projected, const Tensor& reference_points, bool deterministic) {
  const Sizes sizes = check_fused_arguments(value, spatial_shapes, projected, reference_points);
  check_grad_output(grad_output, value, sizes);
  if (sizes.empty()) {
    return {new_zeros(value, value.sizes()), new_zeros(projected, projected.sizes())};
  }
  const DeviceGuard guard(value.get_device_index());
  const ScalarType real = real_type(value);
  const Tensor values = contiguous(value), grads = contiguous(grad_output);
  const Tensor reference = as_type(reference_points, real);
  const Tensor raw = sizes.samples_per_head() <= kMostKept ? contiguous(projected)
                                                           : as_type(projected, real);
  Tensor grad_value = new_zeros(value, value.sizes(), real);
  Tensor grad_raw = new_empty(raw, raw.sizes());
  char* start = static_cast<char*>(grad_raw.mutable_data_ptr());
  dispatch(
      value.scalar_type(),
      Backward{sizes, values, grads, fused_samples_of(raw, reference, sizes), grad_value, start,
               start + 2 * sizes.samples_per_query() * grad_raw.element_size(), deterministic});
  return {as_type(grad_value, value.scalar_type()), as_type(grad_raw, projected.scalar_type())};
}

} // namespace
} // namespace comer_d2::cuda

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CUDA, m) {
  m.impl("ms_deform_attn_backward", TORCH_BOX(&comer_d2::cuda::backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&comer_d2::cuda::fused));
}
