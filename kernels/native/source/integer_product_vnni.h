// Products of integers with AVX-512 VNNI, whose instruction multiplies four unsigned integers of 8 bits by four signed ones in each lane and
// adds the products to a 32-bit sum. The weights get 128 (4 bits: 8) more to be unsigned, and the sums lose it afterwards. Inputs that stand
// are stored with 128 more.
//
// Each integer sum is exact: of all inputs of an output for 8 bits with one scale, and otherwise of a piece of a group. So a row has the
// same bits whether it lies or stands (`Activations`).
#pragma once

#include "integer_product.h"

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

// Outputs whose weights stay in the cache for all rows.
constexpr int64_t kChunk = 48;

// The sums over each quarter of four vectors.
inline __m512i sum_quads(__m512i a, __m512i b, __m512i c, __m512i d) {
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
inline __m512i add_quarters(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// 16 sums over the lanes of parts of vectors: VECTORS 16: of whole vectors; 8: of half vectors, in the order of `output_of`; 4: of quarters.
template <int VECTORS>
inline __m512i sum_lanes(const __m512i (&v)[VECTORS]) {
  __m512i quads[VECTORS / 4];
#pragma GCC unroll 4
  for (int i = 0; i < VECTORS / 4; ++i) quads[i] = sum_quads(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
  if constexpr (VECTORS == 4)
    return quads[0];
  else if constexpr (VECTORS == 8)
    return add_quarters(quads[0], quads[1]);
  else
    return add_quarters(add_quarters(quads[0], quads[1]), add_quarters(quads[2], quads[3]));
}

// The output in a part of a vector of weights, so that `sum_lanes` returns them in order.
template <int VECTORS>
constexpr int output_of(int vector, int part) {
  return VECTORS == 16 ? vector : VECTORS == 8 ? vector % 4 + vector / 4 * 8 + part * 4 : vector + part * 4;
}

// 128 more, or signed bytes with 128 less.
inline __m512i unsigned_bytes(__m512i bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(char(0x80))); }
// The low halves of bytes, with 8 more: (bytes ^ 8) & 15.
inline __m512i unsigned_nibbles(__m512i bytes) {
  return _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi8(8), _mm512_set1_epi8(15), 0x28);
}

// Outputs are computed in blocks of COUNT. A last block begins earlier, and computes some outputs again. A matrix with fewer outputs is
// multiplied output by output: every place of a block has the same one.
template <int COUNT, typename Body>
inline void in_blocks(int64_t begin, int64_t end, int64_t outputs, const Body& body) {
  if (outputs < COUNT)
    for (int64_t j = begin; j < end; ++j) body(j, 0, j, j + 1);
  else
    for (int64_t j = begin; j < end; j += COUNT) {
      const int64_t first = std::min(j, outputs - COUNT);
      body(first, 1, j, std::min(j + COUNT, end));
    }
}

// 16 sums over `count` inputs: [OUTPUTS, VECTORS], for rows that lie and are `next` bytes apart.
template <int OUTPUTS, int VECTORS>
inline __m512i add_lying(const int8_t* inputs, int64_t next, const uint8_t* values, int64_t stride, int64_t count) {
  __m512i total[OUTPUTS * VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < OUTPUTS * VECTORS; ++i) total[i] = _mm512_setzero_si512();
  auto add = [&](int64_t i, auto load) __attribute__((always_inline)) {
    __m512i bytes[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) bytes[v] = _mm512_loadu_si512(inputs + v * next + i);
#pragma GCC unroll 16
    for (int o = 0; o < OUTPUTS; ++o) {
      const __m512i weights = unsigned_bytes(load(values + o * stride + i));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) total[o * VECTORS + v] = _mm512_dpbusd_epi32(total[o * VECTORS + v], weights, bytes[v]);
    }
  };
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) add(i, [](const uint8_t* from) __attribute__((always_inline)) { return _mm512_loadu_si512(from); });
  if (i < count) {
    const __mmask64 mask = (__mmask64(1) << (count - i)) - 1;
    add(i, [=](const uint8_t* from) __attribute__((always_inline)) { return _mm512_maskz_loadu_epi8(mask, from); });
  }
  return sum_lanes(total);
}

