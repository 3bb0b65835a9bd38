// GEMMs with e4m3 operands and scales on the CPU: problems and epilogues for the GEMM core (cpu/gemm.h).
//
//   out[r, n] = sum_k (a_scale(r, k / 128) a[r, k]) (b_scale(e, n, k / 128) b[e, n, k])       for the rows r of group e
//
// e4m3 elements expand exactly to the words of the core on the way; no dequantized operand is ever written. Scales that
// are the same along k multiply the finished sums; scales of blocks multiply the fp32 sum of each 128 of k.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/grouped_gemm.h"

namespace hunyuan_kernels::cpu {

// a_scale(row, block) = data[row * row_stride + block * block_stride]; data null: 1.
struct ActivationScale {
  const float* data = nullptr;
  int64_t row_stride = 0, block_stride = 0;

  float at(int64_t row, int64_t block) const { return data ? data[row * row_stride + block * block_stride] : 1.0f; }
};

// b_scale(expert, half, column, block) = data[expert * expert_stride + half * half_stride + column / column_block *
// column_stride + block * block_stride]. A half is gate or up, with columns counted within it; other weights have half
// 0.
struct WeightScale {
  const float* data = nullptr;
  int64_t expert_stride = 0, half_stride = 0, column_stride = 0, column_block = 1, block_stride = 0;
  bool blocks = false;  // varies along k

  // Of `count` columns from `column` on: a division for each block of columns, not for each column.
  void columns(int64_t expert, int64_t half, int64_t column, int64_t count, int64_t block, float* scales) const {
    if (!data) return (void)std::fill_n(scales, count, 1.0f);
    const float* from = data + expert * expert_stride + half * half_stride + block * block_stride;
    if (column_block == 1) {
      for (int64_t c = 0; c < count; ++c) scales[c] = from[(column + c) * column_stride];
      return;
    }
    for (const int64_t end = column + count; column < end;) {
      const int64_t index = column / column_block, next = std::min(end, (index + 1) * column_block);
      scales = std::fill_n(scales, next - column, from[index * column_stride]);
      column = next;
    }
  }
};

constexpr int64_t kFp8ScaleBlock = 128;

// out[r] = a[r] @ b[e].T with scales; rows past the last offset become zeros.
void grouped_gemm_fp8(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                      const ExpertOffsets& offsets, const ActivationScale& a_scale, const WeightScale& b_scale,
                      const Rows& out);

// out[r] = silu(gate) * up with gate and up the two halves of a[r] @ b[e].T.
void grouped_swiglu_fp8(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                        const ExpertWeights& gate_up, const ExpertOffsets& offsets, const ActivationScale& a_scale,
                        const WeightScale& b_scale, const Rows& out);

}  // namespace hunyuan_kernels::cpu
