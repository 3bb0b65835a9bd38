// quantize_fp8 on a device: problem -> plan -> launches.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/quantize_recipe.h"
#include "driver/device.h"

namespace hunyuan_kernels::host {

struct QuantizeProblem {
  QuantizeRecipe recipe;
  DType dtype;  // float32 or bfloat16
  int64_t matrices, rows, columns;
  int64_t matrix_stride, row_stride;  // of x, in elements; columns are contiguous
  bool is_static;                     // the scale is given
  int64_t alignment = 256;            // of x's address, in bytes, a power of two
};

struct QuantizePlan {
  QuantizeProblem problem;
  int64_t rows, columns, row_stride;  // how the kernel sees a matrix: `tensor` takes a contiguous one as one row
  int64_t row_regions = 0;            // per matrix
  uint32_t column_regions = 1;
  int64_t workspace_bytes = 0;
  std::vector<driver::KernelLaunch> launches;  // in order; none when there is nothing to write

  std::string text() const;
};

// Pure: no device, no memory. Raises when the problem needs a larger grid than a launch can have.
QuantizePlan plan_quantize(const QuantizeProblem& problem, const driver::DeviceProperties& device);

struct QuantizePointers {
  const void* x;
  float8_e4m3fn* q;
  float* scale;                                                        // written unless static_scale is given
  const float* static_scale;                                           // null: computed
  int64_t scale_matrix_stride, scale_row_stride, scale_column_stride;  // those that the recipe does not have: 0
  void* workspace;                                                     // plan.workspace_bytes, uninitialized
};

void launch_quantize(const QuantizePlan& plan, const QuantizePointers& pointers, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
