// Products of few rows with a matrix of 8-bit or 4-bit integers. Sums of integers are exact, and those of floats have a fixed order: a
// result does not depend on the other rows.
#pragma once

#include <algorithm>

#include "activations.h"
#include "vectors.h"

// A matrix [outputs, inputs] of integers; two integers of 4 bits are in a byte, the first in its low half.
struct Matrix {
  const uint8_t* values;
  const float* scales;        // [outputs, groups]
  const int8_t* zero_points;  // [outputs, groups] or null
  int bits;
  int64_t outputs, inputs, groups;

  int64_t row_bytes() const { return inputs * bits / 8; }
  int64_t group_size() const { return inputs / groups; }
  int value(int64_t output, int64_t input) const {
    if (bits == 8) return int8_t(values[output * inputs + input]);
    int64_t place = output * inputs + input;
    int nibble = values[place / 2] >> (place % 2 * 4) & 15;
    return nibble < 8 ? nibble : nibble - 16;
  }
};

// Any sizes: the integer of an input is looked up in the block that it is in.
inline float dot_any(const Activations& x, int64_t r, const Matrix& w, int64_t output) {
  const int step = 8 / w.bits;
  const int8_t* row = x.row(r);
  float total = 0;
  int64_t size = w.group_size();
  for (int64_t g = 0; g < w.groups; ++g) {
    int zero = w.zero_points ? w.zero_points[output * w.groups + g] : 0;
    int64_t sum = 0;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      int64_t block = i / x.block_inputs(), within = i % x.block_inputs();
      const int8_t* place = row + block * x.block_bytes() + within % step * 64 * x.parts + within / step;
      int input = x.parts == 2 ? 256 * place[0] + place[64] : place[0];
      sum += (w.value(output, i) - zero) * input;
    }
    total += float(sum) * w.scales[output * w.groups + g];
  }
  return total * x.scales[r];
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
// y = the sums over lanes, for the outputs of each row. The scales are those of the outputs and the rows.
template <int ROWS, int OUTPUTS>
inline void finish(const Activations& x, int64_t r, __m512 (&total)[OUTPUTS][ROWS], const float* scales, float* y, int64_t n) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float scale = x.scales[r + i];
    if (OUTPUTS % 4 == 0) {
#pragma GCC unroll 8
      for (int o = 0; o < OUTPUTS / 4 * 4; o += 4) {
        __m128 sums = sum_lanes(total[o][i], total[o + 1 < OUTPUTS ? o + 1 : o][i], total[o + 2 < OUTPUTS ? o + 2 : o][i],
                                total[o + 3 < OUTPUTS ? o + 3 : o][i]);
        if (scales) sums = _mm_mul_ps(sums, _mm_loadu_ps(scales + o));
        _mm_storeu_ps(y + i * n + o, _mm_mul_ps(sums, _mm_set1_ps(scale)));
      }
    } else {
      for (int o = 0; o < OUTPUTS; ++o) {
        float sum = sum_lanes(total[o][i]);
        y[i * n + o] = (scales ? sum * scales[o] : sum) * scale;
      }
    }
  }
}

// 8 bits, one scale for an output: the sums of integers run over all inputs.
template <int ROWS, int OUTPUTS, int PARTS>
inline void whole_block(const Activations& x, int64_t r, const Matrix& w, int64_t j, float* y, int64_t n) {
  constexpr int kVectors = ROWS * PARTS;
  __m512i total[OUTPUTS][kVectors];
  for (auto& of_output : total)
    for (auto& each : of_output) each = _mm512_setzero_si512();
  const __m512i flip = _mm512_set1_epi8(char(0x80));
  const int8_t* rows[ROWS];
  for (int i = 0; i < ROWS; ++i) rows[i] = x.row(r + i);
  const uint8_t* from = w.values + j * w.inputs;
  const int64_t inputs_count = w.inputs;
  auto add = [&](int64_t b, __mmask64 mask) __attribute__((always_inline)) {
    __m512i inputs[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
      for (int p = 0; p < PARTS; ++p) inputs[i * PARTS + p] = _mm512_loadu_si512(rows[i] + (b * PARTS + p) * 64);
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) {
      // The instruction multiplies unsigned integers by signed ones: the weights get 128 more, and the sums lose it below.
      __m512i weights = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from + o * inputs_count + b * 64), flip);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) total[o][i] = _mm512_dpbusd_epi32(total[o][i], weights, inputs[i]);
    }
  };
  int64_t full = w.inputs / 64;
  for (int64_t b = 0; b < full; ++b) add(b, ~__mmask64(0));
  if (w.inputs % 64) add(full, (__mmask64(1) << w.inputs % 64) - 1);
  __m512 sums[OUTPUTS][ROWS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    __m512 of_inputs = _mm512_loadu_ps(x.row_totals(r + i));
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) {
      __m512 sum = _mm512_cvtepi32_ps(total[o][i * PARTS]);
      if (PARTS == 2)
        sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(256), _mm512_cvtepi32_ps(total[o][i * PARTS + PARTS - 1]));
      float zero = 128.f + (w.zero_points ? w.zero_points[j + o] : 0);
      sums[o][i] = _mm512_fnmadd_ps(of_inputs, _mm512_set1_ps(zero), sum);
    }
  }
  finish<ROWS, OUTPUTS>(x, r, sums, w.scales + j, y, n);
}

