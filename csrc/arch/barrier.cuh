// Barriers of a block, one PTX instruction per function: mbarriers in shared memory, and the hardware's named barriers.
//
// An mbarrier goes from phase to phase; a phase ends when the expected arrivals and bytes have come. Who waits names
// the phase by its parity: waiting for the parity of the phase before the current one returns at once.
#pragma once
#include <cstdint>

#include "arch/shared.cuh"

namespace hunyuan_kernels::arch {

__device__ __forceinline__ void initialize_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initializations visible to the asynchronous proxy and to other blocks of the cluster.
__device__ __forceinline__ void fence_barrier_initialization() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival, and the phase also waits for this many bytes of asynchronous copies.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Whether the phase with this parity has ended; may suspend the thread for a while before it says no.
__device__ __forceinline__ bool try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(ended)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return ended != 0;
}

// The same across a cluster: what the arriving thread wrote before is seen by who waits for the phase. `address` is
// that of a barrier in any block of the cluster (map_to_rank).
__device__ __forceinline__ void arrive_cluster(uint32_t address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
// Orders what came before for this block alone: enough where the stage was only read. arrive_cluster() costs a fence.
__device__ __forceinline__ void arrive_at(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ bool try_wait_cluster(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

// Named barrier 0 is __syncthreads(). `threads` is a multiple of 32; the warps that meet are whole.
__device__ __forceinline__ void synchronize(uint32_t named_barrier, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(named_barrier), "r"(threads) : "memory");
}

// Orders this thread's generic accesses to shared memory before later ones of the asynchronous proxy (TMA, wgmma).
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace hunyuan_kernels::arch
