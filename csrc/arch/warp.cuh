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

// The lanes (a bit each) for which the condition holds.
__device__ __forceinline__ uint32_t ballot(bool condition) {
  uint32_t lanes;
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, 0xffffffff; }"
               : "=r"(lanes)
               : "r"(static_cast<uint32_t>(condition)));
  return lanes;
}

// The lanes (a bit each) that hold the same value as this one.
__device__ __forceinline__ uint32_t lanes_with_same(uint32_t value) {
  uint32_t lanes;
  asm volatile("match.any.sync.b32 %0, %1, 0xffffffff;" : "=r"(lanes) : "r"(value));
  return lanes;
}

// The lanes (a bit each) before this one.
__device__ __forceinline__ uint32_t lanes_before() {
  uint32_t lanes;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lanes));
  return lanes;
}

// The value of one lane, in every lane.
__device__ __forceinline__ uint32_t lane_value(uint32_t value, uint32_t lane) {
  uint32_t other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(other) : "r"(value), "r"(lane));
  return other;
}

// The value of the lane `distance` before this one; this lane's own where there is none.
__device__ __forceinline__ uint32_t shift_up(uint32_t value, uint32_t distance) {
  uint32_t other;
  asm volatile("shfl.sync.up.b32 %0, %1, %2, 0, 0xffffffff;" : "=r"(other) : "r"(value), "r"(distance));
  return other;
}

}  // namespace hunyuan_kernels::arch
