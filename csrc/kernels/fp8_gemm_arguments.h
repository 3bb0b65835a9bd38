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

}  // namespace hunyuan_kernels::kernels
