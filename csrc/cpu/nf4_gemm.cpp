#include "cpu/nf4_gemm.h"

#include <atomic>

#include "common/nf4.h"
#include "cpu/expert_rows.h"

namespace hunyuan_kernels::cpu {

WeightScale nf4_scale(const float* scale, const ExpertWeights& weights, bool halves) {
  WeightScale s;
  s.data = scale, s.expert_stride = weights.rows, s.half_stride = halves ? weights.rows / 2 : 0, s.column_stride = 1;
  return s;
}

ExpertWeights nf4_weights(void* blocks, int64_t experts, int64_t rows, int64_t columns) {
  ExpertWeights weights{};
  weights.data = blocks, weights.dtype = DType::nf4, weights.packed = true;
  weights.experts = experts, weights.rows = rows, weights.columns = columns;
  weights.expert_stride = rows / kNf4Rows * (columns / kNf4Depth) * kNf4Block;
  return weights;
}

bool quantize_nf4(const Microkernels& microkernels, const ThreadPool& pool, const ExpertWeights& weights,
                  uint8_t* blocks, float* scale) {
  const int64_t panels = weights.rows / kNf4Rows, panel_bytes = weights.columns / kNf4Depth * kNf4Block;
  std::atomic<bool> finite{true};
  parallel_tasks(pool, weights.experts * panels, [&](int64_t task, int) {
    const int64_t expert = task / panels;
    for (int column = 0; column < kNf4Rows; ++column) {
      const int64_t row = task % panels * kNf4Rows + column;
      const char* from =
          address(weights.data, weights.dtype, expert * weights.expert_stride + row * weights.row_stride);
      if (!microkernels.nf4_gemm.quantize_row(from, weights.dtype, weights.columns, column,
                                              scale + expert * weights.rows + row, blocks + task * panel_bytes))
        finite.store(false, std::memory_order_relaxed);
    }
  });
  return finite.load();
}

void grouped_gemm_nf4(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                      const ExpertOffsets& offsets, const float* scale, const Rows& out) {
  grouped_gemm_fp8(microkernels, pool, a, b, offsets, {}, nf4_scale(scale, b, false), out);
}

void grouped_swiglu_nf4(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                        const ExpertWeights& gate_up, const ExpertOffsets& offsets, const float* scale,
                        const Rows& out) {
  grouped_swiglu_fp8(microkernels, pool, a, gate_up, offsets, {}, nf4_scale(scale, gate_up, true), out);
}

}  // namespace hunyuan_kernels::cpu
