// Conversions between element types, one PTX instruction per function.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::arch {

// Two fp32 to two e4m3: nearest even, saturating (infinity too), NaN becomes 0x7f whatever its sign. `low` takes bits
// 0-7.
#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ uint16_t to_e4m3x2(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#else
__device__ __forceinline__ uint32_t to_e4m3(float value) {
  const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  const uint32_t clamped = min(magnitude, 0x43e00000u);  // 448
  const uint32_t normal = ((clamped + 0x7ffffu + ((clamped >> 20) & 1u)) >> 20) - (120u << 3);
  // Below 2^-6 the spacing is 2^-9, which is that of fp32 around 2^14: the addition rounds.
  const uint32_t subnormal = __float_as_uint(__fadd_rn(__uint_as_float(clamped), 0x1p14f)) - 0x46800000u;
  return (clamped < 0x3c800000u ? subnormal : normal) | (bits >> 24 & 0x80u);
}
__device__ __forceinline__ uint16_t to_e4m3x2(float low, float high) {
  return static_cast<uint16_t>(to_e4m3(low) | to_e4m3(high) << 8);
}
#endif

// Two fp32 to two bf16, nearest even; NaN becomes 0x7fff. `low` takes bits 0-15.
__device__ __forceinline__ uint32_t to_bfloat16x2(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two e4m3 to two f16, exact; NaN becomes 0x7fff. From sm_89 on.
__device__ __forceinline__ uint32_t e4m3x2_to_float16x2(uint16_t pair) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return halves;
}
__device__ __forceinline__ float float16_to_float(uint16_t value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
}
// Two e4m3 to two bf16, exact: no instruction of sm_90 does it at once, and f16 and fp32 hold every e4m3 on the way.
__device__ __forceinline__ uint32_t e4m3x2_to_bfloat16x2(uint16_t pair) {
  const uint32_t halves = e4m3x2_to_float16x2(pair);
  return to_bfloat16x2(float16_to_float(static_cast<uint16_t>(halves)),
                       float16_to_float(static_cast<uint16_t>(halves >> 16)));
}

}  // namespace hunyuan_kernels::arch
