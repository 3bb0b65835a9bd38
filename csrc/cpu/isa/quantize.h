// Microkernels of the stem `quantize`: see quantize.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

struct QuantizeKernels {
  // Largest |x| over the finite ones of n contiguous values, 0 when there is none. dtype: float32 or bfloat16.
  float (*amax_finite)(const void* x, DType dtype, int64_t n);
  // out[i] = e4m3(x[i] / scale): true division, nearest even, saturating, NaN kept.
  void (*quantize)(const void* x, DType dtype, int64_t n, float scale, float8_e4m3fn* out);
};

}  // namespace hunyuan_kernels::cpu
