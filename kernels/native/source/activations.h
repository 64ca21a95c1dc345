// Activations as integers of 16 bits in two parts of 8 bits, or of 8 bits, with a scale for each row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool kHasVnni = true;
#else
constexpr bool kHasVnni = false;
#endif

// The weights of a block are 64 bytes: 64 weights of 8 bits or 128 of 4 bits. A unit is a quarter of a block.
constexpr int64_t kBlockBytes = 64, kUnitBytes = 16;
// Rows of a tile that stands: one for each lane of a vector of 32-bit sums.
constexpr int64_t kTileRows = 16;

// A row is a sequence of blocks. Those of 8-bit weights hold 64 inputs. Those of 4-bit weights hold 64 inputs with even numbers, which meet
// the low halves of the bytes of the weights, and then 64 with odd numbers.
//
// Several rows may stand: a vector then holds four inputs of each of 16 rows, and sums need no additions across lanes. Up to 8 rows are
// narrow: their high and low parts share a vector.
struct Activations {
  int bits;   // of a weight: 8 or 4
  int parts;  // 2: high and low; 1: 8 bits
  int64_t rows, inputs, blocks;
  bool stand, narrow;
  int64_t padded;                 // rows in memory
  std::vector<int8_t> values;     // [parts, padded, blocks * block_bytes]
  std::vector<int16_t> wide;      // [rows, inputs], without VNNI, and then there are no other integers
  std::vector<float> scales;      // [rows]
  std::vector<int32_t> sums;      // [parts, padded], over all inputs
  std::vector<int32_t> unit_sums;  // [units, padded]: of 256 high + low, or of the 8 bits; empty without groups
  std::vector<float> standing;    // [tiles, vectors, dwords, 16], from an aligned address; the bits are four inputs, with 128 more

  int halves() const { return 8 / bits; }
  int64_t block_inputs() const { return kBlockBytes * halves(); }
  int64_t row_bytes() const { return blocks * block_inputs(); }
  int64_t dwords() const { return row_bytes() / 4; }
  int vectors() const { return narrow ? 1 : parts; }
  const int16_t* wide_row(int64_t r) const { return wide.data() + r * inputs; }
  const int8_t* row(int part, int64_t r) const { return values.data() + (part * padded + r) * row_bytes(); }
  int32_t sum(int part, int64_t r) const { return sums[part * padded + r]; }
  const float* tile(int64_t r) const { return aligned(standing.data()) + r * vectors() * dwords(); }

  // A vector that begins elsewhere takes two loads.
  static const float* aligned(const float* from) {
    return reinterpret_cast<const float*>((reinterpret_cast<uintptr_t>(from) + 63) / 64 * 64);
  }
};

// whole = x rounded to multiples of `scale`. Returns `scale`: the largest magnitude becomes `steps`.
inline float round_row(const float* x, int64_t count, float steps, int16_t* whole) {
  Vector most = {}, finite = {};
  auto each = [&](auto body) __attribute__((always_inline)) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) body(i, load(x + i));
    if (i < count) body(i, load_part(x + i, count - i));
  };
  each([&](int64_t, Vector value) __attribute__((always_inline)) {
    const Vector size = value < 0.0f ? -value : value;
    most = size > most ? size : most;
    finite += value * 0.0f;
  });
  float largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = std::max(largest, most[i]);
  // Not a number in a row makes the whole row so, and no other row.
  const bool is_finite = add_lanes(finite) == 0;
  if (!is_finite || largest < 1e-30f) {
    std::fill_n(whole, count, int16_t(0));
    return is_finite ? 0 : NAN;
  }
  const float inverse = steps / largest;
  each([&](int64_t i, Vector value) __attribute__((always_inline)) {
    typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
    typedef int16_t Shorts __attribute__((vector_size(kLanes * 2)));
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const Vector rounded = (value * inverse + 12582912.0f) - 12582912.0f;
    const Shorts shorts = __builtin_convertvector(__builtin_convertvector(rounded, Integers), Shorts);
    std::memcpy(whole + i, &shorts, std::min<int64_t>(kLanes, count - i) * 2);
  });
  return largest / steps;
}

