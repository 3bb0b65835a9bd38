// Microkernels of the stem `grouped_gemm` beside the GEMM core: SwiGLU. See grouped_gemm.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct GroupedGemmKernels {
  // out[r][c] = silu(gate[r][c]) * up[r][c], rounded once; gate and up have `width` columns per row.
  void (*swiglu)(const float* gate, const float* up, int width, int64_t rows, int64_t columns, DType dtype, void* out,
                 int64_t out_stride);
  // n contiguous elements, all of `dtype`.
  void (*swiglu_backward)(const void* grad_out, const void* gate, const void* up, DType dtype, int64_t n,
                          void* grad_gate, void* grad_up);
};

}  // namespace hunyuan_kernels::cpu
