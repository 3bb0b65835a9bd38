// GEMMs with e4m3 operands on a device, dense and grouped: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"

namespace hunyuan_kernels::host {

// a [rows, depth], b [experts, columns, depth]; columns are 2I for SwiGLU.
struct Fp8GemmProblem {
  bool swiglu;
  bool grouped;  // false: one matrix, experts = 1, no offsets
  int64_t experts, rows, columns, depth;
  bool in_blocks = false;  // scales of one operand or both vary along the depth
  DType out = DType::bfloat16;
};

// Columns of a row of out as they have to lie in memory: those of the result, rounded up to 16 bytes.
int64_t row_columns(const Fp8GemmProblem& problem);

// A tile of the kernels, whether it was taken or not. Times are in SM clocks, of the model in host/fp8_gemm.cpp.
struct Fp8GemmCandidate {
  int tile_columns;          // of b, gate and up together; rows: 128
  std::string illegal{};     // why it cannot be taken; empty: it can
  int64_t tiles = 0;         // the most that the group sizes can make
  int64_t likely_tiles = 0;  // with groups of equal size
  int64_t waves = 0;         // of the likely tiles, over the SMs
  double clocks = 0;         // of the waves
};

struct Fp8GemmPlan {
  Fp8GemmProblem problem;
  std::vector<Fp8GemmCandidate> candidates;
  size_t taken = 0;                            // of the candidates
  int panel_tiles = 1;                         // tiles below each other that are done before the next column of tiles
  std::vector<driver::KernelLaunch> launches;  // one; none when there is nothing to write

  std::string text() const;
};

// Pure: no device, no memory. Raises when the problem has more rows or tiles than the kernels can count.
Fp8GemmPlan plan_fp8_gemm(const Fp8GemmProblem& problem, const driver::DeviceProperties& device);

// Operands contiguous along the depth, strides in elements; addresses and strides are multiples of 16 bytes. Scales as
// in kernels/fp8_gemm_arguments.h.
struct Fp8GemmPointers {
  const void* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride, b_expert_stride;
  const int32_t* expert_offsets;  // [experts + 1], contiguous; null: one matrix
  const float* a_scale;
  int64_t a_scale_row_stride, a_scale_block_stride;
  const float* b_scale;
  int64_t b_scale_expert_stride, b_scale_half_stride, b_scale_column_block_stride, b_scale_block_stride;
  bool b_scale_per_channel;
  void* out;  // [rows, row_columns], contiguous
};

void launch_fp8_gemm(const Fp8GemmPlan& plan, const Fp8GemmPointers& pointers, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
