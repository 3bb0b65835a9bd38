// Conversions between element types, one PTX instruction per function.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::arch {

// Two fp32 to two e4m3: nearest even, saturating (infinity too), NaN becomes 0x7f whatever its sign. `low` takes bits
// 0-7.
__device__ __forceinline__ uint16_t to_e4m3x2(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two fp32 to two bf16, nearest even; NaN becomes 0x7fff. `low` takes bits 0-15.
__device__ __forceinline__ uint32_t to_bfloat16x2(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace hunyuan_kernels::arch
