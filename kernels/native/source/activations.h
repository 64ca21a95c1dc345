// Activations as integers of 16 bits in two parts of 8 bits, or of 8 bits, with a scale for each row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// The weights of a block are 64 bytes: 64 weights of 8 bits or 128 of 4 bits.
constexpr int64_t kBlockBytes = 64;

// A row is a sequence of blocks. Those of 8-bit weights hold 64 high and 64 low parts. Those of 4-bit weights hold the inputs with even
// numbers, which meet the low halves of the bytes of the weights, and then those with odd numbers. With 8 bits there are no low parts.
struct Activations {
  int bits;          // of a weight: 8 or 4
  int parts;         // 2: high and low; 1: 8 bits
  int64_t rows, inputs, blocks;
  std::vector<int8_t> values;
  std::vector<int32_t> sums;  // [rows, blocks, 16]: the sum of the inputs that meet four bytes of the weights
  std::vector<float> scales;   // [rows]
  std::vector<float> totals;    // [rows, 16]: `sums` over all blocks

  int64_t block_inputs() const { return kBlockBytes * 8 / bits; }
  int64_t block_bytes() const { return block_inputs() * parts; }
  const int8_t* row(int64_t r) const { return values.data() + r * blocks * block_bytes(); }
  const float* row_totals(int64_t r) const { return totals.data() + r * 16; }
  int64_t total(int64_t r) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < blocks * 16; ++i) sum += row_sums(r)[i];
    return sum;
  }
  const int32_t* row_sums(int64_t r) const { return sums.data() + r * blocks * 16; }
};

// x = scale (256 high + low), or x = scale high.
inline Activations quantize(const float* x, int64_t rows, int64_t inputs, int bits, int parts) {
  Activations made{bits, parts, rows, inputs};
  int64_t width = made.block_inputs();
  made.blocks = (inputs + width - 1) / width;
  // No zeros where values are written next: a vector's memory is cleared once, which is cheap for few rows.
  made.values.resize(rows * made.blocks * made.block_bytes());
  made.sums.resize(rows * made.blocks * 16);
  made.scales.resize(rows);
  made.totals.resize(rows * 16);
  const float steps = parts == 2 ? 32512 : 127;  // 127 * 256
  std::vector<int16_t> whole(made.blocks * width);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * inputs;
    float largest = 0, finite = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      float size = std::fabs(row[i]);
      largest = size > largest ? size : largest;
    }
    for (int64_t i = 0; i < inputs; ++i) finite += row[i] * 0.f;
    // Not a number in a row makes the whole row so, and no other row.
    bool usable = finite == 0 && largest >= 1e-30f;
    float inverse = usable ? steps / largest : 0;
    made.scales[r] = finite == 0 ? (usable ? largest / steps : 0) : NAN;
    if (usable)
      for (int64_t i = 0; i < inputs; ++i) whole[i] = int16_t(int32_t(std::nearbyint(row[i] * inverse)));
    else
      std::fill(whole.begin(), whole.end(), 0);
    int8_t* to = made.values.data() + r * made.blocks * made.block_bytes();
    int32_t* sums = made.sums.data() + r * made.blocks * 16;
    const int step = 8 / bits;
    for (int64_t b = 0; b < made.blocks; ++b, to += made.block_bytes(), sums += 16) {
      const int16_t* from = whole.data() + b * width;
      for (int half = 0; half < step; ++half)
        for (int i = 0; i < 64; ++i) {
          int16_t value = from[i * step + half];
          int8_t* place = to + half * 64 * parts + i;
          if (parts == 2) {
            int16_t high = int16_t((value + 128) >> 8);
            place[0] = int8_t(high);
            place[64] = int8_t(value - 256 * high);
          } else {
            place[0] = int8_t(value);
          }
        }
      for (int lane = 0; lane < 16; ++lane) {
        int32_t total = 0;
        for (int i = 0; i < 4 * step; ++i) total += from[lane * 4 * step + i];
        sums[lane] = total;
        made.totals[r * 16 + lane] += float(total);
      }
    }
  }
  return made;
}
