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

#include <algorithm>

#include "common.cuh"

namespace comer_d2::cuda {
namespace {

// The largest magnitudes of the output's gradient and of the attention weights, as the bits of
// non-negative floats, which are ordered like them; not-a-number comes out on top.
struct Magnitudes {
  unsigned grad, weight;
};

// Fixed point holds 2**62. A pixel's sum has at most one term per corner, sample and query of its
// head. The terms are below grad * weight.
__device__ __forceinline__ double fixed_scale(const Magnitudes* magnitudes, double terms) {
  const double bound = static_cast<double>(__uint_as_float(magnitudes->grad)) *
      static_cast<double>(__uint_as_float(magnitudes->weight)) * terms;
  // A power of two, so that scaling itself rounds nothing.
  return bound > 0 ? exp2(floor(61.0 - log2(bound))) : (bound == 0 ? 1.0 : bound);
}

template <typename T>
__global__ void magnitude_kernel(const T* values, int64_t rows, int64_t stride, int64_t columns, unsigned* largest) {
  float most = 0.0f;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns;
       i += step) {
    // Rounded up: a float64 beyond float32's range becomes infinity, which the reader handles.
    const float x = [&] {
      if constexpr (std::is_same_v<T, double>) {
        return __double2float_ru(fabs(values[i / columns * stride + i % columns]));
      } else {
        return fabsf(real_of(values[i / columns * stride + i % columns]));
      }
    }();
    most = x <= most ? most : x; // not-a-number is kept, unless a number follows it
    if (x != x) {
      atomicMax(largest, 0x7fffffffu);
      most = 0.0f;
    }
  }
  atomicMax(largest, __float_as_uint(most));
}

__global__ void set_one_kernel(unsigned* bits) {
  *bits = __float_as_uint(1.0f);
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

template <typename Real>
struct ValueGrad {
  Real* sums; // null where fixed is used
  unsigned long long* fixed;
  double scale;

  template <int kChannels>
  __device__ __forceinline__ void add(int64_t offset, Real weight, const Real (&grad)[kChannels]) const {
    if (fixed != nullptr) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const double term = static_cast<double>(weight) * static_cast<double>(grad[c]);
        atomicAdd(fixed + offset + c, static_cast<unsigned long long>(__double2ll_rn(term * scale)));
      }
      return;
    }
    if constexpr (kVectorAtomics && std::is_same_v<Real, float> && kChannels % 4 == 0) {
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        add_four(sums + offset + c, weight, grad + c);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        atomicAdd(sums + offset + c, weight * grad[c]);
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

template <typename Real>
struct Outputs {
  Real* locations; // strided as the samples
  Real* weights;
};

template <typename T, int kChannels>
__global__ void __launch_bounds__(256) backward_kernel(
    const T* __restrict__ value,
    const T* __restrict__ grad_output,
    const Samples samples,
    const CallSizes sizes,
    const LevelTable levels,
    const int group,
    RealOf<T>* grad_value,
    unsigned long long* fixed,
    const Magnitudes* magnitudes,
    const Outputs<RealOf<T>> outputs) {
  using Real = RealOf<T>;
  extern __shared__ __align__(32) char shared[];
  constexpr int kRow = kSampleTile + 1;
  const int items_per_block = blockDim.x / group;
  const int local = threadIdx.x / group, lane = threadIdx.x % group;
  Four<Real>* all_weights = reinterpret_cast<Four<Real>*>(shared);
  Four<Real>* all_dots = all_weights + items_per_block * kRow;
  Four<Real>* weights = all_weights + local * kRow;
  Four<Real>* dots = all_dots + local * kRow;
  Four<int32_t>* pixels =
      reinterpret_cast<Four<int32_t>*>(all_dots + items_per_block * kRow) + local * kRow;

  const int64_t index = static_cast<int64_t>(blockIdx.x) * items_per_block + local;
  const bool valid = index < sizes.items;
  const Item item(sizes, valid ? index : 0);
  const ItemSamples<Real> rows(samples, sizes, item);
  const int count = sizes.levels * sizes.points;
  const Softmax<Real> softmax(rows, count, lane, group, valid);
  const int64_t stride = static_cast<int64_t>(sizes.heads) * sizes.channels;
  const int64_t head_channel = static_cast<int64_t>(item.head) * sizes.channels;
  const int64_t first_channel = item.batch * sizes.pixels * stride + head_channel;
  const T* from = value + first_channel;
  const T* grads = grad_output + item.row(sizes) * stride + head_channel;
  const ValueGrad<Real> target{
      grad_value, fixed,
      fixed == nullptr ? 1.0
                       : fixed_scale(
                             magnitudes, static_cast<double>(sizes.queries) * count * 4.0)};
  const int64_t first_sample = static_cast<int64_t>(item.head) * count;
  Real* grad_locations =
      outputs.locations + item.row(sizes) * samples.locations_stride + 2 * first_sample;
  Real* grad_weights = outputs.weights + item.row(sizes) * samples.weights_stride + first_sample;
  Real mean = Real(0); // of the weights' gradients, weighted by the attention

  for (int first = 0; first < count; first += kSampleTile) {
    const int tile = min(kSampleTile, count - first);
    __syncwarp();
    for (int i = lane; valid && i < tile; i += group) {
      const int level_index = (first + i) / sizes.points;
      const Level level = levels.level[level_index];
      AxisSample<Real> x, y;
      rows.axes(first + i, level_index, level, x, y);
      const Corners<Real> found = corners<Real>(x, y, level.width, level.start);
      const Real attention = softmax(rows.weights[first + i]);
      for (int corner = 0; corner < 4; ++corner) {
        pixels[i].value[corner] = found.pixel[corner];
        weights[i].value[corner] = found.weight[corner] * attention;
        dots[i].value[corner] = Real(0);
      }
    }
    __syncwarp();
    for (int base = 0; base < sizes.channels; base += group * kChannels) {
      const int channel = base + lane * kChannels;
      const bool active = valid && channel < sizes.channels;
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
                  first_channel + pixel.value[corner] * stride + channel, weight.value[corner],
                  grad);
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
      const Real attention = softmax(rows.weights[first + i]);
      // By location: one level is width pixels wide. By offset: offsets are in pixels.
      const Real width = softmax.active ? Real(1) : static_cast<Real>(level.width);
      const Real height = softmax.active ? Real(1) : static_cast<Real>(level.height);
      grad_locations[2 * (first + i)] = attention * grad.x * width;
      grad_locations[2 * (first + i) + 1] = attention * grad.y * height;
      grad_weights[first + i] = grad.attention;
      mean += attention * grad.attention;
    }
  }
  if (softmax.active) {
    mean = group_sum(mean, group);
    for (int first = 0; first < count; first += kSampleTile) {
      // The same samples as above, so every lane reads what it wrote itself.
      for (int i = first + lane; valid && i < min(first + kSampleTile, count); i += group) {
        grad_weights[i] = softmax(rows.weights[i]) * (grad_weights[i] - mean);
      }
    }
  }
}

template <typename Real>
__global__ void from_fixed_kernel(
    const long long* fixed, const Magnitudes* magnitudes, double terms, int64_t count, Real* sums) {
  const double scale = fixed_scale(magnitudes, terms);
  const bool usable = scale > 0 && scale < INFINITY;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    sums[i] = usable ? static_cast<Real>(static_cast<double>(fixed[i]) / scale) : NAN;
  }
}

// The classical way: a thread per output channel, every gradient added atomically.
template <typename T>
__global__ void __launch_bounds__(256) baseline_kernel(
    const T* __restrict__ value,
    const T* __restrict__ grad_output,
    const Samples samples,
    const CallSizes sizes,
    const LevelTable levels,
    RealOf<T>* grad_value,
    const Outputs<RealOf<T>> outputs) {
  using Real = RealOf<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= sizes.items * sizes.channels) {
    return;
  }
  const Item item(sizes, index / sizes.channels);
  const ItemSamples<Real> rows(samples, sizes, item);
  const int64_t stride = static_cast<int64_t>(sizes.heads) * sizes.channels;
  const int64_t first_channel = item.batch * sizes.pixels * stride +
      static_cast<int64_t>(item.head) * sizes.channels + index % sizes.channels;
  const int count = sizes.levels * sizes.points;
  const int64_t first_sample = static_cast<int64_t>(item.head) * count;
  Real* grad_locations =
      outputs.locations + item.row(sizes) * samples.locations_stride + 2 * first_sample;
  Real* grad_weights = outputs.weights + item.row(sizes) * samples.weights_stride + first_sample;
  const Real grad = real_of(grad_output[index]);
  for (int sample = 0; sample < count; ++sample) {
    const int level_index = sample / sizes.points;
    const Level level = levels.level[level_index];
    AxisSample<Real> x, y;
    rows.axes(sample, level_index, level, x, y);
    const Corners<Real> found = corners<Real>(x, y, level.width, level.start);
    const Real attention = rows.weights[sample];
    Real dots[4];
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t offset = first_channel + found.pixel[corner] * stride;
      dots[corner] = grad * real_of(value[offset]);
      atomicAdd(grad_value + offset, found.weight[corner] * attention * grad);
    }
    const SampleGrad<Real> part = sample_grad<Real>(x, y, dots[0], dots[1], dots[2], dots[3]);
    atomicAdd(grad_locations + 2 * sample, attention * part.x * static_cast<Real>(level.width));
    atomicAdd(
        grad_locations + 2 * sample + 1, attention * part.y * static_cast<Real>(level.height));
    atomicAdd(grad_weights + sample, part.attention);
  }
}

