// GEMMs with NF4 weights (common/nf4.h) on the CPU, and the quantizer.
//
//   out[r, n] = scale[e, n] sum_blocks absmax[e, n, block] sum_{k in block} a[r, k] value[code[e, n, k]]
//
// Codes become bf16 or fp32 words in registers, on the way to the multiplication; sums of a block and their total are
// fp32. Few rows are bound by reading 0.52 bytes for each weight, many rows by the multiplication: isa/nf4_gemm.inl.
#pragma once
#include <cstdint>

#include "cpu/fp8_gemm.h"

namespace hunyuan_kernels::cpu {

// Blocks [E, N / 16, K / 64, 528] as weights of the GEMM core.
ExpertWeights nf4_weights(void* blocks, int64_t experts, int64_t rows, int64_t columns);

// Scales [E, rows] of these weights; `halves`: of gate and up.
WeightScale nf4_scale(const float* scale, const ExpertWeights& weights, bool halves);

// weights: float32 or bfloat16 with contiguous rows, N a multiple of 16, K of 64; scale [E, N]. False where an element
// is not finite.
bool quantize_nf4(const Microkernels& microkernels, const ThreadPool& pool, const ExpertWeights& weights,
                  uint8_t* blocks, float* scale);

// As grouped_gemm and grouped_swiglu, with scale [E, N] or [E, 2I], contiguous.
void grouped_gemm_nf4(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a, const ExpertWeights& b,
                      const ExpertOffsets& offsets, const float* scale, const Rows& out);
void grouped_swiglu_nf4(const Microkernels& microkernels, const ThreadPool& pool, const Rows& a,
                        const ExpertWeights& gate_up, const ExpertOffsets& offsets, const float* scale,
                        const Rows& out);

}  // namespace hunyuan_kernels::cpu
