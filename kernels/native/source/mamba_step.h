// One token of a Mamba mixer, between its first and its last product: convolution, projections of B, C and dt, scan and gate.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "exponential.h"
#include "float_product.h"
#include "rms_norm.h"
#include "threads.h"
#include "vectors.h"

// silu(x) = x / (1 + exp(-x)). The exponential of -|x| cannot overflow.
inline Vector silu(Vector x) {
  const Vector e = exponential(x < 0.0f ? x : -x);
  return x * (x < 0.0f ? e : Vector{} + 1.0f) / (1.0f + e);
}

// x = silu(x).
inline void silu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, silu(load(x + i)));
  if (i < count) {
    Vector last = silu(load_part(x + i, count - i));
    std::memcpy(x + i, &last, (count - i) * sizeof(float));
  }
}

// y *= silu(z).
inline void gate(float* y, const float* z, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, load(y + i) * silu(load(z + i)));
  if (i < count) {
    Vector last = load_part(y + i, count - i) * silu(load_part(z + i, count - i));
    std::memcpy(y + i, &last, (count - i) * sizeof(float));
  }
}

// One row: y = silu(sum of the k taps), and the state becomes its last k - 1 inputs. `after` may be `before`.
// x, y [channels]; weight [channels, k]; before, after [k - 1, channels].
template <int TAPS>
inline void convolve_one(const float* x, const float* weight, const float* before, bool continues, float* y, float* after,
                         int64_t channels, int64_t taps) {
  const int64_t k = TAPS ? TAPS : taps;
  for (int64_t c = 0; c < channels; ++c) {
    float sum = x[c] * weight[c * k + k - 1];
    if (continues)
      for (int64_t j = 0; j < k - 1; ++j) sum += before[j * channels + c] * weight[c * k + j];
    y[c] = sum;
  }
  for (int64_t j = 0; j + 2 < k; ++j) {
    if (!continues)
      std::fill_n(after + j * channels, channels, 0.f);
    else
      std::memmove(after + j * channels, before + (j + 1) * channels, channels * sizeof(float));
  }
  if (k > 1) std::copy_n(x, channels, after + (k - 2) * channels);
  silu_in_place(y, channels);
}

// One head: S' = decay S + dx ⊗ B and y = S' C + skip x. x, y [p]; B, C [n]; before, after [p, n]. `after` may be `before`.
inline void scan_one(const float* x, float dt, float decay, const float* B, const float* C, float skip, const float* before,
                     bool continues, float* after, float* y, int64_t p, int64_t n) {
  const int64_t whole = n / kLanes * kLanes;
  auto channels = [&](auto count, int64_t i) __attribute__((always_inline)) {
    constexpr int kCount = decltype(count)::value;
    Vector total[kCount] = {};
    float rest[kCount] = {}, dx[kCount];
    for (int r = 0; r < kCount; ++r) dx[r] = dt * x[i + r];
    for (int64_t j = 0; j < whole; j += kLanes) {
      const Vector b = load(B + j), c = load(C + j);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
        Vector state = b * dx[r];
        if (continues) state += load(before + (i + r) * n + j) * decay;
        store(after + (i + r) * n + j, state);
        total[r] += state * c;
      }
    }
    for (int64_t j = whole; j < n; ++j)
      for (int r = 0; r < kCount; ++r) {
        const float state = B[j] * dx[r] + (continues ? before[(i + r) * n + j] * decay : 0);
        after[(i + r) * n + j] = state;
        rest[r] += state * C[j];
      }
    float sums[kCount];
    if constexpr (kCount == 4)
      add_lanes(total[0], total[1], total[2], total[3], sums);
    else
      sums[0] = add_lanes(total[0]);
    for (int r = 0; r < kCount; ++r) y[i + r] = sums[r] + rest[r] + skip * x[i + r];
  };
  int64_t i = 0;
  for (; i + 4 <= p; i += 4) channels(std::integral_constant<int, 4>(), i);
  for (; i < p; ++i) channels(std::integral_constant<int, 1>(), i);
}

// log(1 + exp(x)).
inline float softplus(float x) { return std::log1p(std::exp(-std::fabs(x))) + (x > 0 ? x : 0); }

// The exponential of a smaller log-decay is 0 in float32 (ssd/decay.py).
constexpr float kLeastLogDecay = -110.903549f;

