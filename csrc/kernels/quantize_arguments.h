// What host/quantize.cpp and kernels/quantize_sm90.cu agree on.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::kernels {

// Passed by value. A region is the part of x that shares a scale; in the recipe `tensor`, a piece of work.
struct QuantizeArguments {
  const void* x;              // [rows, columns], columns contiguous
  uint8_t* q;                 // [rows, columns], contiguous
  float* scale;               // one per region (tensor: one); not written when static_scale is given
  const float* static_scale;  // the same shape, or null
  uint32_t* partial_amax;     // tensor: one per block of the first launch, bits of a non-negative fp32
  int64_t rows, columns;
  int64_t row_stride;       // of x, in elements
  int64_t regions;          // all of them
  int64_t regions_per_row;  // those that lie side by side
  int32_t num_partials;     // tensor: blocks of the first launch
};

constexpr int kQuantizeVectors = 8;  // 16-byte vectors of a region that a thread keeps in registers
constexpr int kQuantizeTensorThreads = 256;
constexpr int kQuantizeRowMaxThreads = 512;

}  // namespace hunyuan_kernels::kernels
