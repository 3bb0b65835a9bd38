// What host/quantize.cpp and kernels/quantize_sm90.cu agree on.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::kernels {

// Passed by value. A region is the part of a matrix that shares a scale; in the recipe `tensor`, a piece of work.
struct QuantizeArguments {
  const void* x;              // [matrices, rows, columns], columns contiguous
  uint8_t* q;                 // [matrices, rows, columns], contiguous
  float* scale;               // [matrices, row regions, column regions]; not written when static_scale is given
  const float* static_scale;  // the same shape, or null
  uint32_t* partial_amax;     // tensor: [matrices, gridDim.x], bits of a non-negative fp32
  int64_t rows, columns;
  int64_t matrix_stride, row_stride;                                   // of x, in elements
  int64_t scale_matrix_stride, scale_row_stride, scale_column_stride;  // of the scales, in elements
  int64_t row_regions;
  uint32_t column_regions;  // those that lie side by side
};

constexpr int kQuantizeVectors = 8;  // 16-byte vectors of a region that a thread keeps in registers
constexpr int kQuantizeTensorThreads = 256;
constexpr int kQuantizeRowMaxThreads = 512;

}  // namespace hunyuan_kernels::kernels
