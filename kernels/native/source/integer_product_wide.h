// Products of integers on CPUs without AVX-512 VNNI: weights are widened to 16 bits and multiplied by activations of 16 bits. With AVX2, one
// instruction multiplies 16 pairs and adds neighbours to sums of 32 bits.
//
// The integer sums of pieces of a group are exact. They are scaled and added in float32, in an order that does not depend on other rows.
#pragma once

#include "integer_product.h"

#if defined(__AVX2__)
constexpr int kShorts = 16;
#else
constexpr int kShorts = 8;
#endif
constexpr int kSums = 8;
typedef int16_t Shorts __attribute__((vector_size(kShorts * 2), aligned(2), may_alias));
typedef int32_t Sums __attribute__((vector_size(kSums * 4)));
typedef float Totals __attribute__((vector_size(kSums * 4)));
// A weight less its zero point has up to 255, and an activation 127 * 256. A sum of 32 bits holds 2 products of each of 128 vectors.
constexpr int64_t kPiece = 128 * kShorts;

inline Sums multiply_pairs(Shorts a, Shorts b) {
#if defined(__AVX2__)
  return reinterpret_cast<Sums>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return __builtin_convertvector(a, Sums) * __builtin_convertvector(b, Sums);
#endif
}

// Weights of a row of a matrix from `first`, which is even for 4 bits.
template <int BITS>
inline Shorts widen(const uint8_t* row, int64_t first) {
  const uint8_t* from = row + first * BITS / 8;
#if defined(__AVX2__)
  if constexpr (BITS == 8) return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  // Each byte twice: its low half and its high half are moved up to the sign, and down again.
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  const __m256i twice = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes));
  const __m256i up = _mm256_mullo_epi16(twice, _mm256_set1_epi32(256 << 16 | 4096));
  return reinterpret_cast<Shorts>(_mm256_srai_epi16(up, 12));
#else
  typedef int8_t Bytes __attribute__((vector_size(kShorts)));
  Bytes bytes;
  if constexpr (BITS == 8)
    std::memcpy(&bytes, from, kShorts);
  else
    for (int i = 0; i < kShorts / 2; ++i) bytes[2 * i] = int8_t(from[i] << 4) >> 4, bytes[2 * i + 1] = int8_t(from[i]) >> 4;
  return __builtin_convertvector(bytes, Shorts);
#endif
}

// total + scale * sums, rounded as `multiply_add` rounds.
inline Totals add_scaled(Sums sums, float scale, Totals total) {
  const Totals values = __builtin_convertvector(sums, Totals);
#if defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Totals>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(values), _mm256_set1_ps(scale), reinterpret_cast<__m256>(total)));
#else
  for (int i = 0; i < kSums; ++i) total[i] = multiply_add(values[i], scale, total[i]);
  return total;
#endif
}
inline float add_totals(Totals t) { return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7])); }

template <int BITS, int ROWS>
inline void multiply_rows(const Activations& x, int64_t r, const Matrix& w, float* y, int64_t begin, int64_t end) {
  const int64_t size = w.group_size(), whole = BITS == 4 && size % 2 ? 0 : size / kShorts * kShorts;
  for (int64_t j = begin; j < end; ++j) {
    const uint8_t* row = w.values + j * w.row_bytes();
    Totals totals[ROWS] = {};
    float rests[ROWS] = {};
    for (int64_t g = 0; g < w.groups; ++g) {
      const int zero = w.zero_point(j, g);
      const float scale = w.scales[j * w.groups + g];
      const int64_t middle = g * size + whole;
      for (int64_t piece = g * size; piece < middle; piece += kPiece) {
        const int64_t last = std::min(piece + kPiece, middle);
        Sums sums[ROWS] = {};
        for (int64_t i = piece; i < last; i += kShorts) {
          const Shorts weights = widen<BITS>(row, i) - int16_t(zero);
#pragma GCC unroll 4
          for (int u = 0; u < ROWS; ++u)
            sums[u] += multiply_pairs(weights, *reinterpret_cast<const Shorts*>(x.wide_row(r + u) + i));
        }
#pragma GCC unroll 4
        for (int u = 0; u < ROWS; ++u) totals[u] = add_scaled(sums[u], scale, totals[u]);
      }
      if (whole == size) continue;
      for (int u = 0; u < ROWS; ++u) {
        int64_t sum = 0;
        for (int64_t i = middle; i < (g + 1) * size; ++i) sum += (w.value(j, i) - zero) * x.wide_row(r + u)[i];
        rests[u] = multiply_add(float(sum), scale, rests[u]);
      }
    }
    for (int u = 0; u < ROWS; ++u) y[(r + u) * w.outputs + j] = (add_totals(totals[u]) + rests[u]) * x.scales[r + u];
  }
}

template <int BITS>
inline void multiply_integers_of(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  int64_t r = 0;
  for (; r + 4 <= x.rows; r += 4) multiply_rows<BITS, 4>(x, r, w, y, begin, end);
  for (; r < x.rows; ++r) multiply_rows<BITS, 1>(x, r, w, y, begin, end);
}

// y[rows, outputs] for the outputs [begin, end).
inline void multiply_integers(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  (w.bits == 8 ? multiply_integers_of<8> : multiply_integers_of<4>)(x, w, y, begin, end);
}
