// Elementary functions in fp32.
#pragma once

namespace hunyuan_kernels::arch {

// 1 / value, off by one unit in the last place at most; subnormal numbers are kept.
__device__ __forceinline__ float reciprocal(float value) {
  float inverse;
  asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(value));
  return inverse;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

// x * sigmoid(x): minus zero far below zero, NaN for minus infinity.
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

}  // namespace hunyuan_kernels::arch
