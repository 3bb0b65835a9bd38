#include "cpu/grouped_gemm.h"

#include "common/integer_math.h"
#include "cpu/expert_rows.h"

namespace hunyuan_kernels::cpu {
namespace {

// Tiles are [row of the weight, column of the weight]; stores them, or adds them to what is there.
class StoreWeightGradient final : public GemmEpilogue {
 public:
  StoreWeightGradient(const Microkernels& microkernels, const ExpertWeights& grad, bool accumulate)
      : kernels_(microkernels.gemm), grad_(grad), accumulate_(accumulate) {}
  void operator()(const GemmTile& tile) const override {
    char* out =
        address(grad_.data, grad_.dtype, tile.group * grad_.expert_stride + tile.row * grad_.row_stride + tile.column);
    if (accumulate_)
      kernels_.accumulate(tile.sums, tile.width, tile.rows, tile.columns, reinterpret_cast<float*>(out),
                          grad_.row_stride);
    else
      kernels_.store(tile.sums, tile.width, tile.rows, tile.columns, grad_.dtype, out, grad_.row_stride);
  }

 private:
  const GemmKernels& kernels_;
  const ExpertWeights& grad_;
  const bool accumulate_;
};

}  // namespace

void grouped_gemm(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                  const ExpertOffsets& offsets, const Rows& out) {
  gemm(microkernels, pool, rows_by_expert(a, b, offsets), StoreRows(microkernels, out, offsets));
  zero_rows(pool, out, offsets.back());
}

void grouped_gemm_wgrad(const Microkernels& microkernels, const ThreadPool& pool, const Rows& grad_out, const Rows& a,
                        const ExpertOffsets& offsets, const ExpertWeights& grad_b, bool accumulate) {
  if (grad_b.column_stride != 1) {  // the unit stride is along the rows: compute the transpose
    ExpertWeights transposed = grad_b;
    std::swap(transposed.rows, transposed.columns);
    std::swap(transposed.row_stride, transposed.column_stride);
    return grouped_gemm_wgrad(microkernels, pool, a, grad_out, offsets, transposed, accumulate);
  }
  GemmProblem problem;  // k is the row of the group
  problem.a = {grad_out.dtype, 1, grad_out.row_stride};
  problem.b = {a.dtype, 1, a.row_stride};
  problem.columns = a.columns;
  for (int64_t e = 0; e < grad_b.experts; ++e) {
    int64_t depth = offsets[e + 1] - offsets[e];
    int64_t rows = accumulate && depth == 0 ? 0 : grad_out.columns;  // nothing to add
    problem.groups.push_back({row_of(grad_out, offsets[e]), row_of(a, offsets[e]), rows, depth});
  }
  gemm(microkernels, pool, problem, StoreWeightGradient(microkernels, grad_b, accumulate));
}

void grouped_swiglu(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                    const ExpertWeights& gate_up, const ExpertOffsets& offsets, const Rows& out,
                    const Rows* preactivation) {
  GemmProblem problem = rows_by_expert(a, gate_up, offsets);
  problem.columns = problem.second_half = out.columns;
  gemm(microkernels, pool, problem, StoreSwiglu(microkernels, out, preactivation, offsets));
  zero_rows(pool, out, offsets.back());
  if (preactivation) zero_rows(pool, *preactivation, offsets.back());
}

}  // namespace hunyuan_kernels::cpu
