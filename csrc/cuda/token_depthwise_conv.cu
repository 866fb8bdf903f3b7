// The depthwise convolution of a token pyramid on CUDA.
//
// Forward, and the gradient of the tokens with turned kernels: a thread computes some channels of a
// strip of neighbouring pixels of a row; neighbouring threads have neighbouring channels. Every pixel
// is read once for all taps of a row of the kernel.
//
// Gradient of the weights: a block takes a chunk of a level and some channels of one group. A walker is
// the threads that go along rows for the taps of one row of the kernel, with a window of the tokens in
// registers. Every block writes sums of its own, which a second kernel adds in the order of the blocks:
// nothing is added atomically, so the result is reproducible.

#include <algorithm>
#include <vector>

#include "common.cuh"

namespace comer_d2::cuda {
namespace {

constexpr int kStrip = 4; // pixels of a strip
constexpr int kSegment = 32; // pixels that a walker goes along at a time
constexpr int kMaxGroups = 16;
constexpr int kMaxCudaKernel = 31;

struct ConvLevel {
  int32_t height, width, start; // as of Level
  int32_t parts; // strips, or segments, of a row
  int32_t first; // strip, or chunk, of the whole call
};

// Passed to kernels by value: below 4 KB.
struct ConvTable {
  ConvLevel level[kMaxLevels];
  ConvGroup group[kMaxGroups];
  int64_t pixels, set_size;
  int32_t channels, share, batch, levels, groups, sets;

  __device__ __forceinline__ int level_of(int32_t number) const {
    int found = 0;
    while (found + 1 < levels && number >= level[found + 1].first) {
      ++found;
    }
    return found;
  }
  __device__ __forceinline__ int64_t set_of(int level_index) const {
    return sets == 1 ? 0 : level_index;
  }
};

// From (channels, k, k) of every set and group to (k, k, channels).
template <typename Real>
__global__ void pack_kernel(const Real* given, const ConvTable table, const bool turned, Real* packed) {
  const int64_t all = table.sets * table.set_size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    const int64_t within = i % table.set_size;
    int g = 0;
    while (g + 1 < table.groups && within >= table.group[g + 1].offset) {
      ++g;
    }
    const int32_t taps = table.group[g].kernel * table.group[g].kernel;
    const int64_t rest = within - table.group[g].offset;
    const int32_t tap = static_cast<int32_t>(rest / table.share);
    const int64_t channel = rest % table.share;
    packed[i] =
        given[i - rest + channel * taps + (turned ? taps - 1 - tap : tap)];
  }
}

// Some pixels of a row of a level.
struct Strip {
  int32_t row, column, count, height, width;
};

// kKernel is the kernel's side, or 0 for one that is only known at run time.
template <typename T, int kKernel, int kChannels>
__device__ __forceinline__ void convolve_strip(
    const T* __restrict__ from, const RealOf<T>* __restrict__ taps, const Strip& strip, int kernel_side,
    int64_t stride, int32_t share, RealOf<T> (&sums)[kStrip][kChannels]) {
  using Real = RealOf<T>;
  const int kernel = kKernel != 0 ? kKernel : kernel_side, half = kernel / 2;
  for (int tap_row = 0; tap_row < kernel; ++tap_row) {
    const int row = strip.row + tap_row - half;
    if (row < 0 || row >= strip.height) {
      continue;
    }
    const T* line = from + static_cast<int64_t>(row) * strip.width * stride;
    const Real* tap_line = taps + static_cast<int64_t>(tap_row) * kernel * share;
    if constexpr (kKernel != 0) {
      Pack<Real, kChannels> tap[kKernel];
#pragma unroll
      for (int k = 0; k < kKernel; ++k) {
        tap[k] = *reinterpret_cast<const Pack<Real, kChannels>*>(tap_line + k * share);
      }
#pragma unroll
      for (int i = 0; i < kStrip + kKernel - 1; ++i) {
        const int column = strip.column + i - half;
        if (column >= 0 && column < strip.width) {
          const Pack<T, kChannels> pixel =
              *reinterpret_cast<const Pack<T, kChannels>*>(line + column * stride);
#pragma unroll
          for (int k = 0; k < kKernel; ++k) {
            if (i - k >= 0 && i - k < kStrip) {
#pragma unroll
              for (int c = 0; c < kChannels; ++c) {
                sums[i - k][c] += tap[k].value[c] * real_of(pixel.value[c]);
              }
            }
          }
        }
      }
    } else {
      for (int k = 0; k < kernel; ++k) {
        const Pack<Real, kChannels> tap =
            *reinterpret_cast<const Pack<Real, kChannels>*>(tap_line + k * share);
#pragma unroll
        for (int t = 0; t < kStrip; ++t) {
          const int column = strip.column + t + k - half;
          if (column >= 0 && column < strip.width) {
            const Pack<T, kChannels> pixel =
                *reinterpret_cast<const Pack<T, kChannels>*>(line + column * stride);
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              sums[t][c] += tap.value[c] * real_of(pixel.value[c]);
            }
          }
        }
      }
    }
  }
}

