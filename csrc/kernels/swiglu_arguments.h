// What host/swiglu.cpp and kernels/swiglu_sm90.cu agree on. Strides in elements; the elements of a row are contiguous.
#pragma once
#include <cstdint>

#include "kernels/row_blocks.h"

namespace hunyuan_kernels::kernels {

struct SwigluArguments {
  const void* x;             // [rows, 2 * columns]: gate, then up
  const int32_t* rows_used;  // one element: expert_offsets[E]; null: all rows
  void* out;                 // [rows, columns], contiguous
  int64_t rows, columns, x_stride;
};

struct SwigluBackwardArguments {
  const void* grad_out;  // [rows, columns]
  const void* x;         // [rows, 2 * columns]
  const int32_t* rows_used;
  void* grad_x;  // [rows, 2 * columns], contiguous
  int64_t rows, columns, grad_out_stride, x_stride;
};

}  // namespace hunyuan_kernels::kernels