struct Backward {
  const Sizes& sizes;
  const Tensor& value;
  const Tensor& grad_output;
  const Samples& samples;
  Tensor& grad_value; // zeros in the type of the arithmetic
  void* grad_locations;
  void* grad_weights;
  bool deterministic, baseline;

  template <typename T>
  void operator()() const {
    constexpr int kWide = 16 / sizeof(T);
    if (baseline) {
      run_baseline<T>();
    } else if (
        sizes.channels % kWide == 0 && aligned(value.const_data_ptr()) &&
        aligned(grad_output.const_data_ptr())) {
      run<T, kWide>();
    } else {
      run<T, 1>();
    }
  }

  template <typename T>
  Outputs<RealOf<T>> outputs() const {
    return {static_cast<RealOf<T>*>(grad_locations), static_cast<RealOf<T>*>(grad_weights)};
  }

  template <typename T, int kChannels>
  void run() const {
    using Real = RealOf<T>;
    const CallSizes call = call_sizes(sizes);
    const Launch launch(call, kChannels);
    const size_t shared = launch.items_per_block * (kSampleTile + 1) *
        (2 * sizeof(Four<Real>) + sizeof(Four<int32_t>));
    if (shared > 48 * 1024) {
      cudaFuncSetAttribute(
          backward_kernel<T, kChannels>, cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(shared));
    }
    const cudaStream_t stream = current_stream(value);
    const int64_t count = grad_value.numel();
    Tensor fixed, magnitudes;
    if (deterministic) {
      fixed = new_zeros(grad_value, grad_value.sizes(), ScalarType::Long);
      magnitudes = new_zeros(grad_value, {{2}}, ScalarType::Int);
      unsigned* largest = static_cast<unsigned*>(magnitudes.mutable_data_ptr());
      magnitude_kernel<T><<<256, 256, 0, stream>>>(
          static_cast<const T*>(grad_output.const_data_ptr()), 1, 0, grad_output.numel(), largest);
      if (samples.reference == nullptr) {
        const int64_t columns = sizes.samples_per_query();
        magnitude_kernel<Real><<<256, 256, 0, stream>>>(
            static_cast<const Real*>(samples.weights), sizes.batch * sizes.queries,
            samples.weights_stride, columns, largest + 1);
      } else { // a softmax stays below 1
        set_one_kernel<<<1, 1, 0, stream>>>(largest + 1);
      }
      check_launch("the magnitudes of ms_deform_attn's backward");
    }
    const Magnitudes* known =
        deterministic ? static_cast<const Magnitudes*>(magnitudes.const_data_ptr()) : nullptr;
    backward_kernel<T, kChannels>
        <<<static_cast<unsigned>(launch.blocks), launch.threads, shared, stream>>>(
            static_cast<const T*>(value.const_data_ptr()),
            static_cast<const T*>(grad_output.const_data_ptr()), samples, call, level_table(sizes),
            launch.group, static_cast<Real*>(grad_value.mutable_data_ptr()),
            deterministic ? static_cast<unsigned long long*>(fixed.mutable_data_ptr()) : nullptr,
            known, outputs<T>());
    check_launch("the backward of ms_deform_attn");
    if (deterministic) {
      from_fixed_kernel<Real><<<1024, 256, 0, stream>>>(
          static_cast<const long long*>(fixed.const_data_ptr()), known,
          static_cast<double>(sizes.queries) * sizes.samples_per_head() * 4.0, count,
          static_cast<Real*>(grad_value.mutable_data_ptr()));
      check_launch("the end of ms_deform_attn's deterministic backward");
    }
  }

