// What the CPU and the CUDA kernels of multi-scale deformable attention share: the checks of the
// arguments, the sizes of a call, and the arithmetic of one bilinear sample.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"

namespace comer_d2 {

// N batches, S pixels, M heads, D channels a head, Q queries, L levels, P points.
struct Sizes {
  int64_t batch, pixels, heads, channels, queries, num_levels, points;
  std::vector<Level> levels;

  int64_t samples_per_head() const { return num_levels * points; }
  int64_t samples_per_query() const { return heads * num_levels * points; }
  bool empty() const {
    return batch == 0 || queries == 0 || heads == 0 || channels == 0 || pixels == 0 ||
        samples_per_head() == 0;
  }
};

// ---------------------------------------------------------------------------------------------
// Checks

inline Sizes check_value(const Tensor& value, const std::vector<int64_t>& spatial_shapes) {
  check_dims(value, "value", 4, "(N, S, M, D)");
  check_floating(value, "value");
  Sizes sizes{};
  sizes.batch = value.size(0);
  sizes.pixels = value.size(1);
  sizes.heads = value.size(2);
  sizes.channels = value.size(3);
  sizes.levels = read_levels(spatial_shapes, value, "value");
  sizes.num_levels = static_cast<int64_t>(sizes.levels.size());
  return sizes;
}

inline Sizes check_arguments(
    const Tensor& value,
    const std::vector<int64_t>& spatial_shapes,
    const Tensor& sampling_locations,
    const Tensor& attention_weights) {
  Sizes sizes = check_value(value, spatial_shapes);
  check_dims(sampling_locations, "sampling_locations", 6, "(N, Q, M, L, P, 2)");
  check_dims(attention_weights, "attention_weights", 5, "(N, Q, M, L, P)");
  check_type_beside(sampling_locations, "sampling_locations", value, "value");
  check_type_beside(attention_weights, "attention_weights", value, "value");
  COMER_D2_CHECK(
      sampling_locations.scalar_type() == attention_weights.scalar_type(),
      "attention_weights must have the dtype of sampling_locations");
  check_device(sampling_locations, "sampling_locations", value, "value");
  check_device(attention_weights, "attention_weights", value, "value");
  sizes.queries = sampling_locations.size(1);
  sizes.points = sampling_locations.size(4);
  COMER_D2_CHECK(
      sampling_locations.size(0) == sizes.batch && sampling_locations.size(2) == sizes.heads &&
          sampling_locations.size(3) == sizes.num_levels && sampling_locations.size(5) == 2,
      "sampling_locations must have shape (N, Q, M, L, P, 2) with N, M of value ", shape_of(value),
      " and L = ", sizes.num_levels, " levels, got ", shape_of(sampling_locations));
  bool same = true;
  for (int64_t i = 0; i < 5; ++i) {
    same = same && attention_weights.size(i) == sampling_locations.size(i);
  }
  COMER_D2_CHECK(
      same, "attention_weights must have the shape of sampling_locations ",
      shape_of(sampling_locations), " without the last 2, got ", shape_of(attention_weights));
  return sizes;
}

// The fused call: `projected` (N, Q, 3 * M * L * P) holds the raw offsets in pixels, (M, L, P, 2), and
// then the logits, (M, L, P); `reference_points` are (N or 1, Q, L or 1, 2) in [0, 1].
inline Sizes check_fused_arguments(
    const Tensor& value,
    const std::vector<int64_t>& spatial_shapes,
    const Tensor& projected,
    const Tensor& reference_points) {
  Sizes sizes = check_value(value, spatial_shapes);
  check_dims(projected, "projected", 3, "(N, Q, 3 * M * L * P)");
  check_dims(reference_points, "reference_points", 4, "(N or 1, Q, L or 1, 2)");
  check_type_beside(projected, "projected", value, "value");
  check_device(projected, "projected", value, "value");
  check_device(reference_points, "reference_points", value, "value");
  sizes.queries = projected.size(1);
  const int64_t per_point = 3 * sizes.heads * sizes.num_levels;
  sizes.points = per_point == 0 ? 0 : projected.size(2) / per_point;
  COMER_D2_CHECK(
      projected.size(0) == sizes.batch && projected.size(2) == per_point * sizes.points,
      "projected must have shape (N, Q, 3 * M * L * P) with N, M of value ", shape_of(value),
      " and L = ", sizes.num_levels, " levels, got ", shape_of(projected));
  COMER_D2_CHECK(
      (reference_points.size(0) == sizes.batch || reference_points.size(0) == 1) &&
          reference_points.size(1) == sizes.queries &&
          (reference_points.size(2) == sizes.num_levels || reference_points.size(2) == 1) &&
          reference_points.size(3) == 2,
      "reference_points must have shape (N or 1, Q, L or 1, 2) with N, Q of projected ",
      shape_of(projected), " and L = ", sizes.num_levels, " levels, got ",
      shape_of(reference_points));
  return sizes;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Sizes& sizes) {
  check_dims(grad_output, "grad_output", 3, "(N, Q, M * D)");
  COMER_D2_CHECK(
      grad_output.scalar_type() == value.scalar_type(), "grad_output must have value's dtype");
  check_device(grad_output, "grad_output", value, "value");
  COMER_D2_CHECK(
      grad_output.size(0) == sizes.batch && grad_output.size(1) == sizes.queries &&
          grad_output.size(2) == sizes.heads * sizes.channels,
      "grad_output must have shape (", sizes.batch, ", ", sizes.queries, ", ",
      sizes.heads * sizes.channels, "), got ", shape_of(grad_output));
}

// Where the samples of a call are read from: a row of coordinates and a row of weights per query.
// Without `reference` they are locations in [0, 1] and attention weights; with it they are offsets in
// pixels and logits, and the location is reference + offset / (width, height).
struct Samples {
  const void* locations;
  const void* weights;
  int64_t locations_stride; // elements from one query to the next
  int64_t weights_stride;
  ScalarType type;
  const void* reference; // (x, y), in the type that the value is accumulated in
  int64_t reference_batch_stride, reference_query_stride, reference_level_stride;
};

inline Samples samples_of(const Tensor& locations, const Tensor& weights, const Sizes& sizes) {
  const int64_t samples = sizes.samples_per_query();
  return {locations.const_data_ptr(), weights.const_data_ptr(), 2 * samples, samples,
          locations.scalar_type(), nullptr, 0, 0, 0};
}

inline Samples fused_samples_of(
    const Tensor& projected, const Tensor& reference_points, const Sizes& sizes) {
  const int64_t samples = sizes.samples_per_query();
  const char* start = static_cast<const char*>(projected.const_data_ptr());
  const int64_t per_query = 2 * reference_points.size(2);
  return {start, start + 2 * samples * projected.element_size(), 3 * samples, 3 * samples,
          projected.scalar_type(), reference_points.const_data_ptr(),
          reference_points.size(0) == 1 ? 0 : sizes.queries * per_query, per_query,
          reference_points.size(2) == 1 ? 0 : 2};
}

// ---------------------------------------------------------------------------------------------
// One bilinear sample, one axis at a time

// The two pixels that a coordinate lies between along one axis. Outside the level the weights and
// slopes are zero and the index is clamped, so that memory may be read without a branch.
template <typename Real>
struct AxisSample {
  int32_t low, high;
  Real low_weight, high_weight;
  Real low_slope, high_slope; // derivatives of the weights by the pixel coordinate
};

// `coordinate` is in pixels with pixel centres at 0, 1, ...: location * size - 1/2.
template <typename Real>
COMER_D2_HOST_DEVICE AxisSample<Real> sample_axis(Real coordinate, int32_t size) {
  // -2 and size + 1 touch no pixel. Not-a-number fails the first comparison and becomes -2.
  const Real last = static_cast<Real>(size + 1);
  coordinate = coordinate > Real(-2) ? coordinate : Real(-2);
  coordinate = coordinate < last ? coordinate : last;
  int32_t low = static_cast<int32_t>(coordinate);
  low -= static_cast<int32_t>(static_cast<Real>(low) > coordinate); // truncation becomes floor
  const int32_t high = low + 1;
  const Real fraction = coordinate - static_cast<Real>(low);
  // Products rather than selections, which keep compilers from making branches of them.
  const Real low_inside = static_cast<Real>(static_cast<int32_t>((low >= 0) & (low < size)));
  const Real high_inside = static_cast<Real>(static_cast<int32_t>((high >= 0) & (high < size)));
  AxisSample<Real> sample;
  const int32_t low_cut = low < size - 1 ? low : size - 1;
  const int32_t high_cut = high < size - 1 ? high : size - 1;
  sample.low = low_cut > 0 ? low_cut : 0; // the lower bound last: a level may have no pixel
  sample.high = high_cut > 0 ? high_cut : 0;
  sample.low_weight = low_inside * (Real(1) - fraction);
  sample.high_weight = high_inside * fraction;
  sample.low_slope = -low_inside;
  sample.high_slope = high_inside;
  return sample;
}

// Non-finite locations times a size, and infinity minus infinity, end as not-a-number or infinity,
// which sample_axis puts outside.
template <typename Real>
COMER_D2_HOST_DEVICE Real pixel_coordinate(Real location, int32_t size) {
  return location * static_cast<Real>(size) - Real(0.5);
}

// Pixels of the value (row of (S, D)) at the four corners and their weights.
template <typename Real>
struct Corners {
  int32_t pixel[4];
  Real weight[4];
};

template <typename Real>
COMER_D2_HOST_DEVICE Corners<Real> corners(
    const AxisSample<Real>& x, const AxisSample<Real>& y, int32_t width, int32_t start) {
  const int32_t low_row = start + y.low * width, high_row = start + y.high * width;
  return {
      {low_row + x.low, low_row + x.high, high_row + x.low, high_row + x.high},
      {y.low_weight * x.low_weight, y.low_weight * x.high_weight, y.high_weight * x.low_weight,
       y.high_weight * x.high_weight}};
}

// What the corners' gradients are multiplied with. Zero outside even where the attention weight is not
// finite: the forward shows that, the gradient of pixels and locations that had no part in it stays clean.
template <typename Real>
COMER_D2_HOST_DEVICE void weigh_for_grad(
    Corners<Real>& found, const AxisSample<Real>& x, const AxisSample<Real>& y, Real attention) {
  const bool low_row = y.low_slope != 0, high_row = y.high_slope != 0;
  const bool low_column = x.low_slope != 0, high_column = x.high_slope != 0;
  found.weight[0] = low_row & low_column ? found.weight[0] * attention : Real(0);
  found.weight[1] = low_row & high_column ? found.weight[1] * attention : Real(0);
  found.weight[2] = high_row & low_column ? found.weight[2] * attention : Real(0);
  found.weight[3] = high_row & high_column ? found.weight[3] * attention : Real(0);
}

template <typename Real>
COMER_D2_HOST_DEVICE bool touches(const AxisSample<Real>& x, const AxisSample<Real>& y) {
  return ((x.low_slope != 0) | (x.high_slope != 0)) & ((y.low_slope != 0) | (y.high_slope != 0));
}

// Derivatives of one sample by its pixel coordinates (times 1 / attention weight) and by its
// attention weight, from the dot products of its corners with the output's gradient.
template <typename Real>
struct SampleGrad {
  Real x, y, attention;
};

template <typename Real>
COMER_D2_HOST_DEVICE SampleGrad<Real> sample_grad(
    const AxisSample<Real>& x, const AxisSample<Real>& y, Real dot0, Real dot1, Real dot2,
    Real dot3) {
  SampleGrad<Real> grad;
  grad.x = y.low_weight * (x.low_slope * dot0 + x.high_slope * dot1) +
      y.high_weight * (x.low_slope * dot2 + x.high_slope * dot3);
  grad.y = x.low_weight * (y.low_slope * dot0 + y.high_slope * dot2) +
      x.high_weight * (y.low_slope * dot1 + y.high_slope * dot3);
  grad.attention = y.low_weight * (x.low_weight * dot0 + x.high_weight * dot1) +
      y.high_weight * (x.low_weight * dot2 + x.high_weight * dot3);
  return grad;
}

} // namespace comer_d2