struct MambaStep {
  int64_t rows, heads, width, states, taps, rank;  // width: channels of a head
  float epsilon;
  const float *x, *z;           // [rows, channels]; channels = heads * width
  const int32_t* segments;      // [rows]; rows of segment 0 are padding
  const bool* continues;        // [rows]; other rows start from zero states
  const float* conv;            // [channels, taps]
  const float* narrow[3];       // projections of B and C [states, channels], and of dt [rank, channels]
  const float* norms[3];        // their scales
  const float* dt_up;           // [heads, rank]
  const float *dt_bias, *a_log, *skip;  // [heads]
  const float *conv_before, *ssm_before;  // [rows, taps - 1, channels], [rows, heads, width, states]
  float *y, *conv_after, *ssm_after;      // the states may be in place

  int64_t channels() const { return heads * width; }
  int64_t size(int i) const { return i < 2 ? states : rank; }

  void run(xla::ffi::ThreadPool& pool) const {
    std::vector<float> inputs(rows * channels()), products[3];
    in_parallel(pool, rows, 1, rows * channels() * taps * 8, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) convolve(row, inputs.data() + row * channels());
    });
    for (int i = 0; i < 3; ++i) products[i].resize(rows * size(i));
    project(pool, inputs.data(), products);
    in_parallel(pool, rows * heads, 1, rows * channels() * states * 8, 4, [&](int64_t begin, int64_t end) {
      std::vector<float> normal[3];
      for (int i = 0; i < 3; ++i) normal[i].resize(size(i));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / heads;
        if (item == begin || item % heads == 0)
          for (int i = 0; i < 3; ++i) rms_norm(products[i].data() + row * size(i), norms[i], normal[i].data(), size(i), epsilon, 0);
        scan(row, item % heads, inputs.data() + item * width, normal);
      }
    });
  }

 private:
  // Rows of padding keep their states, and their output is 0.
  void convolve(int64_t row, float* to) const {
    const int64_t count = (taps - 1) * channels();
    const float *from = x + row * channels(), *before = conv_before + row * count;
    float* after = conv_after + row * count;
    if (!segments[row]) {
      std::fill_n(to, channels(), 0.f);
      if (after != before) std::copy_n(before, count, after);
    } else if (taps == 4) {
      convolve_one<4>(from, conv, before, continues[row], to, after, channels(), taps);
    } else {
      convolve_one<0>(from, conv, before, continues[row], to, after, channels(), taps);
    }
  }

  // All three projections read the same inputs, so they share one division over threads.
  void project(xla::ffi::ThreadPool& pool, const float* inputs, std::vector<float>* products) const {
    const int64_t k = channels(), total = 2 * states + rank;
    const bool lying = rows <= kMostRows;
    const Standing standing(inputs, lying ? 0 : rows, k);
    in_parallel(pool, total, lying ? 8 : 24, total * k * 4, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0, first = 0; i < 3; first += size(i), ++i) {
        const int64_t from = std::max(begin - first, int64_t(0)), to = std::min(end - first, size(i));
        if (from >= to) continue;
        if (lying)
          multiply_lying(inputs, narrow[i], products[i].data(), rows, k, size(i), from, to);
        else
          multiply_standing(standing.data(), narrow[i], products[i].data(), rows, k, size(i), from, to);
      }
    });
  }

  void scan(int64_t row, int64_t head, const float* inputs, const std::vector<float>* normal) const {
    const int64_t item = row * heads + head, count = width * states;
    const float* before = ssm_before + item * count;
    float *after = ssm_after + item * count, *to = y + item * width;
    if (!segments[row]) {
      std::fill_n(to, width, 0.f);
      if (after != before) std::copy_n(before, count, after);
      return;
    }
    float low = 0;
    for (int64_t i = 0; i < rank; ++i) low += normal[2][i] * dt_up[head * rank + i];
    const float dt = softplus(low + dt_bias[head]);
    const float decay = std::exp(std::max(-dt * std::exp(a_log[head]), kLeastLogDecay));
    scan_one(inputs, dt, decay, normal[0].data(), normal[1].data(), skip[head], before, continues[row], after, to, width, states);
    gate(to, z + item * width, width);
  }
};
