// Products of few rows with a float32 matrix. A sum runs over the inputs in a fixed order: it does not depend on the other rows.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vectors.h"

// Columns whose sums stay in the cache while the inputs run.
constexpr int64_t kTile = 256;
// Rows of the matrix that are read side by side.
constexpr int64_t kInputs = 8;

// x [rows, k] as [k / 8, rows, 8], with zeros at the end. Rows of x that are a multiple of 4 KB apart would displace each other in the cache.
inline std::vector<float> interleave(const float* x, int64_t rows, int64_t k) {
  std::vector<float> made((k + kInputs - 1) / kInputs * kInputs * rows);
  for (int64_t i = 0; i < k; i += kInputs)
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(x + r * k + i, std::min(kInputs, k - i), made.data() + i * rows + r * kInputs);
  return made;
}

// sums[rows, stride] += x w for INPUTS inputs and `count` columns. The weights of a column are read once, for all rows.
// x: [rows, 8]; w: the first weight; n: columns of the matrix.
template <int INPUTS>
inline void add_inputs(const float* x, const float* w, float* sums, int64_t rows, int64_t n, int64_t count, int64_t stride, bool first,
                       bool ahead) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Vector weights[INPUTS];
#pragma GCC unroll 8
    for (int i = 0; i < INPUTS; ++i) weights[i] = load(w + i * n + j);
    if (ahead)
#pragma GCC unroll 8
      for (int i = 0; i < INPUTS; ++i) __builtin_prefetch(w + (INPUTS + i) * n + j, 0, 2);
    for (int64_t r = 0; r < rows; ++r) {
      Vector total = first ? Vector{} : load(sums + r * stride + j);
#pragma GCC unroll 8
      for (int i = 0; i < INPUTS; ++i) total = multiply_add(weights[i], x[r * kInputs + i], total);
      store(sums + r * stride + j, total);
    }
  }
  for (; j < count; ++j)
    for (int64_t r = 0; r < rows; ++r) {
      float total = first ? 0 : sums[r * stride + j];
      for (int i = 0; i < INPUTS; ++i) total = multiply_add(w[i * n + j], x[r * kInputs + i], total);
      sums[r * stride + j] = total;
    }
}

// y = x w for the columns [begin, end). x: from `interleave`, w: [k, n], y: [rows, n].
inline void multiply_columns(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t begin,
                             int64_t end) {
  // A single row is summed in place: all its columns stay in the cache.
  const int64_t tile = rows == 1 ? end - begin : kTile;
  std::vector<float> kept(rows == 1 ? 0 : rows * kTile);
  for (; begin < end; begin += tile) {
    int64_t count = std::min(tile, end - begin), stride = rows == 1 ? n : kTile, i = 0;
    float* sums = rows == 1 ? y + begin : kept.data();
    for (; i + kInputs <= k; i += kInputs)
      add_inputs<kInputs>(x + i * rows, w + i * n + begin, sums, rows, n, count, stride, i == 0, rows > 1 && i + 2 * kInputs <= k);
    for (int64_t block = i; i < k; ++i)
      add_inputs<1>(x + block * rows + (i - block), w + i * n + begin, sums, rows, n, count, stride, i == 0, false);
    if (rows > 1)
      for (int64_t r = 0; r < rows; ++r) std::copy_n(sums + r * stride, count, y + r * n + begin);
  }
}

// ROWS rows and OUTPUTS outputs: the sums run over the inputs lane by lane. x: [ROWS, k]; w: [OUTPUTS, k]; y: [ROWS, n].
template <int ROWS, int OUTPUTS>
inline void outputs_block(const float* x, const float* w, float* y, int64_t k, int64_t n, bool ahead) {
  Vector total[OUTPUTS][ROWS] = {};
  auto add = [&](auto load_at) __attribute__((always_inline)) {
    Vector inputs[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) inputs[r] = load_at(x + r * k);
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) {
      Vector weights = load_at(w + o * k);
      // In a register: the product is bound by loads.
      if (ROWS > 1) keep(weights);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) total[o][r] = multiply_add(inputs[r], weights, total[o][r]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    // The weights of the next block.
    if (ahead)
#pragma GCC unroll 8
      for (int o = 0; o < OUTPUTS; ++o) __builtin_prefetch(w + (OUTPUTS + o) * k + i, 0, 2);
    add([&](const float* from) __attribute__((always_inline)) { return load(from + i); });
  }
  if (i < k) add([&](const float* from) { return load_part(from + i, k - i); });
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o += OUTPUTS < 4 ? 1 : 4) {
      if constexpr (OUTPUTS < 4)
        y[r * n + o] = add_lanes(total[o][r]);
      else
        add_lanes(total[o][r], total[o + 1][r], total[o + 2][r], total[o + 3][r], y + r * n + o);
    }
}