// part = the high or the low part of each integer. Returns the sum.
inline int32_t take_part(const int16_t* __restrict whole, int64_t count, int parts, int p, int8_t* __restrict part) {
  int32_t sum = 0;
  const int16_t half = parts == 2 ? 128 : 0, shift = parts == 2 ? 8 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t high = int16_t(whole[i] + half) >> shift, taken = p ? int16_t(whole[i] - 256 * high) : high;
    part[i] = int8_t(taken);
    sum += taken;
  }
  return sum;
}

// 128 inputs: those with even numbers, and those with odd numbers.
inline void divide_block(const int8_t* __restrict from, int8_t* __restrict to) {
  for (int i = 0; i < 64; ++i) to[i] = from[2 * i], to[64 + i] = from[2 * i + 1];
}

// x = scale (256 high + low), or x = scale high. `grouped`: matrices with several scales for an output will be multiplied.
inline Activations quantize(const float* x, int64_t rows, int64_t inputs, int bits, int parts, bool grouped) {
  Activations made{bits, parts, rows, inputs};
  const float steps = parts == 2 ? 127 * 256 : 127;
  made.scales.resize(rows);
  if (!kHasVnni) {
    made.wide.resize(rows * inputs);
    for (int64_t r = 0; r < rows; ++r) made.scales[r] = round_row(x + r * inputs, inputs, steps, made.wide.data() + r * inputs);
    return made;
  }
  const int64_t width = made.block_inputs();
  made.blocks = (inputs + width - 1) / width;
  // With fewer rows, most lanes would be empty, and the additions across lanes take less time.
  made.stand = rows > (parts == 2 ? 4 : 7) && inputs % 4 == 0;
  made.narrow = made.stand && parts == 2 && rows <= 8;
  made.padded = !made.stand ? rows : made.narrow ? 8 : (rows + kTileRows - 1) / kTileRows * kTileRows;
  made.values.resize(parts * made.padded * made.row_bytes());
  made.sums.resize(parts * made.padded);
  const int64_t units = made.blocks * kBlockBytes / kUnitBytes, unit = kUnitBytes * made.halves();
  if (grouped) made.unit_sums.resize(units * made.padded + kTileRows);
  std::vector<int16_t> whole(made.blocks * width);
  std::vector<int8_t> bytes(whole.size());
  const int64_t count = whole.size();
  for (int64_t r = 0; r < rows; ++r) {
    made.scales[r] = round_row(x + r * inputs, inputs, steps, whole.data());
    for (int p = 0; p < parts; ++p) {
      int8_t* to = made.values.data() + (p * made.padded + r) * made.row_bytes();
      made.sums[p * made.padded + r] = take_part(whole.data(), count, parts, p, bits == 8 ? to : bytes.data());
      if (bits == 4)
        for (int64_t b = 0; b < made.blocks; ++b) divide_block(bytes.data() + b * 128, to + b * 128);
    }
    if (grouped)
      for (int64_t u = 0; u < units; ++u) {
        int32_t sum = 0;
        for (int64_t i = 0; i < unit; ++i) sum += whole[u * unit + i];
        made.unit_sums[u * made.padded + r] = sum;
      }
  }
  if (!made.stand) return made;
  const int64_t dwords = made.dwords(), tiles = (made.padded + kTileRows - 1) / kTileRows;
  made.standing.resize(tiles * made.vectors() * dwords * kTileRows + 16);
  for (int64_t t = 0; t < tiles; ++t)
    for (int v = 0; v < made.vectors(); ++v) {
      float* to = const_cast<float*>(made.tile(t * kTileRows)) + v * dwords * kTileRows;
      transpose(reinterpret_cast<const float*>(made.row(v, t * kTileRows)), dwords, kTileRows, dwords, to);
      typedef uint64_t Bits __attribute__((may_alias));
      Bits* bits_of = reinterpret_cast<Bits*>(to);
      for (int64_t i = 0; i < dwords * kTileRows / 2; ++i) bits_of[i] ^= 0x8080808080808080;
    }
  return made;
}
