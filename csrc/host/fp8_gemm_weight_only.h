// Products of bf16 rows and e4m3 weights on a device, dense and grouped: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>

#include "common/dtype.h"
#include "driver/device.h"
#include "host/product_plan.h"
#include "kernels/fp8_gemm_arguments.h"

namespace hunyuan_kernels::host {

// a [rows, depth], b [experts, columns, depth]; columns are 2I for SwiGLU.
struct Fp8WeightOnlyProblem {
  bool swiglu;
  bool grouped;  // false: one matrix, experts = 1, no offsets
  int64_t experts, rows, columns, depth;
  bool packed = false;     // b as kernels/fp8_gemm_arguments.h says, of columns and depths in whole panels
  bool in_blocks = false;  // scales vary along the depth
  DType out = DType::bfloat16;
};

// What packed weights have a multiple of (each half of SwiGLU), in columns and depth.
extern const int64_t kWeightOnlyPackedColumns, kWeightOnlyPackedDepth;

std::string title(const Fp8WeightOnlyProblem& problem);
using Fp8WeightOnlyPlan = ProductPlan<Fp8WeightOnlyProblem>;

// Pure: no device, no memory. Raises when the problem has more rows or tiles than the kernels can count.
Fp8WeightOnlyPlan plan_fp8_weight_only(const Fp8WeightOnlyProblem& problem, const driver::DeviceProperties& device);

// Strides in elements; addresses and strides of operands are multiples of 16 bytes.
struct Fp8WeightOnlyPointers {
  const void* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride, b_expert_stride;  // unused for packed weights, which are contiguous
  const int32_t* expert_offsets;      // [experts + 1], contiguous; null: one matrix
  kernels::Fp8WeightScale b_scale;
  void* out;  // [rows, columns of the result], contiguous
};

void launch_fp8_weight_only(const Fp8WeightOnlyPlan& plan, const Fp8WeightOnlyPointers& pointers,
                            driver::Stream& stream);

}  // namespace hunyuan_kernels::host
