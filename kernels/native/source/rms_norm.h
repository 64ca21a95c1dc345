// RMS norm of rows: y = x / sqrt(mean(x²) + epsilon) · (offset + scale).
#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

inline void rms_norm(const float* x, const float* scale, float* y, int64_t width, float epsilon, float offset) {
  Vector squares = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) squares += load(x + i) * load(x + i);
  float sum = add_lanes(squares);
  for (; i < width; ++i) sum += x[i] * x[i];
  const float factor = 1 / std::sqrt(sum / float(width) + epsilon);
  for (i = 0; i + kLanes <= width; i += kLanes) store(y + i, load(x + i) * factor * (load(scale + i) + offset));
  for (; i < width; ++i) y[i] = x[i] * factor * (scale[i] + offset);
}
