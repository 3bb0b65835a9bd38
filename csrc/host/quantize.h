// quantize_fp8 on a device: problem -> plan -> launches.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"

namespace hunyuan_kernels::host {

enum class QuantizeRecipe { tensor, row, block_1x128, block_128x128 };

struct QuantizeProblem {
  DType dtype;  // float32 or bfloat16
  int64_t rows, columns;
  int64_t row_stride;  // of x, in elements; columns are contiguous
  QuantizeRecipe recipe;
  bool is_static;       // the scale is given
  int alignment = 256;  // of x's address, in bytes, a power of two
};

struct QuantizePlan {
  QuantizeProblem problem;
  int64_t rows, columns, row_stride;  // how the kernel sees x: the recipe `tensor` takes a contiguous x as one row
  int64_t regions = 0, regions_per_row = 1;
  int64_t workspace_bytes = 0;
  std::vector<driver::KernelLaunch> launches;  // in order; none when x is empty

  std::string text() const;
};

// Pure: no device, no memory.
QuantizePlan plan_quantize(const QuantizeProblem& problem, const driver::DeviceProperties& device);

struct QuantizePointers {
  const void* x;
  float8_e4m3fn* q;
  float* scale;               // written unless static_scale is given
  const float* static_scale;  // null: computed
  void* workspace;            // plan.workspace_bytes, uninitialized
};

void launch_quantize(const QuantizePlan& plan, const QuantizePointers& pointers, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
