// What host/fp8_gemm.cpp and kernels/fp8_gemm_sm90.cu agree on, beside kernels/grouped_gemm_arguments.h: threads, rows
// of a tile, stages and shared memory are those of the grouped GEMM.
#pragma once
#include "kernels/grouped_gemm_arguments.h"

namespace hunyuan_kernels::kernels {

constexpr int kFp8GemmTileDepth = 128;    // of a stage: what shares a scale
constexpr int kFp8GemmPartColumns = 128;  // lines of b that are multiplied into one transient accumulator

// Scales in fp32, strides in elements, 0 where there is one for all.
//   a: of row r and block k / 128         data[r * row_stride + block * block_stride]
//   b: of expert e, half (gate, up; 0 elsewhere), column n within the half and block
//      data[e * expert_stride + half * half_stride + n] per channel, else
//      data[e * expert_stride + half * half_stride + n / 128 * column_block_stride + block * block_stride]
struct Fp8ActivationScale {
  const float* data;
  int64_t row_stride, block_stride;
  uint32_t in_blocks;  // along K
};
struct Fp8WeightScale {
  const float* data;
  int64_t expert_stride, half_stride, column_block_stride, block_stride;
  uint32_t per_channel, in_blocks;
};

// Of a result in e4m3: one scale that is given, or fresh ones, of row r and block column / 128 at
// data[r + block * block_stride].
struct Fp8ResultScale {
  const float* given;  // null: fresh
  float* data;
  int64_t block_stride;
};

struct Fp8GemmArguments {
  // Operands in e4m3: a as [K, S], box 128 x 128; b as [K, N, E], box 128 x 128 x 1. expert_offsets null: one matrix.
  GroupedGemmArguments product;
  Fp8ActivationScale a_scale;
  Fp8WeightScale b_scale;
  Fp8ResultScale out_scale;
};

// Weights alone in e4m3 (kernels/fp8_gemm_weight_only_sm90.cu): a in bf16 as [K, S], box 64 x kTokens. b, of the two
// halves of SwiGLU one behind the other,
//   as it is   [K, N, E], box 128 x 128 x 1, swizzled
//   packed     [256, K / 16, E * N / 16] of bytes, box 256 x 8 x 8: for each 16 lines and 32 of K 512 bytes, in which
//              lane l has bytes 16 l and on: of lines l / 4 and l / 4 + 8 those that it multiplies
//              (tile/e4m3_weights.cuh)
struct Fp8WeightOnlyArguments {
  GroupedGemmArguments product;
  Fp8WeightScale b_scale;
  uint32_t float32_out;
};

constexpr int kFp8WeightOnlyLines = 128;  // of b in a tile, of gate and of up each
constexpr int kFp8WeightOnlyPackedLines = 16, kFp8WeightOnlyPackedDepth = 32;
constexpr int kFp8WeightOnlyPackedBox = 256;  // bytes
constexpr int fp8_weight_only_stage_bytes(int tokens, int parts) {
  return (parts * kFp8WeightOnlyLines + 2 * tokens) * kFp8GemmTileDepth;
}
constexpr int fp8_weight_only_sums_bytes(int tokens, int parts) { return parts * kFp8WeightOnlyLines * tokens * 4; }
constexpr int fp8_weight_only_stages(int tokens, int parts) {
  const int fit = (kFewRowsSharedBytes - kFewRowsBarriersBytes - fp8_weight_only_sums_bytes(tokens, parts)) /
                  fp8_weight_only_stage_bytes(tokens, parts);
  return fit < 8 ? fit : 8;
}
constexpr int fp8_weight_only_shared_bytes(int tokens, int parts) {
  return fp8_weight_only_stages(tokens, parts) * fp8_weight_only_stage_bytes(tokens, parts) +
         fp8_weight_only_sums_bytes(tokens, parts) + kFewRowsBarriersBytes;
}

}  // namespace hunyuan_kernels::kernels
