// Grouped GEMM, its gradients and grouped SwiGLU on the CPU: problems and epilogues for the GEMM core (cpu/gemm.h).
//
// Rows are grouped by expert: group e is rows offsets[e] .. offsets[e + 1]. Offsets are checked by the caller: they
// start at 0, do not decrease and end at most at the number of rows. Rows past the last offset are never read; where
// they are rows of the result they are written as zeros.
#pragma once
#include <cstdint>
#include <vector>

#include "common/parallel.h"
#include "cpu/gemm.h"

namespace hunyuan_kernels::cpu {

// A matrix of rows with contiguous elements; the stride is in elements.
struct Rows {
  void* data;
  DType dtype;
  int64_t rows, columns, row_stride;
  const int32_t* ids = nullptr;  // of an operand a: row r is row ids[r] of the data
};

// Weights [E, N, K], read in place: the stride along N or the one along K is 1. Strides in elements. Packed weights
// (cpu/prepack.h) are contiguous and have expert_stride alone.
struct ExpertWeights {
  void* data;
  DType dtype;
  int64_t experts, rows, columns;
  int64_t expert_stride, row_stride, column_stride;
  bool packed = false;
};

using ExpertOffsets = std::vector<int64_t>;

// out[r] = a[r] @ b[e].T
void grouped_gemm(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                  const ExpertOffsets& offsets, const Rows& out);

// grad_b[e] = grad_out_e.T @ a_e, or += (grad_b float32)
void grouped_gemm_wgrad(const Microkernels& microkernels, const ThreadPool& pool, const Rows& grad_out, const Rows& a,
                        const ExpertOffsets& offsets, const ExpertWeights& grad_b, bool accumulate);

// out[r] = silu(a[r] @ gate[e].T) * (a[r] @ up[e].T) with gate = gate_up[:, :I], up = gate_up[:, I:]. preactivation, if
// given, gets a[r] @ gate_up[e].T.
void grouped_swiglu(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                    const ExpertWeights& gate_up, const ExpertOffsets& offsets, const Rows& out,
                    const Rows* preactivation);

}  // namespace hunyuan_kernels::cpu
