// Microkernels of SwiGLU: see swiglu.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct SwigluKernels {
  // Of a GEMM's tile: out[r][c] = silu(gate[r][c]) * up[r][c], rounded once; gate and up have `width` columns per row.
  void (*tile)(const float* gate, const float* up, int width, int64_t rows, int64_t columns, DType dtype, void* out,
               int64_t out_stride);
  // n contiguous elements, all of `dtype`.
  void (*forward)(const void* gate, const void* up, DType dtype, int64_t n, void* out);
  void (*backward)(const void* grad_out, const void* gate, const void* up, DType dtype, int64_t n, void* grad_gate,
                   void* grad_up);
};

}  // namespace hunyuan_kernels::cpu
