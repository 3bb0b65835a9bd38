#include "cpu/fp8_gemm.h"

#include <algorithm>

#include "cpu/expert_rows.h"

namespace hunyuan_kernels::cpu {
namespace {

// The scales as the core asks for them, block by block along k.
class BlockScales final : public GemmBlockScales {
 public:
  BlockScales(const ActivationScale& a, const WeightScale& b, const ExpertOffsets& offsets, bool paired)
      : a_(a), b_(b), offsets_(offsets), paired_(paired) {}
  void rows(int64_t group, int64_t row, int64_t rows, int64_t k_block, float* scales) const override {
    for (int64_t i = 0; i < rows; ++i) scales[i] = a_.at(offsets_[group] + row + i, k_block);
  }
  void columns(int64_t group, int64_t column, int64_t columns, int width, int64_t k_block,
               float* scales) const override {
    const int64_t half_width = paired_ ? width / 2 : width;
    for (int half = 0; half < (paired_ ? 2 : 1); ++half, scales += half_width) {
      b_.columns(group, half, column, columns, k_block, scales);
      std::fill(scales + columns, scales + half_width,
                1.0f);  // columns past the last one: a scale that changes nothing
    }
  }

 private:
  const ActivationScale& a_;
  const WeightScale& b_;
  const ExpertOffsets& offsets_;
  const bool paired_;
};

// Scales the finished sums, unless that was done block by block, and hands the tile on.
class ScaledTile final : public GemmEpilogue {
 public:
  ScaledTile(const ActivationScale& a, const WeightScale& b, const ExpertOffsets& offsets, bool paired,
             const GemmEpilogue& next)
      : a_(a), b_(b), offsets_(offsets), paired_(paired), next_(next) {}
  void operator()(const GemmTile& tile) const override {
    const int half_width = paired_ ? tile.width / 2 : tile.width;
    float column_scales[kGemmMaxColumns] = {};
    for (int half = 0; half < (paired_ ? 2 : 1); ++half)
      b_.columns(tile.group, half, tile.column, tile.columns, 0, column_scales + half * half_width);
    for (int64_t row = 0; row < tile.rows; ++row) {
      const float row_scale = a_.at(offsets_[tile.group] + tile.row + row, 0);
      float* sums = tile.sums + row * tile.width;
      for (int c = 0; c < tile.width; ++c) sums[c] *= row_scale * column_scales[c];
    }
    next_(tile);
  }

 private:
  const ActivationScale& a_;
  const WeightScale& b_;
  const ExpertOffsets& offsets_;
  const bool paired_;
  const GemmEpilogue& next_;
};

void scaled_grouped_gemm(const Microkernels& microkernels, const ThreadPool& pool, GemmProblem problem,
                         const ExpertOffsets& offsets, const ActivationScale& a_scale, const WeightScale& b_scale,
                         const GemmEpilogue& store) {
  const bool paired = problem.second_half != 0;
  if (a_scale.block_stride != 0 || b_scale.blocks) {
    const BlockScales scales(a_scale, b_scale, offsets, paired);
    problem.block_scales = &scales;
    problem.scale_block = kFp8ScaleBlock;
    return gemm(microkernels, pool, problem, store);
  }
  gemm(microkernels, pool, problem, ScaledTile(a_scale, b_scale, offsets, paired, store));
}

}  // namespace

void grouped_gemm_fp8(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                      const ExpertOffsets& offsets, const ActivationScale& a_scale, const WeightScale& b_scale,
                      const Rows& out) {
  scaled_grouped_gemm(microkernels, pool, rows_by_expert(a, b, offsets), offsets, a_scale, b_scale,
                      StoreRows(microkernels, out, offsets));
  zero_rows(pool, out, offsets.back());
}

void grouped_swiglu_fp8(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                        const ExpertWeights& gate_up, const ExpertOffsets& offsets, const ActivationScale& a_scale,
                        const WeightScale& b_scale, const Rows& out) {
  GemmProblem problem = rows_by_expert(a, gate_up, offsets);
  problem.columns = problem.second_half = out.columns;
  scaled_grouped_gemm(microkernels, pool, problem, offsets, a_scale, b_scale,
                      StoreSwiglu(microkernels, out, nullptr, offsets));
  zero_rows(pool, out, offsets.back());
}

}  // namespace hunyuan_kernels::cpu
