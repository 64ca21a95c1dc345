// The functions that XLA calls. The library is compiled on the machine that runs it (library.py), for its instructions.
#include <string>

#include "attend_one.h"
#include "float_product.h"
#include "integer_product.h"
#include "mamba_step.h"
#include "rms_norm.h"
#include "threads.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// x [rows, k]; w [parts, k, n]; y [parts, rows, n].
static ffi::Error FloatColumns(ffi::ThreadPool pool, Floats x, Floats w, Result y) {
  auto shape = w.dimensions();
  int64_t parts = shape[0], k = shape[1], n = shape[2], rows = x.dimensions()[0];
  const std::vector<float> inputs = interleave(x.typed_data(), rows, k);
  const float* weights = w.typed_data();
  float* to = y->typed_data();
  // One row is read faster in long pieces.
  in_parallel(pool, parts * n, 32, parts * k * n * 4, rows == 1 ? 1 : 4, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin / n; part * n < end; ++part) {
      int64_t first = std::max(begin - part * n, int64_t(0)), last = std::min(end - part * n, n);
      multiply_columns(inputs.data(), weights + part * k * n, to + part * rows * n, rows, k, n, first, last);
    }
  });
  return ffi::Error::Success();
}

// x [rows, k]; w [n, k]; y [rows, n].
static ffi::Error FloatOutputs(ffi::ThreadPool pool, Floats x, Floats w, Result y) {
  int64_t n = w.dimensions()[0], k = w.dimensions()[1], rows = x.dimensions()[0];
  const float* weights = w.typed_data();
  float* to = y->typed_data();
  if (rows <= kMostRows) {
    const float* inputs = x.typed_data();
    in_parallel(pool, n, 8, n * k * 4, 4, [&](int64_t begin, int64_t end) {
      multiply_lying(inputs, weights, to, rows, k, n, begin, end);
    });
  } else {
    const Standing inputs(x.typed_data(), rows, k);
    in_parallel(pool, n, 24, n * k * 4, 4, [&](int64_t begin, int64_t end) {
      multiply_standing(inputs.data(), weights, to, rows, k, n, begin, end);
    });
  }
  return ffi::Error::Success();
}

// x [rows, k], and for each matrix: w [n, k] of 8 or 4 bits, the same for all; scales [n, groups]; zero points [n, groups] of 8 bits, or [0].
// The results are y [rows, n].
static ffi::Error Integers(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs arrays, ffi::RemainingRets results, int64_t parts) {
  struct Product {
    Matrix matrix;
    float* y;
    int64_t first;  // of its blocks of outputs
  };
  constexpr int64_t kOutputs = 48;
  std::vector<Product> products;
  int64_t blocks = 0, bytes = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    auto w = arrays.get<ffi::AnyBuffer>(3 * i);
    auto scales = arrays.get<Floats>(3 * i + 1);
    auto zero_points = arrays.get<ffi::Buffer<ffi::S8>>(3 * i + 2);
    auto y = results.get<Floats>(i);
    if (!w || !scales || !zero_points || !y) return ffi::Error::InvalidArgument("plamo2_integers: wrong arrays");
    const Matrix matrix{static_cast<const uint8_t*>(w->untyped_data()),
                        scales->typed_data(),
                        zero_points->element_count() ? zero_points->typed_data() : nullptr,
                        w->element_type() == ffi::S4 ? 4 : 8,
                        w->dimensions()[0],
                        w->dimensions()[1],
                        scales->dimensions()[1]};
    products.push_back({matrix, (*y)->typed_data(), blocks});
    blocks += (matrix.outputs + kOutputs - 1) / kOutputs;
    bytes += matrix.outputs * matrix.row_bytes();
  }
  const Matrix& one = products[0].matrix;
  const bool grouped = std::any_of(products.begin(), products.end(), [](const Product& each) { return !each.matrix.is_whole(); });
  const Activations inputs = quantize(x.typed_data(), x.dimensions()[0], one.inputs, one.bits, int(parts), grouped);
  in_parallel(pool, blocks, 1, bytes, 4, [&](int64_t begin, int64_t end) {
    for (const Product& each : products) {
      const int64_t from = std::max((begin - each.first) * kOutputs, int64_t(0));
      const int64_t to = std::min((end - each.first) * kOutputs, each.matrix.outputs);
      if (from < to) multiply_integers(inputs, each.matrix, each.y, from, to);
    }
  });
  return ffi::Error::Success();
}

