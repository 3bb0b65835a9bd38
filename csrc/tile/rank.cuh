// Counting in thread order within a block: how many threads before this one hold the same key.
#pragma once
#include "arch/warp.cuh"

namespace hunyuan_kernels::tile {

// The number of threads of the block before this one with the same key, 0 for a negative key. Every thread of a
// one-dimensional block of whole warps calls it. warp_counts: [warps][keys] words of shared memory that no thread uses
// any more. When one thread returns others may still be reading them: a barrier comes before the next call.
__device__ __forceinline__ uint32_t rank_in_block(int32_t key, uint32_t* warp_counts, int keys) {
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int i = threadIdx.x; i < warps * keys; i += blockDim.x) warp_counts[i] = 0;
  __syncthreads();
  const uint32_t same = arch::lanes_with_same(static_cast<uint32_t>(key)), before = same & arch::lanes_before();
  if (key >= 0 && before == 0) warp_counts[warp * keys + key] = __popc(same);
  __syncthreads();
  for (int k = threadIdx.x; k < keys; k += blockDim.x) {
    uint32_t sum = 0;
    for (int w = 0; w < warps; ++w) {
      const uint32_t count = warp_counts[w * keys + k];
      warp_counts[w * keys + k] = sum;
      sum += count;
    }
  }
  __syncthreads();
  return key >= 0 ? warp_counts[warp * keys + key] + __popc(before) : 0;
}

// values[i] becomes the sum of values[0 .. i - 1]; values[count] that of all. For one whole warp.
__device__ __forceinline__ void exclusive_sums(uint32_t* values, int count) {
  const int lane = threadIdx.x % 32;
  uint32_t carry = 0;
  for (int first = 0; first < count; first += 32) {
    const uint32_t value = first + lane < count ? values[first + lane] : 0;
    uint32_t sum = value;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = arch::shift_up(sum, distance);
      if (lane >= static_cast<int>(distance)) sum += other;
    }
    if (first + lane < count) values[first + lane] = carry + sum - value;
    carry += arch::lane_value(sum, 31);
  }
  if (lane == 0) values[count] = carry;
}

}  // namespace hunyuan_kernels::tile
