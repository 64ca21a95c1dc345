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

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "integer_product_vnni.h"
#else
#include "integer_product_wide.h"
#endif
