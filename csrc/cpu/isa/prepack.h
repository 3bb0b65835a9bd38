// Microkernel of the stem `prepack`: see prepack.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct PrepackKernels {
  // The 16 rows of `row_bytes` bytes (a multiple of 4) at `rows`, `stride` bytes apart (a multiple of 4), as one panel
  // of row_bytes / 4 lines.
  void (*panel)(const void* rows, int64_t stride, int64_t row_bytes, DType dtype, void* panel);
};

}  // namespace hunyuan_kernels::cpu
