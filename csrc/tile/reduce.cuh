// Largest value and sum over a group of neighbouring threads of a block.
#pragma once
#include "arch/warp.cuh"

namespace hunyuan_kernels::tile {

// Groups of `threads` threads, counted from the block's first one: 16, or a multiple of 32. Every thread of the block
// calls it once and gets its group's maximum. `scratch` holds one word per warp of the block.
__device__ __forceinline__ uint32_t group_max(uint32_t value, int thread, int threads, uint32_t* scratch) {
  if (threads == 16) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) value = max(value, arch::exchange(value, mask));
    return value;
  }
  value = arch::warp_max(value);
  if (threads == 32) return value;
  const int lane = thread % 32, warps = threads / 32, first_warp = thread / threads * warps;
  if (lane == 0) scratch[thread / 32] = value;
  __syncthreads();
  return arch::warp_max(lane < warps ? scratch[first_warp + lane] : 0);
}

// Groups as above, of a multiple of 32 threads. The order of the additions depends on the number of threads alone.
__device__ __forceinline__ float group_sum(float value, int thread, int threads, float* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __uint_as_float(arch::exchange(__float_as_uint(value), mask));
  if (threads == 32) return value;
  const int warps = threads / 32, first_warp = thread / threads * warps;
  if (thread % 32 == 0) scratch[thread / 32] = value;
  __syncthreads();
  value = scratch[first_warp];
  for (int warp = 1; warp < warps; ++warp) value += scratch[first_warp + warp];
  return value;
}

// Sum over a one-dimensional block of whole warps, in its first thread. Every thread calls it once; `scratch` holds one
// number per warp. The order of the additions depends on the number of threads alone.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t low = arch::exchange(static_cast<uint32_t>(__double2loint(value)), mask);
    const uint32_t high = arch::exchange(static_cast<uint32_t>(__double2hiint(value)), mask);
    value += __hiloint2double(static_cast<int>(high), static_cast<int>(low));
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < static_cast<int>(blockDim.x / 32); ++warp) value += scratch[warp];
  return value;
}

}  // namespace hunyuan_kernels::tile
