// Microkernel of the stem `nf4_gemm`: see nf4_gemm.inl. Its multiplication is one of the GEMM core's, isa/gemm.h.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct Nf4GemmKernels {
  // One row of float32 or bfloat16 as row `column` of a panel of blocks (common/nf4.h), and its scale; depth is a
  // multiple of 64. False, with nothing of use written, where an element is not finite.
  bool (*quantize_row)(const void* row, DType dtype, int64_t depth, int column, float* scale, uint8_t* panel);
};

}  // namespace hunyuan_kernels::cpu
