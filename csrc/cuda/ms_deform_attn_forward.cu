// The forward on CUDA.
//
// A group of lanes works on one (batch, query, head): first each lane computes the corner pixels and
// weights of some samples and puts them into shared memory, then every lane reads them all and sums
// its own channels, 16 bytes of the value a load. A group lies within a warp, so a warp's barrier
// is all that is needed, and small heads share a warp.

#include "common.cuh"

namespace comer_d2::cuda {
namespace {

template <typename T, typename Stored, int kChannels>
__global__ void __launch_bounds__(256) forward_kernel(
    const T* __restrict__ value,
    const Samples samples,
    const CallSizes sizes,
    const LevelTable levels,
    const int group,
    T* __restrict__ output) {
  using Real = RealOf<T>;
  extern __shared__ __align__(32) char shared[];
  // One more than a tile per item: neighbouring items start in different banks.
  constexpr int kRow = kSampleTile + 1;
  const int items_per_block = blockDim.x / group;
  const int local = threadIdx.x / group, lane = threadIdx.x % group;
  Four<Real>* weights = reinterpret_cast<Four<Real>*>(shared) + local * kRow;
  Four<int32_t>* pixels = reinterpret_cast<Four<int32_t>*>(
                              reinterpret_cast<Four<Real>*>(shared) + items_per_block * kRow) +
      local * kRow;

  const int64_t index = static_cast<int64_t>(blockIdx.x) * items_per_block + local;
  const bool valid = index < sizes.items;
  const Item item(sizes, valid ? index : 0); // lanes without an item stay for the barriers
  const ItemSamples<Real, Stored> rows(samples, sizes, item);
  const int count = sizes.levels * sizes.points;
  const Softmax<Real> softmax(rows, count, lane, group, valid);
  const int64_t stride = static_cast<int64_t>(sizes.heads) * sizes.channels;
  const int64_t head_channel = static_cast<int64_t>(item.head) * sizes.channels;
  const T* from = value + item.batch * sizes.pixels * stride + head_channel;
  T* to = output + item.row(sizes) * stride + head_channel;

  for (int base = 0; base < sizes.channels; base += group * kChannels) {
    const int channel = base + lane * kChannels;
    const bool active = valid && channel < sizes.channels;
    Real sums[kChannels] = {};
    for (int first = 0; first < count; first += kSampleTile) {
      const int tile = min(kSampleTile, count - first);
      __syncwarp();
      for (int i = lane; valid && i < tile; i += group) {
        const int level_index = (first + i) / sizes.points;
        const Level level = levels.level[level_index];
        AxisSample<Real> x, y;
        rows.axes(first + i, level_index, level, x, y);
        const Corners<Real> found = corners<Real>(x, y, level.width, level.start);
        const Real attention = softmax(rows.weight(first + i));
        for (int corner = 0; corner < 4; ++corner) {
          pixels[i].value[corner] = found.pixel[corner];
          weights[i].value[corner] = found.weight[corner] * attention;
        }
      }
      __syncwarp();
      if (active) {
#pragma unroll 2
        for (int i = 0; i < tile; ++i) {
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
              sums[c] += weight.value[corner] * real_of(pack[corner].value[c]);
            }
          }
        }
      }
    }
    if (active) {
      Pack<T, kChannels> pack;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        pack.value[c] = narrow<T>(sums[c]);
      }
      *reinterpret_cast<Pack<T, kChannels>*>(to + channel) = pack;
    }
  }
}

template <typename T, typename Stored, int kChannels>
void launch(
    const CallSizes& sizes, const LevelTable& levels, const Tensor& value, const Samples& samples,
    Tensor& output) {
  const Launch launch(
      sizes, kChannels, (kSampleTile + 1) * (sizeof(Four<RealOf<T>>) + sizeof(Four<int32_t>)));
  forward_kernel<T, Stored, kChannels>
      <<<static_cast<unsigned>(launch.blocks), launch.threads, launch.shared, current_stream(value)>>>(
          static_cast<const T*>(value.const_data_ptr()), samples, sizes, levels, launch.group,
          static_cast<T*>(output.mutable_data_ptr()));
  check_launch("the forward of ms_deform_attn");
}

struct Forward {
  const Sizes& sizes;
  const Tensor& value; // contiguous, as everything that samples points at
  const Samples& samples;
  Tensor& output;

  template <typename T>
  void operator()() const {
    dispatch_stored<T>(samples, [this]<typename Stored>() { run<T, Stored>(); });
  }

  template <typename T, typename Stored>
  void run() const {
    const CallSizes call = call_sizes(sizes);
    const LevelTable levels = level_table(sizes);
    constexpr int kWide = 16 / sizeof(T);
    if (sizes.channels % kWide == 0 && aligned(value.const_data_ptr())) {
      launch<T, Stored, kWide>(call, levels, value, samples, output);
    } else {
      launch<T, Stored, 1>(call, levels, value, samples, output);
    }
  }
};

Tensor forward(
    const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const std::vector<int64_t> shape{sizes.batch, sizes.queries, sizes.heads * sizes.channels};
  if (sizes.empty()) {
    return new_zeros(value, shape);
  }
  const DeviceGuard guard(value.get_device_index());
  const Tensor values = contiguous(value);
  const Tensor locations = contiguous(sampling_locations), weights = contiguous(attention_weights);
  Tensor output = new_empty(value, shape);
  dispatch(
      value.scalar_type(), Forward{sizes, values, samples_of(locations, weights, sizes), output});
  return output;
}

Tensor fused(
    const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& projected,
    const Tensor& reference_points) {
  const Sizes sizes = check_fused_arguments(value, spatial_shapes, projected, reference_points);
  const std::vector<int64_t> shape{sizes.batch, sizes.queries, sizes.heads * sizes.channels};
  if (sizes.empty()) {
    return new_zeros(value, shape);
  }
  const DeviceGuard guard(value.get_device_index());
  const Tensor values = contiguous(value), raw = contiguous(projected);
  const Tensor reference = as_type(reference_points, real_type(value));
  Tensor output = new_empty(value, shape);
  dispatch(
      value.scalar_type(), Forward{sizes, values, fused_samples_of(raw, reference, sizes), output});
  return output;
}

} // namespace
} // namespace comer_d2::cuda

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&comer_d2::cuda::forward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&comer_d2::cuda::fused));
}