// ROWS rows that lie, 8 bits, one scale.
template <int ROWS, int PARTS>
inline void lying_whole(const Activations& x, int64_t r, const Matrix& w, float* y, int64_t begin, int64_t end) {
  constexpr int kVectors = ROWS * PARTS, kOutputs = 16 / kVectors;
  // Vectors of several rows, or of several parts, are equally far apart.
  static_assert(ROWS == 1 || PARTS == 1);
  const int64_t next = (ROWS > 1 ? 1 : x.padded) * x.row_bytes();
  in_blocks<kOutputs>(begin, end, w.outputs, [&](int64_t first, int64_t step, int64_t from, int64_t to) {
    alignas(64) int32_t sums[16];
    const uint8_t* values = w.values + first * w.inputs;
    _mm512_store_si512(sums, add_lying<kOutputs, kVectors>(x.row(0, r), next, values, step * w.inputs, w.inputs));
    for (int64_t j = from; j < to; ++j) {
      const int zero = 128 + w.zero_point(j);
      for (int u = 0; u < ROWS; ++u) {
        const int32_t* of = sums + (j - first) * kVectors + u;
        // Modulo 2^32: the differences are in range.
        auto without = [&](int p) { return int32_t(uint32_t(of[p]) - uint32_t(zero) * uint32_t(x.sum(p, r + u))); };
        y[(r + u) * w.outputs + j] = join(without(0), without(PARTS - 1), PARTS) * w.scales[j] * x.scales[r + u];
      }
    }
  });
}

// A piece is BYTES bytes of weights of a group. Its integer sum is scaled and added to a float32 sum.
// One row that lies and 16 outputs. Weights of 64 / BYTES outputs share a vector.
template <int BYTES, int PARTS, int BITS>
inline void lying_grouped(const Activations& x, int64_t r, const Matrix& w, float* y, int64_t begin, int64_t end) {
  constexpr int kVectors = BYTES / 4, kHalves = 8 / BITS;
  auto widen = [](const void* from) __attribute__((always_inline)) {
    if constexpr (BYTES == 64) return _mm512_loadu_si512(from);
    if constexpr (BYTES == 32) return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
    if constexpr (BYTES == 16) return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  };
  const int64_t row_bytes = w.row_bytes(), pieces = row_bytes / BYTES, of_group = pieces / w.groups;
  in_blocks<16>(begin, end, w.outputs, [&](int64_t first, int64_t step, int64_t from, int64_t to) __attribute__((always_inline)) {
    const int64_t stride = step * row_bytes;
    const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                              _mm512_set1_epi32(int(step * w.groups)));
    __m512 total = _mm512_setzero_ps(), scales = total;
    __m512i zeros = _mm512_set1_epi32(1 << (BITS - 1));
    for (int64_t piece = 0, left = 0, group = 0; piece < pieces; ++piece, --left) {
      if (!left) {
        left = of_group;
        scales = _mm512_i32gather_ps(places, w.scales + first * w.groups + group, 4);
        if (w.zero_points) {
          alignas(64) int32_t points[16];
          for (int o = 0; o < 16; ++o) points[o] = (1 << (BITS - 1)) + w.zero_point(first + o * step, group);
          zeros = _mm512_load_si512(points);
        }
        ++group;
      }
      const int64_t at = piece * BYTES, place = at / 64 * 64 * kHalves + at % 64;
      // The weights of the next block: its 16 rows are more streams than the processor follows by itself.
      if (at % 64 == 0)
#pragma GCC unroll 16
        for (int o = 0; o < 16; ++o) __builtin_prefetch(w.values + first * row_bytes + (16 + o) * stride + at, 0, 2);
      __m512i inputs[PARTS][kHalves], sums[kVectors];
#pragma GCC unroll 2
      for (int p = 0; p < PARTS; ++p)
        for (int h = 0; h < kHalves; ++h) inputs[p][h] = widen(x.row(p, r) + place + h * 64);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* values = w.values + first * row_bytes + at;
        auto row = [&](int part) __attribute__((always_inline)) { return values + output_of<kVectors>(v, part) * stride; };
        __m512i bytes;
        if constexpr (BYTES == 64) {
          bytes = _mm512_loadu_si512(row(0));
        } else if constexpr (BYTES == 32) {
          auto load = [&](int part) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row(part))); };
          bytes = _mm512_inserti64x4(_mm512_castsi256_si512(load(0)), load(1), 1);
        } else {
          auto load = [&](int part) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(part))); };
          bytes = _mm512_inserti32x4(_mm512_castsi128_si512(load(0)), load(1), 1);
          bytes = _mm512_inserti32x4(_mm512_inserti32x4(bytes, load(2), 2), load(3), 3);
        }
        __m512i weights[2] = {BITS == 8 ? unsigned_bytes(bytes) : unsigned_nibbles(bytes), unsigned_nibbles(_mm512_srli_epi32(bytes, 4))};
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int p = 0; p < PARTS; ++p) {
          if (p) sum = _mm512_slli_epi32(sum, 8);
          for (int h = 0; h < kHalves; ++h) sum = _mm512_dpbusd_epi32(sum, weights[h], inputs[p][h]);
        }
        sums[v] = sum;
      }
      int32_t of_inputs = 0;
      for (int64_t u = at / kUnitBytes; u < (at + BYTES) / kUnitBytes; ++u) of_inputs += x.unit_sums[u * x.padded + r];
      const __m512i sum = _mm512_sub_epi32(sum_lanes(sums), _mm512_mullo_epi32(zeros, _mm512_set1_epi32(of_inputs)));
      total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, total);
    }
    const int64_t skipped = from - first;
    total = _mm512_mul_ps(total, _mm512_set1_ps(x.scales[r]));
    _mm512_mask_storeu_ps(y + r * w.outputs + first, __mmask16(((1 << (to - from)) - 1) << skipped), total);
  });
}

