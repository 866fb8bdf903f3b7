// The classical kernels of multi-scale deformable attention, as many projects have them: a thread per output
// channel that computes every sample anew, and every gradient added atomically. benchmarks/op.py builds
// this file to measure the shipped kernels against it.

#include "common.cuh"

namespace comer_d2::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(256) forward_kernel(
    const T* __restrict__ value,
    const Samples samples,
    const CallSizes sizes,
    const LevelTable levels,
    T* __restrict__ output) {
  using Real = RealOf<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= sizes.items * sizes.channels) {
    return;
  }
  const Item item(sizes, index / sizes.channels);
  const ItemSamples<Real, Real> rows(samples, sizes, item);
  const int64_t stride = static_cast<int64_t>(sizes.heads) * sizes.channels;
  const T* from = value + item.batch * sizes.pixels * stride +
      static_cast<int64_t>(item.head) * sizes.channels + index % sizes.channels;
  Real sum = Real(0);
  for (int level_index = 0; level_index < sizes.levels; ++level_index) {
    const Level level = levels.level[level_index];
    for (int point = 0; point < sizes.points; ++point) {
      const int sample = level_index * sizes.points + point;
      AxisSample<Real> x, y;
      rows.axes(sample, level_index, level, x, y);
      const Corners<Real> found = corners<Real>(x, y, level.width, level.start);
      for (int corner = 0; corner < 4; ++corner) {
        sum += rows.weights[sample] * found.weight[corner] *
            real_of(from[found.pixel[corner] * stride]);
      }
    }
  }
  output[index] = narrow<T>(sum);
}

template <typename Real>
struct Outputs {
  Real* locations; // strided as the samples
  Real* weights;
};

template <typename T>
__global__ void __launch_bounds__(256) backward_kernel(
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
  const ItemSamples<Real, Real> rows(samples, sizes, item);
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

unsigned blocks_of(const CallSizes& call) {
  const int64_t blocks = (call.items * call.channels + 255) / 256;
  COMER_D2_CHECK(blocks <= kMaxInt32, "more than 2**31 blocks of output channels");
  return static_cast<unsigned>(blocks);
}

struct Forward {
  const Sizes& sizes;
  const Tensor& value;
  const Samples& samples;
  Tensor& output;

  template <typename T>
  void operator()() const {
    const CallSizes call = call_sizes(sizes);
    forward_kernel<T><<<blocks_of(call), 256, 0, current_stream(value)>>>(
        static_cast<const T*>(value.const_data_ptr()), samples, call, level_table(sizes),
        static_cast<T*>(output.mutable_data_ptr()));
    check_launch("the classical forward");
  }
};

Tensor forward(
    const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const DeviceGuard guard(value.get_device_index());
  const ScalarType real = real_type(value);
  const Tensor values = contiguous(value), locations = as_type(sampling_locations, real);
  const Tensor weights = as_type(attention_weights, real);
  Tensor output = new_empty(value, {{sizes.batch, sizes.queries, sizes.heads * sizes.channels}});
  dispatch(
      value.scalar_type(), Forward{sizes, values, samples_of(locations, weights, sizes), output});
  return output;
}

struct Backward {
  const Sizes& sizes;
  const Tensor& value;
  const Tensor& grad_output;
  const Samples& samples;
  Tensor &grad_value, &grad_locations, &grad_weights;

  template <typename T>
  void operator()() const {
    using Real = RealOf<T>;
    const CallSizes call = call_sizes(sizes);
    backward_kernel<T><<<blocks_of(call), 256, 0, current_stream(value)>>>(
        static_cast<const T*>(value.const_data_ptr()),
        static_cast<const T*>(grad_output.const_data_ptr()), samples, call, level_table(sizes),
        static_cast<Real*>(grad_value.mutable_data_ptr()),
        {static_cast<Real*>(grad_locations.mutable_data_ptr()),
         static_cast<Real*>(grad_weights.mutable_data_ptr())});
    check_launch("the classical backward");
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  const DeviceGuard guard(value.get_device_index());
  const ScalarType real = real_type(value);
  const Tensor values = contiguous(value), grads = contiguous(grad_output);
  const Tensor locations = as_type(sampling_locations, real);
  const Tensor weights = as_type(attention_weights, real);
  Tensor grad_value = new_zeros(value, value.sizes(), real);
  Tensor grad_locations = new_zeros(locations, locations.sizes());
  Tensor grad_weights = new_zeros(weights, weights.sizes());
  dispatch(
      value.scalar_type(),
      Backward{sizes, values, grads, samples_of(locations, weights, sizes), grad_value,
               grad_locations, grad_weights});
  return {as_type(grad_value, value.scalar_type()),
          as_type(grad_locations, sampling_locations.scalar_type()),
          as_type(grad_weights, attention_weights.scalar_type())};
}

} // namespace
} // namespace comer_d2::cuda

STABLE_TORCH_LIBRARY(comer_d2_classical, m) {
  m.def("forward(Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights) -> Tensor");
  m.def(
      "backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor locations, "
      "Tensor weights) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(comer_d2_classical, CUDA, m) {
  m.impl("forward", TORCH_BOX(&comer_d2::cuda::forward));
  m.impl("backward", TORCH_BOX(&comer_d2::cuda::backward));
}
