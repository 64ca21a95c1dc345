// Products of few rows with a float32 matrix. A sum runs over the inputs in a fixed order: it does not depend on the other rows.
#pragma once

#include <algorithm>
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
      for (int i = 0; i < INPUTS; ++i) total += weights[i] * x[r * kInputs + i];
      store(sums + r * stride + j, total);
    }
  }
  for (; j < count; ++j)
    for (int64_t r = 0; r < rows; ++r) {
      float total = first ? 0 : sums[r * stride + j];
      for (int i = 0; i < INPUTS; ++i) total += w[i * n + j] * x[r * kInputs + i];
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

// Inputs of a group of outputs that are transposed together.
constexpr int64_t kTransposed = 512;

// y = x wᵀ for the outputs [begin, end). x: from `interleave`, w: [n, k], y: [rows, n]. The weights of kLanes outputs are transposed, so
// that sums need no additions across lanes.
inline void multiply_outputs(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t begin,
                             int64_t end) {
  std::vector<float> columns(kTransposed * kLanes + kLanes), kept(rows * kLanes);
  for (int64_t j = begin; j < end; j += kLanes) {
    int64_t count = std::min<int64_t>(kLanes, end - j);
    for (int64_t from = 0; from < k; from += kTransposed) {
      int64_t to = std::min(k, from + kTransposed), i = from;
      transpose(w + j * k + from, k, count, to - from, columns.data());
      for (; i + kInputs <= to; i += kInputs)
        add_inputs<kInputs>(x + i * rows, columns.data() + (i - from) * kLanes, kept.data(), rows, kLanes, kLanes, kLanes, i == 0, false);
      for (int64_t block = i; i < to; ++i)
        add_inputs<1>(x + block * rows + (i - block), columns.data() + (i - from) * kLanes, kept.data(), rows, kLanes, kLanes, kLanes,
                      i == 0, false);
    }
    for (int64_t r = 0; r < rows; ++r) std::copy_n(kept.data() + r * kLanes, count, y + r * n + j);
  }
}