// sum + inputs weights, for four inputs of each row and the four weights at `weights`, which meet those of all rows. The load broadcasts
// them: as an instruction of its own, a broadcast takes as long as the product.
inline __m512i add_products(__m512i sum, __m512i inputs, const uint8_t* weights) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(inputs), "m"(*reinterpret_cast<const int32_t(*)[1]>(weights)));
  return sum;
}

// The sum of the weights of each of COUNT outputs.
template <int COUNT>
inline __m512i sum_weights(const uint8_t* values, int64_t stride, int64_t count) {
  __m512i sums[16];
  for (auto& each : sums) each = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 mask = count - i < 64 ? (__mmask64(1) << (count - i)) - 1 : ~__mmask64(0);
#pragma GCC unroll 16
    for (int o = 0; o < COUNT; ++o)
      sums[o] = _mm512_dpbusd_epi32(sums[o], _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(mask, values + o * stride + i));
  }
  return sum_lanes(sums);
}

// sums [OUTPUTS, VECTORS, 16] of products of unsigned inputs [VECTORS, dwords, 16] and signed weights.
template <int OUTPUTS, int VECTORS>
inline void add_standing(const float* inputs, int64_t dwords, const uint8_t* values, int64_t stride, int64_t count, int32_t* sums) {
  __m512i total[OUTPUTS][VECTORS];
#pragma GCC unroll 12
  for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) total[o][v] = _mm512_setzero_si512();
  auto add = [&](int64_t d) __attribute__((always_inline)) {
    __m512i four[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) four[v] = _mm512_load_si512(inputs + (v * dwords + d) * 16);
#pragma GCC unroll 12
    for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) total[o][v] = add_products(total[o][v], four[v], values + o * stride + d * 4);
  };
  int64_t d = 0;
  for (; d + 16 <= count; d += 16) {
    // The weights of the next block.
#pragma GCC unroll 12
    for (int o = 0; o < OUTPUTS; ++o) __builtin_prefetch(values + (OUTPUTS + o) * stride + d * 4, 0, 2);
#pragma GCC unroll 16
    for (int e = 0; e < 16; ++e) add(d + e);
  }
  for (; d < count; ++d) add(d);
#pragma GCC unroll 12
  for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(sums + (o * VECTORS + v) * 16, total[o][v]);
}

