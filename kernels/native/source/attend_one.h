// Attention of one query for each head, to the visible slots of a cache. Other slots are not read.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "exponential.h"
#include "vectors.h"

inline Vector load_values(const float* from) { return load(from); }
inline Vector load_values(const int8_t* from) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Vector);
}

struct Ring {
  int64_t heads, slots, width;      // key/value heads, slots, channels of a head
  const int32_t *positions, *segments;  // [b, slots]
  int64_t window;                   // or -1: none
};

// One row and one key/value head: q, y [queries, width]; k, v [slots, width]; scales [slots], or null for floats.
template <typename Value>
inline void attend_one(const float* q, const Value* k, const Value* v, const float* k_scales, const float* v_scales, const Ring& ring,
                       int64_t row, int32_t position, int32_t segment, int64_t queries, float* y) {
  const int64_t p = ring.width, whole = p / kLanes * kLanes;
  const int32_t *positions = ring.positions + row * ring.slots, *segments = ring.segments + row * ring.slots;
  std::vector<int32_t> seen;
  seen.reserve(ring.slots);
  for (int64_t s = 0; s < ring.slots; ++s) {
    int64_t distance = int64_t(position) - positions[s];
    if (segments[s] == segment && distance >= 0 && (ring.window < 0 || distance <= ring.window)) seen.push_back(int32_t(s));
  }
  const int64_t count = seen.size(), padded = (count + kLanes - 1) / kLanes * kLanes;
  const float scale = 1 / std::sqrt(float(p));
  std::vector<float> scores(queries * padded);
  for (int64_t i = 0; i < count; ++i) {
    const Value* key = k + seen[i] * p;
    float of_slot = scale * (k_scales ? k_scales[seen[i]] : 1);
    for (int64_t u = 0; u < queries; ++u) {
      Vector total = {};
      for (int64_t c = 0; c < whole; c += kLanes) total += load_values(key + c) * load(q + u * p + c);
      float sum = add_lanes(total);
      for (int64_t c = whole; c < p; ++c) sum += float(key[c]) * q[u * p + c];
      scores[u * padded + i] = sum * of_slot;
    }
  }
  std::vector<float> totals(queries);
  for (int64_t u = 0; u < queries; ++u) {
    float* of_query = scores.data() + u * padded;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < count; ++i) largest = of_query[i] > largest ? of_query[i] : largest;
    Vector total = {};
    for (int64_t i = count; i < padded; ++i) of_query[i] = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < padded; i += kLanes) {
      Vector weights = exponential(load(of_query + i) - largest);
      for (int64_t lane = count - i; lane < kLanes; ++lane) weights[lane] = 0;
      store(of_query + i, weights);
      total += weights;
    }
    totals[u] = add_lanes(total);
  }
  std::fill_n(y, queries * p, 0.f);
  for (int64_t i = 0; i < count; ++i) {
    const Value* value = v + seen[i] * p;
    float of_slot = v_scales ? v_scales[seen[i]] : 1;
    for (int64_t u = 0; u < queries; ++u) {
      float weight = scores[u * padded + i] * of_slot;
      float* to = y + u * p;
      for (int64_t c = 0; c < whole; c += kLanes) store(to + c, load(to + c) + load_values(value + c) * weight);
      for (int64_t c = whole; c < p; ++c) to[c] += float(value[c]) * weight;
    }
  }
  // A query without visible slots gets zeros.
  for (int64_t u = 0; u < queries; ++u)
    for (int64_t c = 0; c < p; ++c) y[u * p + c] = count ? y[u * p + c] / totals[u] : 0;
}
