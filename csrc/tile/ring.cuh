// A ring of stages in shared memory between one producer thread, which fills them by TMA, and consumer warps.
//
//   full[s]    a phase ends when the producer has announced the bytes of stage s and they have arrived
//   empty[s]   a phase ends when every consumer warp has released stage s. With kBlocks > 1 the producers of a cluster
//              fill each other's stages, too: every consumer warp releases a stage in all of its blocks. It may
//              not have written to the stage.
//
// Each side walks over the stages in the same order and counts for itself; the parity flips with every round. The
// producer waits for the parity of the round before, which is over at once in the first round.
#pragma once
#include "arch/barrier.cuh"
#include "arch/cluster.cuh"
#include "arch/warp.cuh"

namespace hunyuan_kernels::tile {

template <int kStages>
struct RingBarriers {
  uint64_t full[kStages], empty[kStages];

  // By one thread; arch::fence_barrier_initialization() and a barrier of the block have to follow.
  __device__ void initialize(uint32_t consumer_warps) {
    for (int stage = 0; stage < kStages; ++stage) {
      arch::initialize_barrier(&full[stage], 1);
      arch::initialize_barrier(&empty[stage], consumer_warps);
    }
  }
};

template <int kStages, int kBlocks = 1>
class Ring {
 public:
  __device__ explicit Ring(RingBarriers<kStages>& barriers) : barriers_(barriers) {}

  __device__ __forceinline__ uint32_t stage() const { return stage_; }
  // The same, by whole warps, as a value that the compiler knows to be equal in a warp: descriptors that are made of it
  // stay in uniform registers, where wgmma takes them.
  __device__ __forceinline__ uint32_t uniform_stage() const { return arch::lane_value(stage_, 0); }
  __device__ __forceinline__ void advance() {
    if (++stage_ == kStages) stage_ = 0, parity_ ^= 1;
  }

  // The producer's part. The copies of the stage complete on full().
  __device__ __forceinline__ void fill(uint32_t bytes) {
    wait(&barriers_.empty[stage_], parity_ ^ 1);
    arch::arrive_expecting(full(), bytes);
  }
  __device__ __forceinline__ uint64_t* full() { return &barriers_.full[stage_]; }

  // The consumers' part. By every thread, and by one lane of each warp.
  __device__ __forceinline__ void wait_until_full() { wait(full(), parity_); }
  __device__ __forceinline__ void release(uint32_t stage) {
    if constexpr (kBlocks > 1) {
#pragma unroll
      for (uint32_t block = 0; block < kBlocks; ++block)
        arch::arrive_at(arch::map_to_rank(&barriers_.empty[stage], block));
    } else {
      arch::arrive(&barriers_.empty[stage]);
    }
  }
  // By warps that do not use the stages of the depths begin, begin + step, ... below end.
  __device__ __forceinline__ void pass(int32_t begin, int32_t end, int32_t step) {
    // One lane: the others could be so late that the stage was filled twice, and its parity is that of before.
    const bool signals = threadIdx.x % 32 == 0;
    for (int32_t depth = begin; depth < end; depth += step, advance())
      if (signals) {
        wait_until_full();
        release(stage_);
      }
  }

 private:
  __device__ __forceinline__ static void wait(uint64_t* barrier, uint32_t parity) {
    while (!arch::try_wait(barrier, parity)) {
    }
  }

  RingBarriers<kStages>& barriers_;
  uint32_t stage_ = 0, parity_ = 0;
};

}  // namespace hunyuan_kernels::tile