// A tile of rows that stand, 8 bits, one scale: sums [end - begin, 16], not scaled. Here the inputs are unsigned, and the weights signed.
template <int PARTS, bool NARROW>
inline void standing_whole(const Activations& x, int64_t r, const Matrix& w, float* sums, int64_t begin, int64_t end) {
  constexpr int kOutputs = 12, kVectors = NARROW ? 1 : PARTS;
  in_blocks<kOutputs>(begin, end, w.outputs, [&](int64_t first, int64_t step, int64_t from, int64_t to) {
    const uint8_t* values = w.values + first * w.inputs;
    const int64_t stride = step * w.inputs;
    alignas(64) int32_t of_weights[16], total[kOutputs * kVectors * 16];
    _mm512_store_si512(of_weights, sum_weights<kOutputs>(values, stride, w.inputs));
    add_standing<kOutputs, kVectors>(x.tile(r), x.dwords(), values, stride, w.inputs / 4, total);
    for (int64_t j = from; j < to; ++j) {
      const __m512i more = _mm512_set1_epi32(128 * of_weights[j - first]), zero = _mm512_set1_epi32(w.zero_point(j));
      auto without = [&](int v) {
        const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(total + ((j - first) * kVectors + v) * 16), more);
        return _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_loadu_si512(x.sums.data() + v * x.padded + r)));
      };
      const __m512i high = without(0);
      const __m512i low = NARROW ? _mm512_shuffle_i64x2(high, high, 0x4e) : without(kVectors - 1);
      __m512 sum = _mm512_cvtepi32_ps(high);
      if (PARTS == 2) sum = _mm512_fmadd_ps(_mm512_set1_ps(256), sum, _mm512_cvtepi32_ps(low));
      _mm512_store_ps(sums + (j - begin) * 16, sum);
    }
  });
}

// A tile of rows that stand, groups: sums [end - begin, 16], scaled by the scales of the groups.
template <int PARTS, bool NARROW, int BITS>
inline void standing_grouped(const Activations& x, int64_t r, const Matrix& w, float* sums, int64_t begin, int64_t end, int64_t bytes) {
  constexpr int kOutputs = 8, kVectors = NARROW ? 1 : PARTS, kHalves = 8 / BITS;
  const float* inputs = x.tile(r);
  const int64_t dwords = x.dwords(), row_bytes = w.row_bytes(), pieces = row_bytes / bytes, of_group = pieces / w.groups;
  in_blocks<kOutputs>(begin, end, w.outputs, [&](int64_t first, int64_t step, int64_t from, int64_t to) __attribute__((always_inline)) {
    const uint8_t* values = w.values + first * row_bytes;
    const int64_t stride = step * row_bytes;
    __m512 total[kOutputs];
    for (auto& each : total) each = _mm512_setzero_ps();
    for (int64_t piece = 0, group = 0, left = of_group; piece < pieces; ++piece) {
      __m512i sum[kOutputs][kVectors];
      for (auto& of_output : sum)
        for (auto& each : of_output) each = _mm512_setzero_si512();
      const int64_t at = piece * bytes;
      if (at % 64 == 0)
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) __builtin_prefetch(values + (kOutputs + o) * stride + at, 0, 2);
      const float* of_piece = inputs + (at / 64 * 64 * kHalves + at % 64) / 4 * 16;
      for (int64_t d = 0; d < bytes / 4; ++d) {
        __m512i four[kHalves][kVectors];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h)
          for (int v = 0; v < kVectors; ++v) four[h][v] = unsigned_bytes(_mm512_load_si512(of_piece + (v * dwords + h * 16 + d) * 16));
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) {
          int32_t loaded;
          std::memcpy(&loaded, values + o * stride + at + d * 4, 4);
          const __m512i all = _mm512_set1_epi32(loaded);
          __m512i weights = BITS == 8 ? unsigned_bytes(all) : unsigned_nibbles(all);
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; ++h) {
            if (h) weights = unsigned_nibbles(_mm512_srli_epi32(all, 4));
            for (int v = 0; v < kVectors; ++v) sum[o][v] = _mm512_dpbusd_epi32(sum[o][v], weights, four[h][v]);
          }
        }
      }
      __m512i of_inputs = _mm512_setzero_si512();
      for (int64_t u = at / kUnitBytes; u < (at + bytes) / kUnitBytes; ++u)
        of_inputs = _mm512_add_epi32(of_inputs, _mm512_loadu_si512(x.unit_sums.data() + u * x.padded + r));
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        __m512i whole = sum[o][0];
        const __m512i low = NARROW ? _mm512_shuffle_i64x2(whole, whole, 0x4e) : sum[o][kVectors - 1];
        if (PARTS == 2) whole = _mm512_add_epi32(_mm512_slli_epi32(whole, 8), low);
        const int64_t place = (first + o * step) * w.groups + group;
        const __m512i offset = w.zero_points ? _mm512_mullo_epi32(of_inputs, _mm512_set1_epi32((1 << (BITS - 1)) + w.zero_points[place]))
                                             : _mm512_slli_epi32(of_inputs, BITS - 1);
        total[o] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(whole, offset)), _mm512_set1_ps(w.scales[place]), total[o]);
      }
      if (!--left) ++group, left = of_group;
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o)
      if (first + o >= from && first + o < to) _mm512_store_ps(sums + (first + o - begin) * 16, total[o]);
  });
}