template <typename T, int kChannels>
__global__ void __launch_bounds__(256) convolve_kernel(
    const T* __restrict__ tokens,
    const RealOf<T>* __restrict__ weight,
    const RealOf<T>* __restrict__ bias, // or null
    const ConvTable table,
    const uint32_t threads,
    T* __restrict__ output) {
  using Real = RealOf<T>;
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= threads) {
    return;
  }
  const uint32_t packs = table.channels / kChannels;
  const int32_t number = static_cast<int32_t>(index / packs);
  const int32_t channel = static_cast<int32_t>(index % packs) * kChannels;
  const int level_index = table.level_of(number);
  const ConvLevel level = table.level[level_index];
  const ConvGroup group = table.group[channel / table.share];
  const int32_t place = number - level.first; // (batch, row, strip of the row)
  const int32_t row = place / level.parts, column = place % level.parts * kStrip;
  const Strip strip{
      row % level.height, column, min(kStrip, level.width - column), level.height, level.width};
  const int64_t stride = table.channels;
  const int64_t first = (row / level.height * table.pixels + level.start) * stride + channel;
  const int64_t set = table.set_of(level_index);
  const Real* taps = weight + set * table.set_size + group.offset + (channel - group.first);

  Real sums[kStrip][kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const Real start = bias == nullptr ? Real(0) : bias[set * table.channels + channel + c];
#pragma unroll
    for (int t = 0; t < kStrip; ++t) {
      sums[t][c] = start;
    }
  }
  switch (group.kernel) {
    case 3:
      convolve_strip<T, 3>(tokens + first, taps, strip, 3, stride, table.share, sums);
      break;
    case 5:
      convolve_strip<T, 5>(tokens + first, taps, strip, 5, stride, table.share, sums);
      break;
    default:
      convolve_strip<T, 0>(tokens + first, taps, strip, group.kernel, stride, table.share, sums);
  }
  T* to = output + first + (static_cast<int64_t>(strip.row) * strip.width + column) * stride;
#pragma unroll
  for (int t = 0; t < kStrip; ++t) {
    if (t < strip.count) {
      Pack<T, kChannels> pack;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        pack.value[c] = narrow<T>(sums[t][c]);
      }
      *reinterpret_cast<Pack<T, kChannels>*>(to + t * stride) = pack;
    }
  }
}

// How a block of the weight's gradient is laid out: (rows, walkers of a kernel, lanes), lanes fastest.
struct Walk {
  int32_t group, lanes, walkers, rows;
  int32_t segments; // of a chunk
};

