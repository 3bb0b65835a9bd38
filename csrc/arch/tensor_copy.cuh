// TMA: copies of boxes between tensors in global memory and tiles in shared memory, one PTX instruction per function.
// Coordinates are elements, the fastest dimension first; what lies outside the tensor is read as zeros and not written.
// One thread issues a copy. `map` is a tensor map in the kernel's parameters, 64-byte aligned.
#pragma once
#include <cstdint>

#include "arch/shared.cuh"

namespace hunyuan_kernels::arch {

__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The bytes of the box arrive at `barrier`.
__device__ __forceinline__ void load_box(uint32_t shared, const void* map, uint64_t* barrier, int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void load_box(uint32_t shared, const void* map, uint64_t* barrier, int32_t x, int32_t y,
                                         int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same box for every block of the cluster whose bit is set in `blocks`: read once, written at the same place of the
// shared memory of each, and its bytes arrive at the barrier at the same place.
__device__ __forceinline__ void load_box_multicast(uint32_t shared, const void* map, uint64_t* barrier, int32_t x,
                                                   int32_t y, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

// Belongs to the bulk group that this thread commits next.
__device__ __forceinline__ void store_box(const void* map, uint32_t shared, int32_t x, int32_t y, int32_t z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y), "r"(z)
               : "memory");
}
// The same, adding to what is there.
__device__ __forceinline__ void add_box(const void* map, uint32_t shared, int32_t x, int32_t y, int32_t z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the last kPending groups of this thread have read their shared memory.
template <int kPending>
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// Until every group of this thread is complete.
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace hunyuan_kernels::arch