// q [b, h, p]; k, v [b, g, s, p] as floats, or as integers of 8 bits with scales [b, g, s]; positions and segments [b, s] of the slots and
// [b] of the queries; y [b, h, p].
static ffi::Error AttendOne(ffi::ThreadPool pool, Floats q, ffi::AnyBuffer k, ffi::AnyBuffer v, Floats k_scales, Floats v_scales,
                            ffi::Buffer<ffi::S32> positions, ffi::Buffer<ffi::S32> segments, ffi::Buffer<ffi::S32> q_positions,
                            ffi::Buffer<ffi::S32> q_segments, Result y, int64_t window) {
  auto shape = k.dimensions();
  const int64_t b = shape[0], g = shape[1], s = shape[2], p = shape[3], queries = q.dimensions()[1] / g;
  const Ring ring{g, s, p, positions.typed_data(), segments.typed_data(), window};
  const bool whole = k.element_type() == ffi::S8;
  in_parallel(pool, b * g, 1, b * g * s * p * 2 * (whole ? 1 : 4), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / g;
      const int32_t position = q_positions.typed_data()[row], segment = q_segments.typed_data()[row];
      const float* query = q.typed_data() + i * queries * p;
      float* to = y->typed_data() + i * queries * p;
      if (whole)
        attend_one(query, static_cast<const int8_t*>(k.untyped_data()) + i * s * p,
                   static_cast<const int8_t*>(v.untyped_data()) + i * s * p, k_scales.typed_data() + i * s,
                   v_scales.typed_data() + i * s, ring, row, position, segment, queries, to);
      else
        attend_one<float>(query, static_cast<const float*>(k.untyped_data()) + i * s * p,
                          static_cast<const float*>(v.untyped_data()) + i * s * p, nullptr, nullptr, ring, row, position, segment,
                          queries, to);
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(plamo2_attend_one, AttendOne,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("window"));
// x [rows, ..., width]; scale [..., width].
static ffi::Error RmsNorm(Floats x, Floats scale, Result y, float epsilon, float offset) {
  const int64_t width = scale.dimensions().back(), period = scale.element_count(), count = x.element_count();
  for (int64_t i = 0; i < count; i += width)
    rms_norm(x.typed_data() + i, scale.typed_data() + i % period, y->typed_data() + i, width, epsilon, offset);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    plamo2_rms_norm, RmsNorm,
    ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<float>("epsilon").Attr<float>("offset"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(plamo2_float_columns, FloatColumns,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(plamo2_float_outputs, FloatOutputs,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(plamo2_integers, Integers,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("parts"));

// The arrays of `MambaStep` in its order. y [b, channels].
static ffi::Error StepMamba(ffi::ThreadPool pool, Floats x, Floats z, ffi::Buffer<ffi::S32> segments, ffi::Buffer<ffi::PRED> continues,
                            Floats conv, Floats b_proj, Floats c_proj, Floats dt_down, Floats b_norm, Floats c_norm, Floats dt_norm,
                            Floats dt_up, Floats dt_bias, Floats a_log, Floats skip, Floats conv_before, Floats ssm_before, Result y,
                            Result conv_after, Result ssm_after, float epsilon) {
  auto shape = ssm_before.dimensions();
  const MambaStep step{shape[0],
                       shape[1],
                       shape[2],
                       shape[3],
                       int64_t(conv.dimensions().back()),
                       int64_t(dt_norm.element_count()),
                       epsilon,
                       x.typed_data(),
                       z.typed_data(),
                       segments.typed_data(),
                       continues.typed_data(),
                       conv.typed_data(),
                       {b_proj.typed_data(), c_proj.typed_data(), dt_down.typed_data()},
                       {b_norm.typed_data(), c_norm.typed_data(), dt_norm.typed_data()},
                       dt_up.typed_data(),
                       dt_bias.typed_data(),
                       a_log.typed_data(),
                       skip.typed_data(),
                       conv_before.typed_data(),
                       ssm_before.typed_data(),
                       y->typed_data(),
                       conv_after->typed_data(),
                       ssm_after->typed_data()};
  step.run(pool);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(plamo2_mamba_step, StepMamba,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("epsilon"));