// As many rows as there are registers for four sums of each.
constexpr int kMostRows = kLanes == 8 ? 2 : 6;

template <int ROWS = kMostRows>
inline void rows_block(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, bool ahead) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return rows_block<ROWS - 1>(x, w, y, rows, k, n, ahead);
  outputs_block<ROWS, 4>(x, w, y, k, n, ahead);
}

// y = x wᵀ for the outputs [begin, end), for at most kMostRows rows. x: [rows, k], w: [n, k], y: [rows, n].
inline void multiply_lying(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t begin, int64_t end) {
  int64_t j = begin;
  if (rows == 1)
    for (; j + 8 <= end; j += 8) outputs_block<1, 8>(x, w + j * k, y + j, k, n, false);
  for (; j + 4 <= end; j += 4) rows_block(x, w + j * k, y + j, rows, k, n, j + 8 <= end);
  for (; j < end; ++j)
    for (int64_t r = 0; r < rows; ++r) outputs_block<1, 1>(x + r * k, w + j * k, y + r * n + j, k, n, false);
}

// Rows as columns [rows / kLanes, k, kLanes], with zeros for missing rows: a vector holds an input of kLanes rows, and sums need no
// additions across lanes.
class Standing {
 public:
  Standing(const float* x, int64_t rows, int64_t k) : kept_((rows + kLanes - 1) / kLanes * kLanes * k + 16) {
    // A vector that begins elsewhere takes two loads.
    start_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(kept_.data()) + 63) / 64 * 64);
    for (int64_t r = 0; r < rows; r += kLanes) transpose(x + r * k, k, std::min<int64_t>(kLanes, rows - r), k, start_ + r * k);
  }
  const float* data() const { return start_; }

 private:
  std::vector<float> kept_;
  float* start_;
};

// VECTORS * kLanes rows and OUTPUTS outputs. x: [VECTORS, k, kLanes]; w: [OUTPUTS, k]; y: [rows, n].
template <int VECTORS, int OUTPUTS>
inline void standing_block(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n) {
  Vector total[OUTPUTS][VECTORS] = {};
  auto add = [&](int64_t i) __attribute__((always_inline)) {
    Vector inputs[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) inputs[v] = load(x + (v * k + i) * kLanes);
#pragma GCC unroll 16
    for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) total[o][v] = multiply_add(inputs[v], w[o * k + i], total[o][v]);
  };
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    // The weights of the next block.
#pragma GCC unroll 16
    for (int o = 0; o < OUTPUTS; ++o) __builtin_prefetch(w + (OUTPUTS + o) * k + i, 0, 2);
#pragma GCC unroll 4
    for (int j = 0; j < 16; ++j) add(i + j);
  }
  for (; i < k; ++i) add(i);
  for (int v = 0; v < VECTORS; ++v)
    for (int64_t r = 0; r < std::min<int64_t>(kLanes, rows - v * kLanes); ++r)
      for (int o = 0; o < OUTPUTS; ++o) y[(v * kLanes + r) * n + o] = total[o][v][r];
}

// y = x wᵀ for the outputs [begin, end). x: from `Standing`, w: [n, k], y: [rows, n].
inline void multiply_standing(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t begin, int64_t end) {
  auto blocks = [&](auto vectors, auto outputs, int64_t r) {
    constexpr int kVectors = decltype(vectors)::value, kOutputs = decltype(outputs)::value;
    int64_t j = begin;
    for (; j + kOutputs <= end; j += kOutputs) standing_block<kVectors, kOutputs>(x + r * k, w + j * k, y + r * n + j, rows - r, k, n);
    for (; j + 4 <= end; j += 4) standing_block<kVectors, 4>(x + r * k, w + j * k, y + r * n + j, rows - r, k, n);
    for (; j < end; ++j) standing_block<kVectors, 1>(x + r * k, w + j * k, y + r * n + j, rows - r, k, n);
    return kVectors * kLanes;
  };
  using std::integral_constant;
  for (int64_t r = 0; r < rows;) {
    const int64_t left = rows - r;
    if (left <= kLanes)
      r += blocks(integral_constant<int, 1>(), integral_constant<int, 12>(), r);
    else if (left <= 3 * kLanes)
      r += blocks(integral_constant<int, 2>(), integral_constant<int, 8>(), r);
    else
      r += blocks(integral_constant<int, 4>(), integral_constant<int, 6>(), r);
  }
}
