// Vectors of the widest kind that the compiler's target has, and sums over their lanes in a fixed order.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// total + a b, rounded once where the target can. For `total += a * b`, the compiler decides loop by loop whether to round the product, too
// (GCC for AMD and some Intel CPUs does not fuse long sums). Then a sum would depend on the shape of its loop, which depends on the rows.
inline Vector multiply_add(Vector a, Vector b, Vector total) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(total)));
#elif defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Vector>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(total)));
#elif defined(__aarch64__)
  return reinterpret_cast<Vector>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(total), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  return total + a * b;
#endif
}
inline float multiply_add(float a, float b, float total) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, total);
#else
  return total + a * b;
#endif
}
// Subtracting zero changes no value, not even -0.
inline Vector multiply_add(Vector a, float b, Vector total) { return multiply_add(a, b - Vector{}, total); }

// Keeps a value in a register.
inline void keep(Vector& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

// Loads fewer values than a vector has; the others are zero.
inline Vector load_part(const float* from, int64_t count) {
  Vector value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

// columns[inputs, kLanes] = wᵀ for w [outputs, inputs] with rows that are `stride` apart. outputs <= kLanes; missing ones are zero.
inline void transpose(const float* w, int64_t stride, int64_t outputs, int64_t inputs, float* columns) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= inputs; i += 16) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int o = 0; o < 16; ++o) a[o] = o < outputs ? _mm512_loadu_ps(w + o * stride + i) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int o = 0; o < 16; o += 2) b[o] = _mm512_unpacklo_ps(a[o], a[o + 1]), b[o + 1] = _mm512_unpackhi_ps(a[o], a[o + 1]);
    auto pairs = [](__m512 one, __m512 two, bool high) __attribute__((always_inline)) {
      __m512d first = _mm512_castps_pd(one), second = _mm512_castps_pd(two);
      return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(first, second) : _mm512_unpacklo_pd(first, second));
    };
#pragma GCC unroll 4
    for (int o = 0; o < 16; o += 4) {
      a[o] = pairs(b[o], b[o + 2], false), a[o + 1] = pairs(b[o], b[o + 2], true);
      a[o + 2] = pairs(b[o + 1], b[o + 3], false), a[o + 3] = pairs(b[o + 1], b[o + 3], true);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      __m512 even = _mm512_shuffle_f32x4(a[q], a[q + 4], 0x88), odd = _mm512_shuffle_f32x4(a[q], a[q + 4], 0xdd);
      __m512 even2 = _mm512_shuffle_f32x4(a[q + 8], a[q + 12], 0x88), odd2 = _mm512_shuffle_f32x4(a[q + 8], a[q + 12], 0xdd);
      float* to = columns + (i + q) * 16;
      _mm512_storeu_ps(to, _mm512_shuffle_f32x4(even, even2, 0x88));
      _mm512_storeu_ps(to + 4 * 16, _mm512_shuffle_f32x4(odd, odd2, 0x88));
      _mm512_storeu_ps(to + 8 * 16, _mm512_shuffle_f32x4(even, even2, 0xdd));
      _mm512_storeu_ps(to + 12 * 16, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
  }
#endif
  for (; i < inputs; ++i)
    for (int64_t o = 0; o < kLanes; ++o) columns[i * kLanes + o] = o < outputs ? w[o * stride + i] : 0;
}

#if defined(__AVX512F__)
// Sums over the lanes of four vectors.
inline __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), upper);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
// The order of the sum is that of four vectors.
inline float sum_lanes(__m512 a) { return _mm_cvtss_f32(sum_lanes(a, a, a, a)); }
#endif

// The sum of the lanes, always in the same order, and those of four vectors.
#if defined(__AVX512F__)
inline float add_lanes(Vector value) { return sum_lanes(reinterpret_cast<__m512>(value)); }
inline void add_lanes(Vector a, Vector b, Vector c, Vector d, float* sums) {
  _mm_storeu_ps(sums, sum_lanes(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c),
                                reinterpret_cast<__m512>(d)));
}
#else
inline float add_lanes(Vector value) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) value[i] += value[i + half];
  return value[0];
}
inline void add_lanes(Vector a, Vector b, Vector c, Vector d, float* sums) {
  sums[0] = add_lanes(a), sums[1] = add_lanes(b), sums[2] = add_lanes(c), sums[3] = add_lanes(d);
}
#endif
