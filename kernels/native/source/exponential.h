// The exponential of a vector.
#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

typedef int32_t Integers32 __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

// exp(x) for x <= 0, with a relative error of 2e-7: 2^n times a polynomial (Cephes expf).
inline Vector exponential(Vector x) {
  Vector lowest = Vector{} - 87.0f;
  x = x > lowest ? x : lowest;
  Vector scaled = x * 1.44269504088896341f;
  // Adding and subtracting 1.5 * 2^23 rounds to an integer.
  Vector n = (scaled + 12582912.0f) - 12582912.0f;
  Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector y = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r +
             5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  Integers32 power = (__builtin_convertvector(n, Integers32) + 127) << 23;
  Vector two;
  std::memcpy(&two, &power, sizeof two);
  return y * two;
}
