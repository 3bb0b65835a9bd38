// Microkernels of the stem `dispatch`: see dispatch.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct DispatchKernels {
  // out[i] = x[ids[i]] for rows of row_bytes bytes. past_caches: the result is not kept in the caches, for large ones.
  void (*gather_rows)(const void* x, int64_t x_stride_bytes, const int32_t* ids, int64_t rows, int64_t row_bytes,
                      void* out, bool past_caches);
  // out[h] = sum_j weights[j] * y[j][h] + shared[h] + residual[h], in that order, in fp32, rounded once. y[j] may be
  // null (nothing is added), and so may shared and residual. All of one dtype, float32 or bfloat16.
  void (*combine_token)(DType dtype, int64_t hidden, int64_t top_k, const void* const* y, const float* weights,
                        const void* shared, const void* residual, void* out);
  // grad_y[h] = weight * grad_out[h]; returns sum_h y[h] * grad_out[h], the gradient of the weight.
  float (*combine_row_backward)(DType dtype, int64_t hidden, float weight, const void* grad_out, const void* y,
                                void* grad_y);
};

}  // namespace hunyuan_kernels::cpu
