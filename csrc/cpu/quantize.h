// quantize_fp8 on the CPU: see cpu/quantize.cpp.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/quantize_recipe.h"

namespace hunyuan_kernels::cpu {

// x[matrix][row][column] -> q (contiguous) and scale[matrix][row block][column block]; strides in elements, those of
// dimensions that the recipe does not have are ignored.
struct QuantizeArguments {
  QuantizeRecipe recipe;
  const void* x;
  DType dtype;  // float32 or bfloat16
  int64_t matrices, rows, columns;
  int64_t matrix_stride, row_stride;
  float8_e4m3fn* q;
  float* scale;               // written, unless static_scale is given
  const float* static_scale;  // read instead of computed; nullptr: dynamic
  int64_t scale_matrix_stride, scale_row_stride, scale_column_stride;
};

void quantize_fp8(const QuantizeArguments& arguments, const ThreadPool& pool);

// amax / 448, and 1 where that is not a normal number.
float scale_from_amax(float amax);

}  // namespace hunyuan_kernels::cpu
