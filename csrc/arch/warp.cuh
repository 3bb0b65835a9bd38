// Warp-wide operations, one PTX instruction per function.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::arch {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Largest value over the 32 lanes, in every lane.
__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
  uint32_t largest;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(largest) : "r"(value));
  return largest;
}

// The value of lane (own lane ^ mask).
__device__ __forceinline__ uint32_t exchange(uint32_t value, uint32_t mask) {
  uint32_t other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(other) : "r"(value), "r"(mask));
  return other;
}

}  // namespace hunyuan_kernels::arch
