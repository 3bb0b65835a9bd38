// What host/dispatch.cpp and kernels/dispatch_sm90.cu agree on. Row and token numbers out of range mean "none".
#pragma once
#include <cstdint>

#include "kernels/row_blocks.h"

namespace hunyuan_kernels::kernels {

struct DispatchArguments {
  const void* x;             // [tokens, row_bytes]
  const int32_t* token_ids;  // [rows]
  const int32_t* rows_used;  // one element: expert_offsets[E]
  void* out;                 // [rows, row_bytes], contiguous
  int64_t rows, tokens, row_bytes;
  int64_t x_stride;  // bytes
};

struct DispatchFp8Arguments {
  const void* x;             // [tokens, hidden]
  const int32_t* token_ids;  // [rows]
  const int32_t* rows_used;  // one element: expert_offsets[E]
  uint8_t* q;                // [rows, hidden], contiguous
  const float* given_scale;  // one for all; null: fresh ones
  float* scale;              // the fresh ones: scale[block * scale_block_stride + row]
  int64_t rows, tokens, hidden;
  int64_t x_stride, scale_block_stride;  // elements
  uint32_t spans;                        // column ranges of kRowVectors blocks in a row
};

// Strides in elements; hidden elements of a row are contiguous.
struct CombineArguments {
  const void* y;         // [rows_of_y, hidden]
  const void* shared;    // [tokens, hidden] or null
  const void* residual;  // [tokens, hidden] or null
  const int32_t* rows;   // [tokens, top_k]
  const float* weights;  // [tokens, top_k]
  void* out;             // [tokens, hidden], contiguous
  int64_t tokens, rows_of_y, hidden;
  int64_t y_stride, shared_stride, residual_stride;
  int32_t top_k;
};

struct CombineBackwardArguments {
  const void* grad_out;      // [tokens, hidden]
  const void* y;             // [rows_of_y, hidden]
  const int32_t* rows;       // [tokens, top_k]
  const float* weights;      // [tokens, top_k]
  const int32_t* token_ids;  // [rows_of_y]
  void* grad_y;              // [rows_of_y, hidden], contiguous
  float* grad_weights;       // [tokens, top_k], zeros
  int64_t tokens, rows_of_y, hidden;
  int64_t grad_out_stride, y_stride;
  int32_t top_k;
};

constexpr int kDispatchScaleBlock = 128;  // elements of a row that share a scale

}  // namespace hunyuan_kernels::kernels
