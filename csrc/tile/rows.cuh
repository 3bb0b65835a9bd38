// Rows of a matrix, one to a run of whole warps: blockDim = (threads of a row, rows of a block), blockIdx.x blocks.
// Thread t takes the vectors t, t + blockDim.x, ... of its row.
#pragma once
#include "arch/warp.cuh"
#include "tile/vector_io.cuh"

namespace hunyuan_kernels::tile {

__device__ __forceinline__ int64_t row_of_thread() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }
__device__ __forceinline__ bool is_within(int32_t index, int64_t count) { return index >= 0 && index < count; }

// What the whole row needs is loaded by one lane of each warp: f() there, its value in all. Every lane of a warp calls.
template <typename F>
__device__ __forceinline__ int32_t once_per_warp(F&& f) {
  int32_t value = 0;
  if (threadIdx.x % 32 == 0) value = f();
  return static_cast<int32_t>(arch::lane_value(static_cast<uint32_t>(value), 0));
}

// load(slot, index), then use(slot, index), for up to kVectors of this thread's vectors of a row at a time: all loads
// are issued before the first result is used.
template <int kVectors, typename Load, typename Use>
__device__ __forceinline__ void for_each_vector(int64_t vectors, Load&& load, Use&& use) {
  const int64_t step = int64_t{kVectors} * blockDim.x;
  for (int64_t first = threadIdx.x; first < vectors; first += step) {
#pragma unroll
    for (int slot = 0; slot < kVectors; ++slot)
      if (const int64_t index = first + slot * int64_t{blockDim.x}; index < vectors) load(slot, index);
#pragma unroll
    for (int slot = 0; slot < kVectors; ++slot)
      if (const int64_t index = first + slot * int64_t{blockDim.x}; index < vectors) use(slot, index);
  }
}

// A row of `columns` elements by vectors of 16 bytes. kWhole: it starts at a multiple of 16 bytes and holds whole
// vectors; otherwise elements go one by one, and the last vector may be cut off.
template <typename Element, bool kWhole>
struct Row {
  static constexpr int kPerVector = kElementsPerVector<Element>;

  __device__ static int64_t vectors(int64_t columns) { return (columns + kPerVector - 1) / kPerVector; }

  __device__ __forceinline__ static arch::Words4 load(const void* row, int64_t index, int64_t columns) {
    const Element* from = static_cast<const Element*>(row) + index * kPerVector;
    if constexpr (kWhole) return arch::load_streaming(from);
    return load_elements(from, static_cast<int>(min(int64_t{kPerVector}, columns - index * kPerVector)));
  }
  __device__ __forceinline__ static void store(void* row, int64_t index, int64_t columns,
                                               const float (&values)[kPerVector]) {
    Element* to = static_cast<Element*>(row) + index * kPerVector;
    const arch::Words4 packed = pack<Element>(values);
    if constexpr (kWhole)
      arch::store(to, packed);
    else
      store_elements(to, packed, static_cast<int>(min(int64_t{kPerVector}, columns - index * kPerVector)));
  }
  __device__ static const void* at(const void* data, int64_t row, int64_t stride) {
    return static_cast<const Element*>(data) + row * stride;
  }
  __device__ static void* at(void* data, int64_t row, int64_t stride) {
    return static_cast<Element*>(data) + row * stride;
  }
};

}  // namespace hunyuan_kernels::tile
