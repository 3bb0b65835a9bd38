// What host/grouped_gemm.cpp and kernels/grouped_gemm_sm90.cu agree on.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::kernels {

constexpr int kGroupedGemmThreads = 384;        // a producer warpgroup and two that multiply
constexpr int kGroupedGemmTileRows = 128;       // 64 for each of the two
constexpr int kGroupedGemmTileDepth = 64;       // of a stage
constexpr int kGroupedGemmSwigluColumns = 128;  // of gate and of up, in a tile of 256

// Stages fill what the epilogue leaves: 4 of 128 x 256 x 64, 6 of 128 x 128 x 64.
constexpr int kGroupedGemmStagesBytes = 192 * 1024;
constexpr int kGroupedGemmSlicesBytes = 32 * 1024;  // two buffers of 64 rows x 128 bytes for each warpgroup
constexpr int kGroupedGemmBarriersBytes = 256;
constexpr int kGroupedGemmSharedBytes = kGroupedGemmStagesBytes + kGroupedGemmSlicesBytes + kGroupedGemmBarriersBytes;

// The driver's CUtensorMap.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// Boxes of 64 elements (128 bytes) along the contiguous dimension, which is written first. Every product takes lines of
// a and lines of b of equal depth; `along depth` says which dimension of the operand is contiguous.
struct GroupedGemmArguments {
  // Rows:              [K, S], box 64 x 128 (along depth).   Weight gradient: grad_out as [N, S], box 64 x 64.
  //                    With multicast box 64 x 64: each of two blocks loads half of the rows for both.
  TensorMap a;
  // Rows, along depth: [K, N, E], box 64 x 128 x 1.          Weight gradient: a as [K, S, 1], box 64 x 64 x 1.
  // Rows, across:      [N, K, E], box 64 x 64 x 1.
  TensorMap b;
  // Boxes of 128 bytes.  Rows: [row_columns, 1, S], box 128 B x 1 x 64.  Weight gradient: [K, N, E], box 128 B x 64
  // x 1.
  TensorMap out;
  TensorMap preactivation;  // [row_columns, 2, S], box 64 x 1 x 64; only with preactivation_data

  const int32_t* expert_offsets;  // [experts + 1], contiguous
  char* out_data;                 // of `out` and `preactivation`: contiguous rows that start at multiples of 16 bytes
  char* preactivation_data;
  int32_t experts;
  int32_t rows;         // S
  int32_t lines;        // of the result: weight gradient: N. Rows: unused, the groups' rows
  int32_t columns;      // of the result: N; I for SwiGLU; weight gradient: K
  int32_t row_columns;  // of out as it lies (preactivation: of each half): as many, rounded up to 16 bytes. Not of
                        // gradients
  int32_t depth;        // K. Weight gradient: unused, the groups' rows
  int32_t panel_tiles;  // of tile/matrix_tiles.cuh; at least 1
  uint32_t column_panels;
  uint32_t accumulate;  // weight gradient in fp32: added to what is there
};

// Few rows (kernels/grouped_gemm_few_rows_sm90.cu): GroupedGemmArguments with a box of 64 x kTokens for a.
constexpr int kFewRowsWeights = 128;  // lines of b in a tile, of gate and of up each
constexpr int kFewRowsBarriersBytes = 256;
constexpr int kFewRowsSharedBytes = 227 * 1024;
constexpr int few_rows_stage_bytes(int tokens, int parts) { return (parts * kFewRowsWeights + tokens) * 128; }
constexpr int few_rows_sums_bytes(int tokens, int parts) { return parts * kFewRowsWeights * tokens * 4; }
constexpr int few_rows_stages(int tokens, int parts) {
  const int fit = (kFewRowsSharedBytes - kFewRowsBarriersBytes - few_rows_sums_bytes(tokens, parts)) /
                  few_rows_stage_bytes(tokens, parts);
  return fit < 8 ? fit : 8;
}
constexpr int few_rows_shared_bytes(int tokens, int parts) {
  return few_rows_stages(tokens, parts) * few_rows_stage_bytes(tokens, parts) + few_rows_sums_bytes(tokens, parts) +
         kFewRowsBarriersBytes;
}

}  // namespace hunyuan_kernels::kernels
