// GEMMs with e4m3 operands on a device, dense and grouped: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>

#include "common/dtype.h"
#include "driver/device.h"
#include "host/product_plan.h"
#include "kernels/fp8_gemm_arguments.h"

namespace hunyuan_kernels::host {

// a [rows, depth], b [experts, columns, depth]; columns are 2I for SwiGLU.
struct Fp8GemmProblem {
  bool swiglu;
  bool grouped;  // false: one matrix, experts = 1, no offsets
  int64_t experts, rows, columns, depth;
  bool in_blocks = false;       // scales of one operand or both vary along the depth
  DType out = DType::bfloat16;  // float32; SwiGLU also float8_e4m3fn
};

// Columns of a row of out as they have to lie in memory: those of the result, rounded up to 16 bytes.
int64_t row_columns(const Fp8GemmProblem& problem);

std::string title(const Fp8GemmProblem& problem);
using Fp8GemmPlan = ProductPlan<Fp8GemmProblem>;

// Pure: no device, no memory. Raises when the problem has more rows or tiles than the kernels can count.
Fp8GemmPlan plan_fp8_gemm(const Fp8GemmProblem& problem, const driver::DeviceProperties& device);

// Operands contiguous along the depth, strides in elements; addresses and strides are multiples of 16 bytes.
struct Fp8GemmPointers {
  const void* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride, b_expert_stride;
  const int32_t* expert_offsets;  // [experts + 1], contiguous; null: one matrix
  kernels::Fp8ActivationScale a_scale;
  kernels::Fp8WeightScale b_scale;
  void* out;                          // [rows, row_columns], contiguous
  kernels::Fp8ResultScale out_scale;  // of out in e4m3
};

void launch_fp8_gemm(const Fp8GemmPlan& plan, const Fp8GemmPointers& pointers, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
