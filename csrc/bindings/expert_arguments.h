// Arguments that the grouped GEMMs share: activations [S, K] and weights [E, N, K].
#pragma once
#include "bindings/torch_glue.h"
#include "cpu/grouped_gemm.h"

namespace hunyuan_kernels {

using DTypes = std::initializer_list<ScalarType>;

cpu::Rows rows_of(const Tensor& matrix);

// Whether an op takes what `prepack` returns (two dimensions more) in place of weights.
enum class Packed { refused, allowed };

// [E, N, K] as it lies; one of the inner dimensions has to be contiguous. matrix_weights: [N, K], as one expert.
cpu::ExpertWeights expert_weights(const char* op, const char* argument, const Tensor& b, DTypes dtypes,
                                  const char* shape, Packed packed = Packed::refused);
cpu::ExpertWeights matrix_weights(const char* op, const char* argument, const Tensor& b, DTypes dtypes,
                                  const char* shape, Packed packed = Packed::refused);

// 2I rows of gate and up: even, and if packed, in whole panels each.
void check_halves(const char* op, const char* argument, const Tensor& gate_up, const cpu::ExpertWeights& weights);

cpu::ExpertWeights transposed(cpu::ExpertWeights weights);

// A matrix of activations [S, columns]; columns < 0: any.
Tensor activations(const char* op, const char* argument, const Tensor& matrix, DTypes dtypes, int64_t columns,
                   const char* shape);

// The dtype itself when it is one that GEMMs write: bfloat16 or float32.
ScalarType checked_out_dtype(const char* op, ScalarType dtype);

}  // namespace hunyuan_kernels