// A walker has kTaps neighbouring taps of one row of the kernel: all of the row, or 1 for kernels whose
// size is only known at run time.
template <typename T, int kTaps, int kChannels>
__global__ void __launch_bounds__(kTaps == 1 ? 1024 : 256) correlate_kernel(
    const T* __restrict__ tokens,
    const T* __restrict__ grad_output,
    const ConvTable table,
    const Walk walk,
    RealOf<T>* __restrict__ partial) {
  using Real = RealOf<T>;
  extern __shared__ __align__(32) char shared[];
  Pack<Real, kChannels>* sums = reinterpret_cast<Pack<Real, kChannels>*>(shared);
  const ConvGroup group = table.group[walk.group];
  const int lane = threadIdx.x % walk.lanes;
  const int walker = threadIdx.x / walk.lanes % walk.walkers;
  const int walk_row = threadIdx.x / walk.lanes / walk.walkers;
  const int tap_row = walker * kTaps / group.kernel, first_tap = walker * kTaps % group.kernel;
  const int half = group.kernel / 2;
  const int32_t within = (blockIdx.y * walk.lanes + lane) * kChannels; // channel of the group
  const int32_t chunk = blockIdx.x;
  const int level_index = table.level_of(chunk);
  const ConvLevel level = table.level[level_index];
  const int64_t stride = table.channels;
  // Unsigned: there are up to 2**31 segments, and a step goes beyond the last.
  const uint32_t all_segments = static_cast<uint32_t>(table.batch) * level.height * level.parts;
  const uint32_t begin = static_cast<uint32_t>(chunk - level.first) * walk.segments;
  const uint32_t end = min(begin + walk.segments, all_segments);

  Real tap[kTaps][kChannels] = {};
  Real total[kChannels] = {};
  if (within < table.share) {
    for (uint32_t segment = begin + walk_row; segment < end; segment += walk.rows) {
      const int32_t line = segment / level.parts, row = line % level.height;
      const int32_t column = segment % level.parts * kSegment;
      const int32_t last = min(column + kSegment, level.width);
      const int32_t other = row + tap_row - half;
      if (other < 0 || other >= level.height) {
        continue;
      }
      const int64_t first =
          (line / level.height * table.pixels + level.start) * stride + group.first + within;
      const T* grads = grad_output + first + static_cast<int64_t>(row) * level.width * stride;
      const T* from = tokens + first + static_cast<int64_t>(other) * level.width * stride;
      Real window[kTaps][kChannels] = {}; // the last kTaps columns
      const auto take = [&](int32_t x) {
        Pack<T, kChannels> pixel = {};
        if (x >= 0 && x < level.width) {
          pixel = *reinterpret_cast<const Pack<T, kChannels>*>(from + x * stride);
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
#pragma unroll
          for (int k = 0; k + 1 < kTaps; ++k) {
            window[k][c] = window[k + 1][c];
          }
          window[kTaps - 1][c] = real_of(pixel.value[c]);
        }
      };
#pragma unroll
      for (int k = 0; k + 1 < kTaps; ++k) {
        take(column + first_tap - half + k);
      }
#pragma unroll 4
      for (int32_t x = column; x < last; ++x) {
        take(x + first_tap - half + kTaps - 1);
        const Pack<T, kChannels> pack =
            *reinterpret_cast<const Pack<T, kChannels>*>(grads + x * stride);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const Real grad = real_of(pack.value[c]);
          total[c] += grad;
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
            tap[k][c] += grad * window[k][c];
          }
        }
      }
    }
  }

  // (kTaps + 1, rows, walkers, lanes): the last of the first is the sum of the gradient.
  const int width = walk.lanes * walk.walkers;
  const auto slot = [&](int k, int row) {
    return (k * walk.rows + row) * width + walker * walk.lanes + lane;
  };