// y = sums [end - begin, 16] of a tile, transposed and scaled.
inline void store_tile(const float* sums, const Activations& x, int64_t r, const Matrix& w, float* y, int64_t begin, int64_t end) {
  alignas(64) float columns[16 * 16];
  for (int64_t j = begin; j < end; j += 16) {
    const int64_t count = std::min<int64_t>(16, end - j);
    const __mmask16 mask = __mmask16((1 << count) - 1);
    transpose(sums + (j - begin) * 16, 16, 16, 16, columns);
    const __m512 scales = w.is_whole() ? _mm512_maskz_loadu_ps(mask, w.scales + j) : _mm512_set1_ps(1);
    for (int64_t i = 0; i < std::min(kTileRows, x.rows - r); ++i) {
      const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(columns + i * 16), scales), _mm512_set1_ps(x.scales[r + i]));
      _mm512_mask_storeu_ps(y + (r + i) * w.outputs + j, mask, scaled);
    }
  }
}

// Bytes of a piece of a group, or 0 if the sizes do not allow pieces.
inline int64_t piece_bytes(const Matrix& w) {
  if (w.inputs * w.bits % 8) return 0;
  const int64_t bits = w.group_size() * w.bits;
  for (int64_t bytes : {64, 32, 16})
    if (bits % (bytes * 8) == 0) return bytes;
  return 0;
}

inline bool has_blocks(const Activations&, const Matrix& w) { return w.is_whole() || piece_bytes(w); }

template <int PARTS, int BITS>
inline void multiply_lying(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  const int64_t bytes = piece_bytes(w);
  for (int64_t r = 0; r < x.rows; ++r) {
    if (!w.is_whole())
      bytes == 64   ? lying_grouped<64, PARTS, BITS>(x, r, w, y, begin, end)
      : bytes == 32 ? lying_grouped<32, PARTS, BITS>(x, r, w, y, begin, end)
                    : lying_grouped<16, PARTS, BITS>(x, r, w, y, begin, end);
    else if constexpr (PARTS == 2)
      lying_whole<1, 2>(x, r, w, y, begin, end);
    else if (r + 2 <= x.rows)
      lying_whole<2, 1>(x, r++, w, y, begin, end);
    else
      lying_whole<1, 1>(x, r, w, y, begin, end);
  }
}

template <int PARTS, int BITS, bool NARROW>
inline void multiply_standing(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  alignas(64) float sums[kChunk * 16];
  for (int64_t r = 0; r < x.rows; r += kTileRows) {
    w.is_whole() ? standing_whole<PARTS, NARROW>(x, r, w, sums, begin, end)
                 : standing_grouped<PARTS, NARROW, BITS>(x, r, w, sums, begin, end, piece_bytes(w));
    store_tile(sums, x, r, w, y, begin, end);
  }
}

template <int PARTS, int BITS>
inline void multiply_parts(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j += kChunk) {
    const int64_t last = std::min(j + kChunk, end);
    if (!x.stand)
      multiply_lying<PARTS, BITS>(x, w, y, j, last);
    else if (PARTS == 2 && x.narrow)
      multiply_standing<PARTS, BITS, PARTS == 2>(x, w, y, j, last);
    else
      multiply_standing<PARTS, BITS, false>(x, w, y, j, last);
  }
}

inline void multiply_blocks(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  if (x.parts == 2)
    w.bits == 8 ? multiply_parts<2, 8>(x, w, y, begin, end) : multiply_parts<2, 4>(x, w, y, begin, end);
  else
    w.bits == 8 ? multiply_parts<1, 8>(x, w, y, begin, end) : multiply_parts<1, 4>(x, w, y, begin, end);
}

// y[rows, outputs] for the outputs [begin, end).
inline void multiply_integers(const Activations& x, const Matrix& w, float* y, int64_t begin, int64_t end) {
  if (has_blocks(x, w)) return multiply_blocks(x, w, y, begin, end);
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < x.rows; ++r) y[r * w.outputs + j] = dot_any(x, r, w, j);
}
