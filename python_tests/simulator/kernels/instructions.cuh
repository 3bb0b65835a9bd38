// What the test kernels of several files issue: shared addresses, mbarriers, TMA, clusters.
#pragma once
#include <cuda.h>

#include <cstdint>

__device__ inline uint32_t smem(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ inline void barrier_init(uint64_t* b, int n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(b)), "r"(n) : "memory");
}
__device__ inline void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void expect(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(b)), "r"(bytes) : "memory");
}
__device__ inline void arrive_remote(uint64_t* b, uint32_t rank) {
  asm volatile(
      "{.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, "
      "%1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(smem(b)),
      "r"(rank)
      : "memory");
}
__device__ inline void wait(uint64_t* b, int parity) {
  asm volatile(
      "{.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra "
      "AGAIN;\nDONE:\n}" ::"r"(smem(b)),
      "r"(parity)
      : "memory");
}
__device__ inline void tma_load(void* d, const CUtensorMap* t, uint64_t* b, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          smem(d)),
      "l"(t), "r"(smem(b)), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void tma_load_multicast(void* d, const CUtensorMap* t, uint64_t* b, int x, int y, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, "
      "%5}], [%2], %3;" ::"r"(smem(d)),
      "l"(t), "r"(smem(b)), "h"(mask), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void tma_store(const CUtensorMap* t, const void* s, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(t), "r"(smem(s)),
               "r"(x), "r"(y)
               : "memory");
}
__device__ inline void store_wait() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline uint32_t cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