#pragma unroll
  for (int k = 0; k <= kTaps; ++k) {
    Pack<Real, kChannels> pack;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      pack.value[c] = k < kTaps ? tap[k < kTaps ? k : 0][c] : total[c];
    }
    sums[slot(k, walk_row)] = pack;
  }
  __syncthreads();
  if (walk_row != 0 || within >= table.share) {
    return;
  }
  Real* to = partial + static_cast<int64_t>(chunk) * (table.set_size + table.channels);
  for (int k = 0; k <= kTaps; ++k) {
    Pack<Real, kChannels> sum = sums[slot(k, 0)];
    for (int row = 1; row < walk.rows; ++row) {
      const Pack<Real, kChannels> more = sums[slot(k, row)];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sum.value[c] += more.value[c];
      }
    }
    if (k < kTaps) {
      *reinterpret_cast<Pack<Real, kChannels>*>(
          to + group.offset + static_cast<int64_t>(walker * kTaps + k) * table.share + within) = sum;
    } else if (tap_row == half && walker * kTaps <= tap_row * group.kernel + half &&
               walker * kTaps + kTaps > tap_row * group.kernel + half) {
      // The walker of the middle tap: its row is never outside.
      *reinterpret_cast<Pack<Real, kChannels>*>(to + table.set_size + group.first + within) = sum;
    }
  }
}

