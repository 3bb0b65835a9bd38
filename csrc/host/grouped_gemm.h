// Grouped GEMM, its gradients and grouped SwiGLU on a device: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"

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

// A way to cut the work, whether it was taken or not. Times are in SM clocks, of the model in host/grouped_gemm.cpp.
struct GroupedGemmCandidate {
  int tile_rows, tile_columns;  // tile_columns of b, gate and up together
  int cluster = 0;              // blocks that divide the depth; 0: kernels/grouped_gemm_sm90.cu, which has no clusters
  std::string illegal{};        // why it cannot be taken; empty: it can
  int64_t tiles = 0;            // the most that the group sizes can make
  int64_t likely_tiles = 0;     // with groups of equal size
  int64_t waves = 0;            // of the likely tiles, over the SMs
  double flops = 0;             // of the likely tiles
  double bytes = 0;             // that the likely tiles load into shared memory
  double sm_clocks = 0;         // of the waves
  double memory_clocks = 0;     // to read the weights of the experts that have rows

  double clocks() const { return sm_clocks > memory_clocks ? sm_clocks : memory_clocks; }
};

struct GroupedGemmPlan {
  GroupedGemmProblem problem;
  std::vector<GroupedGemmCandidate> candidates;
  size_t taken = 0;                            // of the candidates
  int panel_tiles = 1;                         // tiles below each other that are done before the next column of tiles
  std::vector<driver::KernelLaunch> launches;  // one; none when there is nothing to write

  std::string text() const;
};

// Pure: no device, no memory. Raises when the problem has more rows or tiles than the kernels can count.
GroupedGemmPlan plan_grouped_gemm(const GroupedGemmProblem& problem, const driver::DeviceProperties& device);

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
