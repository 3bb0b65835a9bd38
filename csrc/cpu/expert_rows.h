// What the grouped GEMMs share: problems over expert-major rows, and the epilogues that store rows.
#pragma once
#include <cstring>

#include "common/integer_math.h"
#include "cpu/grouped_gemm.h"

namespace hunyuan_kernels::cpu {

constexpr int64_t kElementwiseGrain = 1 << 15;  // elements: some 10 us, worth waking a thread for

inline char* address(void* data, DType dtype, int64_t element) {
  return static_cast<char*>(data) + element * element_size(dtype);
}
inline char* row_of(const Rows& matrix, int64_t row, int64_t column = 0) {
  return address(matrix.data, matrix.dtype, row * matrix.row_stride + column);
}

inline int64_t rows_of_grain(int64_t columns) { return maximum(1, kElementwiseGrain / maximum(1, columns)); }

// Rows that belong to no group.
inline void zero_rows(const ThreadPool& pool, const Rows& out, int64_t first) {
  parallel_ranges(pool, out.rows - first, rows_of_grain(out.columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      std::memset(row_of(out, first + row), 0, static_cast<size_t>(out.columns * element_size(out.dtype)));
  });
}

// Groups of rows of `a` against the weights of their experts.
inline GemmProblem rows_by_expert(const Rows& a, const ExpertWeights& b, const ExpertOffsets& offsets) {
  GemmProblem problem;
  problem.a = {a.dtype, a.row_stride, 1};
  problem.b = {b.dtype, b.row_stride, b.column_stride, b.packed};
  problem.columns = b.rows;
  for (int64_t e = 0; e < b.experts; ++e)
    problem.groups.push_back({a.ids ? a.data : row_of(a, offsets[e]), address(b.data, b.dtype, e * b.expert_stride),
                              offsets[e + 1] - offsets[e], a.columns, a.ids ? a.ids + offsets[e] : nullptr});
  return problem;
}

// Stores tiles as rows of the result.
class StoreRows final : public GemmEpilogue {
 public:
  StoreRows(const Microkernels& microkernels, const Rows& out, const ExpertOffsets& offsets)
      : kernels_(microkernels.gemm), out_(out), offsets_(offsets) {}
  void operator()(const GemmTile& tile) const override {
    kernels_.store(tile.sums, tile.width, tile.rows, tile.columns, out_.dtype,
                   row_of(out_, offsets_[tile.group] + tile.row, tile.column), out_.row_stride);
  }

 private:
  const GemmKernels& kernels_;
  const Rows& out_;
  const ExpertOffsets& offsets_;
};

// Stores silu(gate) * up of tiles with paired columns, and gate and up themselves where wanted.
class StoreSwiglu final : public GemmEpilogue {
 public:
  StoreSwiglu(const Microkernels& microkernels, const Rows& out, const Rows* preactivation,
              const ExpertOffsets& offsets)
      : kernels_(microkernels), out_(out), preactivation_(preactivation), offsets_(offsets) {}
  void operator()(const GemmTile& tile) const override {
    const float *gate = tile.sums, *up = tile.sums + tile.width / 2;
    const int64_t row = offsets_[tile.group] + tile.row;
    kernels_.swiglu.tile(gate, up, tile.width, tile.rows, tile.columns, out_.dtype, row_of(out_, row, tile.column),
                         out_.row_stride);
    if (!preactivation_) return;
    kernels_.gemm.store(gate, tile.width, tile.rows, tile.columns, preactivation_->dtype,
                        row_of(*preactivation_, row, tile.column), preactivation_->row_stride);
    kernels_.gemm.store(up, tile.width, tile.rows, tile.columns, preactivation_->dtype,
                        row_of(*preactivation_, row, out_.columns + tile.column), preactivation_->row_stride);
  }

 private:
  const Microkernels& kernels_;
  const Rows& out_;
  const Rows* preactivation_;
  const ExpertOffsets& offsets_;
};

}  // namespace hunyuan_kernels::cpu
