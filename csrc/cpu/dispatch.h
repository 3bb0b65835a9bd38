// dispatch, combine and their gradients on the CPU: see cpu/dispatch.cpp. Row numbers are checked before.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace hunyuan_kernels::cpu {

// A row-major matrix whose rows are contiguous; data may be null for an absent optional one.
struct ConstRows {
  const void* data;
  int64_t stride;  // elements

  const void* row(int64_t r, int64_t element_bytes) const {
    return static_cast<const char*>(data) + r * stride * element_bytes;
  }
};

// out[r] = x[token_ids[r]] for r < rows_used, zeros for the rest; rows of row_bytes bytes.
struct DispatchArguments {
  const void* x;
  int64_t x_stride_bytes, row_bytes;
  const int32_t* token_ids;
  int64_t rows_used, rows;
  void* out;
};
void dispatch(const DispatchArguments& arguments, const ThreadPool& pool);

// The same from bf16 or fp32 to e4m3 with scales of 1 x 128 blocks, or one that is given; zeros and scale 1 for the
// rest.
struct DispatchFp8Arguments {
  ConstRows x;
  DType dtype;
  int64_t hidden;
  const int32_t* token_ids;
  int64_t rows_used, rows;
  float8_e4m3fn* q;
  const float* given_scale;  // null: fresh ones
  float* scale;              // the fresh ones: scale[block * scale_block_stride + row]
  int64_t scale_block_stride;
};
void dispatch_fp8(const DispatchFp8Arguments& arguments, const ThreadPool& pool);

struct CombineArguments {
  DType dtype;  // of y, shared, residual, out: float32 or bfloat16
  int64_t tokens, top_k, hidden;
  ConstRows y, shared, residual;
  const int32_t* rows;   // [tokens, top_k], -1: none
  const float* weights;  // [tokens, top_k]
  void* out;             // [tokens, hidden]
};
void combine(const CombineArguments& arguments, const ThreadPool& pool);

struct CombineBackwardArguments {
  DType dtype;
  int64_t tokens, top_k, hidden, rows_of_y;
  ConstRows grad_out, y;
  const int32_t* assignments;  // [rows_of_y]: the index into rows [tokens * top_k] that names the row, -1: none
  const float* weights;
  void* grad_y;         // [rows_of_y, hidden]
  float* grad_weights;  // [tokens, top_k]; only those of named rows are written
};
void combine_backward(const CombineBackwardArguments& arguments, const ThreadPool& pool);

}  // namespace hunyuan_kernels::cpu