  template <typename T>
  void run_baseline() const {
    const CallSizes call = call_sizes(sizes);
    const int64_t blocks = (call.items * call.channels + 255) / 256;
    COMER_D2_CHECK(blocks <= kMaxInt32, "more than 2**31 blocks of output channels");
    baseline_kernel<T><<<static_cast<unsigned>(blocks), 256, 0, current_stream(value)>>>(
        static_cast<const T*>(value.const_data_ptr()),
        static_cast<const T*>(grad_output.const_data_ptr()), samples, call, level_table(sizes),
        static_cast<RealOf<T>*>(grad_value.mutable_data_ptr()), outputs<T>());
    check_launch("the baseline backward of ms_deform_attn");
  }
};

using ThreeGrads = std::tuple<Tensor, Tensor, Tensor>;

ThreeGrads run(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool deterministic,
    bool baseline) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  const ScalarType real = real_type(value);
  if (sizes.empty()) {
    return {new_zeros(value, value.sizes()),
            new_zeros(sampling_locations, sampling_locations.sizes()),
            new_zeros(attention_weights, attention_weights.sizes())};
  }
  const DeviceGuard guard(value.get_device_index());
  const Tensor values = contiguous(value), grads = contiguous(grad_output);
  const Tensor locations = as_type(sampling_locations, real);
  const Tensor weights = as_type(attention_weights, real);
  Tensor grad_value = new_zeros(value, value.sizes(), real);
  // The baseline adds to these atomically, the kernel writes every number of them.
  Tensor grad_locations = baseline ? new_zeros(locations, locations.sizes())
                                   : new_empty(locations, locations.sizes());
  Tensor grad_weights =
      baseline ? new_zeros(weights, weights.sizes()) : new_empty(weights, weights.sizes());
  dispatch(
      value.scalar_type(),
      Backward{sizes, values, grads, samples_of(locations, weights, sizes), grad_value,
               grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), deterministic,
               baseline});
  return {as_type(grad_value, value.scalar_type()),
          as_type(grad_locations, sampling_locations.scalar_type()),
          as_type(grad_weights, attention_weights.scalar_type())};
}