// Scales for the lanes of a block: `count` groups meet in it, or it is within one group.
struct Lanes {
  int64_t size, block_inputs;
  int count;
  __m512i index;
  __mmask16 mask;
  explicit Lanes(int64_t group_size, int64_t block_inputs) : size(group_size), block_inputs(block_inputs) {
    count = int(std::max<int64_t>(1, block_inputs / size));
    alignas(64) int32_t places[16];
    for (int i = 0; i < 16; ++i) places[i] = i * count / 16;
    index = _mm512_load_si512(places);
    mask = __mmask16((1 << count) - 1);
  }
  int64_t first(int64_t b) const { return b * block_inputs / size; }
  __m512 floats(const float* of_output, int64_t b) const {
    const float* from = of_output + first(b);
    if (count == 1) return _mm512_set1_ps(*from);
    return _mm512_permutexvar_ps(index, _mm512_maskz_loadu_ps(mask, from));
  }
  __m512i integers(const int8_t* of_output, int64_t b) const {
    const int8_t* from = of_output + first(b);
    if (count == 1) return _mm512_set1_epi32(*from);
    __m512i loaded = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from));
    return _mm512_permutexvar_epi32(index, loaded);
  }
};

// Groups: the integer sums of a block are scaled and added to float32 sums, lane by lane.
template <int ROWS, int OUTPUTS, int PARTS, int BITS, bool ZEROS>
inline void grouped_block(const Activations& x, int64_t r, const Matrix& w, const Lanes& lanes, int64_t j, float* y, int64_t n) {
  constexpr int kHalves = 8 / BITS, kOffset = 1 << (BITS - 1);
  __m512 total[OUTPUTS][ROWS];
  for (auto& of_output : total)
    for (auto& each : of_output) each = _mm512_setzero_ps();
  const __m512i flip = _mm512_set1_epi8(BITS == 8 ? char(0x80) : char(0x88)), low = _mm512_set1_epi8(15);
  const int8_t* rows[ROWS];
  const int32_t* row_sums[ROWS];
  for (int i = 0; i < ROWS; ++i) rows[i] = x.row(r + i), row_sums[i] = x.row_sums(r + i);
  const uint8_t* values = w.values + j * w.row_bytes();
  const float* of_groups = w.scales + j * w.groups;
  const int64_t row_bytes = w.row_bytes(), groups = w.groups;
  for (int64_t b = 0; b < x.blocks; ++b) {
    __m512i offset[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) offset[i] = _mm512_loadu_si512(row_sums[i] + b * 16);
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) {
      __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(values + o * row_bytes + b * 64), flip);
      __m512i even = BITS == 8 ? bytes : _mm512_and_si512(bytes, low);
      __m512i odd = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
      __m512 scales = lanes.floats(of_groups + o * groups, b);
      __m512i zeros = _mm512_set1_epi32(kOffset);
      if (ZEROS) zeros = _mm512_add_epi32(zeros, lanes.integers(w.zero_points + (j + o) * groups, b));
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const int8_t* inputs = rows[i] + b * kHalves * PARTS * 64;
        __m512i start = ZEROS ? _mm512_mullo_epi32(offset[i], zeros) : _mm512_slli_epi32(offset[i], BITS - 1);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(inputs));
        if (BITS == 4) sum = _mm512_dpbusd_epi32(sum, odd, _mm512_loadu_si512(inputs + PARTS * 64));
        if (PARTS == 2) {
          sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), even, _mm512_loadu_si512(inputs + 64));
          if (BITS == 4) sum = _mm512_dpbusd_epi32(sum, odd, _mm512_loadu_si512(inputs + 192));
        }
        total[o][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, start)), scales, total[o][i]);
      }
    }
  }
  finish<ROWS, OUTPUTS>(x, r, total, nullptr, y, n);
}

