// Products of few rows with a matrix of 8-bit or 4-bit integers. Sums of integers are exact, and those of floats have a fixed order: a
// result does not depend on the other rows.
#pragma once

#include <algorithm>
#include <cmath>

#include "activations.h"

// A matrix [outputs, inputs] of integers; two integers of 4 bits are in a byte, the first in its low half.
struct Matrix {
  const uint8_t* values;
  const float* scales;        // [outputs, groups]
  const int8_t* zero_points;  // [outputs, groups] or null
  int bits;
  int64_t outputs, inputs, groups;

  int64_t row_bytes() const { return inputs * bits / 8; }
  int64_t group_size() const { return inputs / groups; }
  // One scale for an output: the sums of integers run over all inputs.
  bool is_whole() const { return bits == 8 && groups == 1; }
  int zero_point(int64_t output, int64_t group = 0) const { return zero_points ? zero_points[output * groups + group] : 0; }
  int value(int64_t output, int64_t input) const {
    if (bits == 8) return int8_t(values[output * inputs + input]);
    int64_t place = output * inputs + input;
    int nibble = values[place / 2] >> (place % 2 * 4) & 15;
    return nibble < 8 ? nibble : nibble - 16;
  }
};

// Any sizes: the integer of an input is looked up in the block that it is in.
inline float dot_any(const Activations& x, int64_t r, const Matrix& w, int64_t output) {
  const int step = x.halves();
  float total = 0;
  int64_t size = w.group_size();
  for (int64_t g = 0; g < w.groups; ++g) {
    const int zero = w.zero_point(output, g);
    int64_t sum = 0;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      int64_t block = i / x.block_inputs(), within = i % x.block_inputs(), place = (block * step + within % step) * 64 + within / step;
      int input = x.parts == 2 ? 256 * x.row(0, r)[place] + x.row(1, r)[place] : x.row(0, r)[place];
      sum += (w.value(output, i) - zero) * input;
    }
    total = multiply_add(float(sum), w.scales[output * w.groups + g], total);
  }
  return total * x.scales[r];
}

// The sum of an output, for the sums of both parts.
inline float join(int32_t high, int32_t low, int parts) { return parts == 2 ? std::fmaf(256, float(high), float(low)) : float(high); }

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "integer_product_vnni.h"
#else

inline bool has_blocks(const Activations&, const Matrix& w) { return w.is_whole(); }

inline void multiply_blocks(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < x.rows; ++r) {
      int32_t sums[2] = {};
      for (int p = 0; p < x.parts; ++p) {
        const int8_t *inputs = x.row(p, r), *weights = reinterpret_cast<const int8_t*>(w.values) + j * w.inputs;
        int32_t sum = 0;
        for (int64_t i = 0; i < w.inputs; ++i) sum += int32_t(int16_t(inputs[i]) * int16_t(weights[i]));
        sums[p] = sum - w.zero_point(j) * x.sum(p, r);
      }
      y[r * w.outputs + j] = join(sums[0], sums[1], x.parts) * w.scales[j] * x.scales[r];
    }
}

#endif

// y[rows, outputs] for the outputs [begin, end).
inline void multiply_integers(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  if (has_blocks(x, w)) return multiply_blocks(x, w, y, begin, end);
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < x.rows; ++r) y[r * w.outputs + j] = dot_any(x, r, w, j);
}