ThreeGrads backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool deterministic) {
  return run(
      grad_output, value, spatial_shapes, sampling_locations, attention_weights, deterministic,
      false);
}

ThreeGrads baseline(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run(
      grad_output, value, spatial_shapes, sampling_locations, attention_weights, false, true);
}

std::tuple<Tensor, Tensor> fused(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& projected, const Tensor& reference_points, bool deterministic) {
  const Sizes sizes = check_fused_arguments(value, spatial_shapes, projected, reference_points);
  check_grad_output(grad_output, value, sizes);
  const ScalarType real = real_type(value);
  if (sizes.empty()) {
    return {new_zeros(value, value.sizes()), new_zeros(projected, projected.sizes())};
  }
  const DeviceGuard guard(value.get_device_index());
  const Tensor values = contiguous(value), grads = contiguous(grad_output);
  const Tensor raw = as_type(projected, real), reference = as_type(reference_points, real);
  Tensor grad_value = new_zeros(value, value.sizes(), real);
  Tensor grad_raw = new_empty(raw, raw.sizes());
  char* start = static_cast<char*>(grad_raw.mutable_data_ptr());
  dispatch(
      value.scalar_type(),
      Backward{sizes, values, grads, fused_samples_of(raw, reference, sizes), grad_value, start,
               start + 2 * sizes.samples_per_query() * grad_raw.element_size(), deterministic,
               false});
  return {as_type(grad_value, value.scalar_type()), as_type(grad_raw, projected.scalar_type())};
}

} // namespace
} // namespace comer_d2::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(comer_d2, m) {
  m.def(
      "ms_deform_attn_baseline_backward(Tensor grad_output, Tensor value, "
      "SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CUDA, m) {
  m.impl("ms_deform_attn_backward", TORCH_BOX(&comer_d2::cuda::backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&comer_d2::cuda::fused));
  m.impl("ms_deform_attn_baseline_backward", TORCH_BOX(&comer_d2::cuda::baseline));
}
