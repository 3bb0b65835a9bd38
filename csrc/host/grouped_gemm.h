// Grouped GEMM, its gradients and grouped SwiGLU on a device: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>

#include "common/dtype.h"
#include "driver/device.h"
#include "host/product_plan.h"

namespace hunyuan_kernels::host {

// rows: out[r] = a[r] @ b[e].T. weight_gradient: out[e] (+)= grad_out_e.T @ a_e.
enum class GroupedGemmForm : uint8_t { rows, swiglu, swiglu_preactivation, weight_gradient };
const char* name_of(GroupedGemmForm form);

// Sizes of grouped_gemm's arguments: a [rows, depth], b [experts, columns, depth]; columns are 2I for SwiGLU. The
// weight gradient takes grad_out [rows, columns] and a [rows, depth] to [experts, columns, depth].
struct GroupedGemmProblem {
  GroupedGemmForm form;
  int64_t experts, rows, columns, depth;
  bool across = false;          // b is contiguous along its columns (of N), not along depth
  DType out = DType::bfloat16;  // or float32; SwiGLU: bfloat16
};

// Columns of a row of out, and of each half of the pre-activation, as they have to lie in memory: those of the result,
// rounded up to 16 bytes.
int64_t row_columns(const GroupedGemmProblem& problem);

std::string title(const GroupedGemmProblem& problem);
using GroupedGemmPlan = ProductPlan<GroupedGemmProblem>;

// Pure: no device, no memory. Raises when the problem has more rows or tiles than the kernels can count.
GroupedGemmPlan plan_grouped_gemm(const GroupedGemmProblem& problem, const driver::DeviceProperties& device,
                                  const ProductOptions& options = {});

// Operands in bf16, strides in elements; addresses and strides are multiples of 16 bytes.
struct GroupedGemmPointers {
  const void* a;  // [rows, depth]; weight gradient: grad_out [rows, columns]
  int64_t a_stride;
  const void* b;                          // [experts, columns, depth]; weight gradient: a [rows, depth]
  int64_t b_stride, b_expert_stride;      // of its columns, of its depths when across
  const int32_t* expert_offsets;          // [experts + 1], contiguous
  void* out;                              // [rows, row_columns], contiguous; weight gradient: any strides
  int64_t out_stride, out_expert_stride;  // of a weight gradient
  void* preactivation;                    // swiglu_preactivation: [rows, 2, row_columns], contiguous
  bool accumulate;                        // weight gradient in float32: add to out
};

void launch_grouped_gemm(const GroupedGemmPlan& plan, const GroupedGemmPointers& pointers, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