// Adds the chunks of every set, always in the same order, and puts the weights as they were given.
template <typename Real>
__global__ void reduce_kernel(
    const Real* __restrict__ partial, const ConvTable table, const int32_t chunks, Real* grad_weight,
    Real* grad_bias) {
  __shared__ Real sums[8][32];
  const int64_t size = table.set_size + table.channels;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  const int set = blockIdx.y;
  const int32_t begin = table.sets == 1 ? 0 : table.level[set].first;
  const int32_t end =
      table.sets == 1 || set + 1 == table.levels ? chunks : table.level[set + 1].first;
  Real sum = Real(0);
  if (i < size) {
#pragma unroll 4
    for (int32_t chunk = begin + threadIdx.y; chunk < end; chunk += 8) {
      sum += partial[chunk * size + i];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= size) {
    return;
  }
  for (int y = 1; y < 8; ++y) {
    sum += sums[y][threadIdx.x];
  }
  if (i >= table.set_size) {
    grad_bias[set * static_cast<int64_t>(table.channels) + i - table.set_size] = sum;
    return;
  }
  int g = 0;
  while (g + 1 < table.groups && i >= table.group[g + 1].offset) {
    ++g;
  }
  const int32_t taps = table.group[g].kernel * table.group[g].kernel;
  const int64_t rest = i - table.group[g].offset;
  grad_weight[set * table.set_size + table.group[g].offset + rest % table.share * taps +
              rest / table.share] = sum;
}

// The table of a call whose rows are cut into parts of `length` pixels, `unit` of which are numbered
// together. Gives the number of units, too.
std::pair<ConvTable, int64_t> conv_table(const ConvSizes& sizes, int64_t length, int64_t unit) {
  COMER_D2_CHECK(
      sizes.levels.size() <= kMaxLevels, "at most ", kMaxLevels, " levels on CUDA, got ",
      sizes.levels.size());
  COMER_D2_CHECK(
      sizes.groups.size() <= kMaxGroups, "at most ", kMaxGroups, " kernel_sizes on CUDA, got ",
      sizes.groups.size());
  COMER_D2_CHECK(sizes.batch <= kMaxInt32, "more than 2**31 items of a batch on CUDA");
  ConvTable table{};
  table.pixels = sizes.pixels;
  table.set_size = sizes.set_size;
  table.channels = static_cast<int32_t>(sizes.channels);
  table.share = sizes.groups[0].channels;
  table.batch = static_cast<int32_t>(sizes.batch);
  table.levels = static_cast<int32_t>(sizes.levels.size());
  table.groups = static_cast<int32_t>(sizes.groups.size());
  table.sets = static_cast<int32_t>(sizes.sets);
  for (size_t i = 0; i < sizes.groups.size(); ++i) {
    COMER_D2_CHECK(
        sizes.groups[i].kernel <= kMaxCudaKernel, "kernel_sizes must be at most ", kMaxCudaKernel,
        " on CUDA, got ", sizes.groups[i].kernel);
    table.group[i] = sizes.groups[i];
  }
  int64_t number = 0;
  for (size_t i = 0; i < sizes.levels.size(); ++i) {
    const Level& level = sizes.levels[i];
    const int64_t parts = (level.width + length - 1) / length;
    const int64_t all = sizes.batch * level.height * parts;
    COMER_D2_CHECK(
        all <= kMaxInt32 && number <= kMaxInt32, "more than 2**31 rows of tokens on CUDA");
    table.level[i] = {level.height, level.width, level.start, static_cast<int32_t>(parts),
                      static_cast<int32_t>(number)};
    number += (all + unit - 1) / unit;
  }
  return {table, number};
}

struct Convolution {
  const ConvSizes& sizes;
  const Tensor& tokens; // contiguous, or the output's gradient
  const Tensor& weight; // contiguous, in the type of the arithmetic
  const Tensor* bias; // or null, and then kernels are turned
  Tensor& output;

  template <typename T>
  void operator()() const {
    constexpr int kWide = sizeof(T) == 8 ? 2 : 4;
    const bool wide = sizes.groups[0].channels % kWide == 0 && aligned(tokens.const_data_ptr()) &&
        aligned(output.const_data_ptr());
    wide ? run<T, kWide>() : run<T, 1>();
  }

  template <typename T, int kChannels>
  void run() const {
    using Real = RealOf<T>;
    const auto [table, strips] = conv_table(sizes, kStrip, 1);
    const int64_t threads = strips * (sizes.channels / kChannels);
    COMER_D2_CHECK(threads <= kMaxInt32, "more than 2**31 strips of tokens on CUDA");
    const cudaStream_t stream = current_stream(tokens);
    Tensor packed = new_empty(weight, weight.sizes());
    const int64_t weights = weight.numel();
    pack_kernel<Real><<<static_cast<unsigned>((weights + 255) / 256), 256, 0, stream>>>(
        static_cast<const Real*>(weight.const_data_ptr()), table, bias == nullptr,
        static_cast<Real*>(packed.mutable_data_ptr()));
    check_launch("the packing of token_depthwise_conv");
    convolve_kernel<T, kChannels><<<static_cast<unsigned>((threads + 255) / 256), 256, 0, stream>>>(
        static_cast<const T*>(tokens.const_data_ptr()),
        static_cast<const Real*>(packed.const_data_ptr()),
        bias == nullptr ? nullptr : static_cast<const Real*>(bias->const_data_ptr()), table,
        static_cast<uint32_t>(threads), static_cast<T*>(output.mutable_data_ptr()));
    check_launch("token_depthwise_conv");
  }
};

struct Correlation {
  const ConvSizes& sizes;
  const Tensor& tokens; // contiguous, as grad_output
  const Tensor& grad_output;
  Tensor& grad_weight; // in the type of the arithmetic
  Tensor& grad_bias;

  template <typename T>
  void operator()() const {
    constexpr int kWide = sizeof(T) == 8 ? 2 : 4;
    const bool wide = sizes.groups[0].channels % kWide == 0 && aligned(tokens.const_data_ptr()) &&
        aligned(grad_output.const_data_ptr());
    wide ? run<T, kWide>() : run<T, 1>();
  }

  template <typename T, int kChannels>
  void run() const {
    using Real = RealOf<T>;
    // Some hundred chunks keep a GPU busy and their sums small.
    const int64_t all_segments = conv_table(sizes, kSegment, 1).second;
    const int64_t segments = std::max<int64_t>(4, (all_segments + 767) / 768);
    const auto [table, chunks] = conv_table(sizes, kSegment, segments);
    const int64_t size = sizes.set_size + sizes.channels;
    Tensor partial = new_empty(grad_weight, {{chunks * size}});
    for (int32_t group = 0; group < table.groups; ++group) {
      switch (table.group[group].kernel) {
        case 3:
          correlate<T, 3, kChannels>(table, group, chunks, segments, partial);
          break;
        case 5:
          correlate<T, 5, kChannels>(table, group, chunks, segments, partial);
          break;
        default:
          correlate<T, 1, kChannels>(table, group, chunks, segments, partial);
      }
    }
    const dim3 blocks(static_cast<unsigned>((size + 31) / 32), static_cast<unsigned>(sizes.sets));
    reduce_kernel<Real><<<blocks, dim3(32, 8), 0, current_stream(tokens)>>>(
        static_cast<const Real*>(partial.const_data_ptr()), table, static_cast<int32_t>(chunks),
        static_cast<Real*>(grad_weight.mutable_data_ptr()),
        static_cast<Real*>(grad_bias.mutable_data_ptr()));
    check_launch("the sums of token_depthwise_conv's backward");
  }

  template <typename T, int kTaps, int kChannels>
  void correlate(
      const ConvTable& table, int32_t group, int64_t chunks, int64_t segments,
      Tensor& partial) const {
    using Real = RealOf<T>;
    const int32_t kernel = table.group[group].kernel, packs = table.share / kChannels;
    Walk walk{};
    walk.group = group;
    walk.walkers = kernel * kernel / kTaps;
    walk.lanes = std::min({packs, kWarp, std::max(1, 512 / walk.walkers)});
    walk.rows = std::max(1, 256 / (walk.lanes * walk.walkers));
    walk.segments = static_cast<int32_t>(segments);
    const int threads = walk.rows * walk.walkers * walk.lanes; // at most 961
    const size_t shared = static_cast<size_t>(threads) * (kTaps + 1) * kChannels * sizeof(Real);
    const dim3 blocks(
        static_cast<unsigned>(chunks),
        static_cast<unsigned>((packs + walk.lanes - 1) / walk.lanes));
    COMER_D2_CHECK(blocks.y <= 65535, "more than 65535 blocks of channels on CUDA");
    correlate_kernel<T, kTaps, kChannels><<<blocks, threads, shared, current_stream(tokens)>>>(
        static_cast<const T*>(tokens.const_data_ptr()),
        static_cast<const T*>(grad_output.const_data_ptr()), table, walk,
        static_cast<Real*>(partial.mutable_data_ptr()));
    check_launch("token_depthwise_conv's backward");
  }
};

Tensor forward(
    const Tensor& tokens, std::vector<int64_t> spatial_shapes, const Tensor& weight,
    const Tensor& bias, std::vector<int64_t> kernel_sizes) {
  const ConvSizes sizes = check_conv_arguments(tokens, spatial_shapes, weight, bias, kernel_sizes);
  Tensor output = new_empty(tokens, tokens.sizes());
  if (sizes.empty()) {
    return output;
  }
  const DeviceGuard guard(tokens.get_device_index());
  const ScalarType real = real_type(tokens);
  const Tensor values = contiguous(tokens);
  const Tensor weights = as_type(weight, real), biases = as_type(bias, real);
  dispatch(tokens.scalar_type(), Convolution{sizes, values, weights, &biases, output});
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
  const DeviceGuard guard(tokens.get_device_index());
  const ScalarType real = real_type(tokens);
  const Tensor values = contiguous(tokens), grads = contiguous(grad_output);
  const Tensor weights = as_type(weight, real);
  Tensor grad_weight = new_empty(weights, weights.sizes());
  Tensor grad_bias = new_empty(weights, bias.sizes());
  dispatch(tokens.scalar_type(), Convolution{sizes, grads, weights, nullptr, grad_tokens});
  dispatch(tokens.scalar_type(), Correlation{sizes, values, grads, grad_weight, grad_bias});
  return {grad_tokens, as_type(grad_weight, weight.scalar_type()),
          as_type(grad_bias, bias.scalar_type())};
}

} // namespace
} // namespace comer_d2::cuda

STABLE_TORCH_LIBRARY_IMPL(comer_d2, CUDA, m) {
  m.impl("token_depthwise_conv", TORCH_BOX(&comer_d2::cuda::forward));
  m.impl("token_depthwise_conv_backward", TORCH_BOX(&comer_d2::cuda::backward));
}