template <int ROWS, int OUTPUTS, int PARTS, int BITS>
inline void any_block(const Activations& x, int64_t r, const Matrix& w, const Lanes& lanes, int64_t j, float* y) {
  float* to = y + r * w.outputs + j;
  if (BITS == 8 && w.groups == 1)
    whole_block<ROWS, OUTPUTS, PARTS>(x, r, w, j, to, w.outputs);
  else if (w.zero_points)
    grouped_block<ROWS, OUTPUTS, PARTS, BITS, true>(x, r, w, lanes, j, to, w.outputs);
  else
    grouped_block<ROWS, OUTPUTS, PARTS, BITS, false>(x, r, w, lanes, j, to, w.outputs);
}

template <int ROWS, int PARTS, int BITS>
inline int64_t multiply_rows(const Activations& x, const Matrix& w, const Lanes& lanes, float* y, int64_t j, int64_t left) {
  // As many accumulators as the registers hold.
  constexpr int kMany = ROWS == 1 ? 8 : 4;
  if (left >= kMany) {
    int64_t r = 0;
    for (; r + ROWS <= x.rows; r += ROWS) any_block<ROWS, kMany, PARTS, BITS>(x, r, w, lanes, j, y);
    for (; r < x.rows; ++r) any_block<1, kMany, PARTS, BITS>(x, r, w, lanes, j, y);
    return kMany;
  }
  for (int64_t r = 0; r < x.rows; ++r) any_block<1, 1, PARTS, BITS>(x, r, w, lanes, j, y);
  return 1;
}

template <int PARTS, int BITS>
inline void multiply_by_blocks(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  Lanes lanes(w.group_size(), x.block_inputs());
  constexpr int kRows = 4 / PARTS;
  for (int64_t j = begin; j < end;)
    j += x.rows < kRows ? multiply_rows<1, PARTS, BITS>(x, w, lanes, y, j, end - j)
                        : multiply_rows<kRows, PARTS, BITS>(x, w, lanes, y, j, end - j);
}

inline bool has_blocks(const Activations& x, const Matrix& w) {
  if (w.bits == 8 && w.groups == 1) return true;
  int64_t block = x.block_inputs(), size = w.group_size();
  return w.inputs % block == 0 && (size % block == 0 || (block % size == 0 && block / size <= 4));
}

#else

template <int PARTS, int BITS>
inline void multiply_by_blocks(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < x.rows; ++r) {
      int64_t sums[2] = {0, 0};
      for (int64_t b = 0; b < x.blocks; ++b)
        for (int p = 0; p < PARTS; ++p) {
          const int8_t* inputs = x.row(r) + (b * PARTS + p) * 64;
          const int8_t* weights = reinterpret_cast<const int8_t*>(w.values) + j * w.inputs + b * 64;
          int64_t count = std::min<int64_t>(64, w.inputs - b * 64);
          int32_t sum = 0;
          for (int64_t i = 0; i < count; ++i) sum += int32_t(int16_t(inputs[i]) * int16_t(weights[i]));
          sums[p] += sum;
        }
      int64_t sum = PARTS == 2 ? 256 * sums[0] + sums[1] : sums[0];
      int zero = w.zero_points ? w.zero_points[j] : 0;
      y[r * w.outputs + j] = float(sum - zero * x.total(r)) * w.scales[j] * x.scales[r];
    }
}

inline bool has_blocks(const Activations&, const Matrix& w) { return w.bits == 8 && w.groups == 1; }

#endif

// y[rows, outputs] for the outputs [begin, end).
inline void multiply_integers(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  if (!has_blocks(x, w)) {
    for (int64_t j = begin; j < end; ++j)
      for (int64_t r = 0; r < x.rows; ++r) y[r * w.outputs + j] = dot_any(x, r, w, j);
  } else if (x.parts == 2) {
    w.bits == 8 ? multiply_by_blocks<2, 8>(x, w, y, begin, end) : multiply_by_blocks<2, 4>(x, w, y, begin, end);
  } else {
    w.bits == 8 ? multiply_by_blocks<1, 8>(x, w, y, begin, end) : multiply_by_blocks<1, 4>(x, w, y, begin, end);
  }
}
