// The frame of a warp-specialized product: a block of three warpgroups around a ring of stages.
//
//   warpgroup 0      warp 0, the producer, fills the stages; the other three warps do nothing.
//   warpgroups 1-2   the consumers multiply what the stages hold and write the results.
//
// Shared memory, from a multiple of 1024:   kStages stages of kStageBytes | kScratchBytes, the consumers' | barriers
#pragma once
#include "arch/cluster.cuh"
#include "arch/launch.cuh"
#include "arch/registers.cuh"
#include "arch/tensor_copy.cuh"
#include "arch/warp.cuh"
#include "tile/ring.cuh"

namespace hunyuan_kernels::tile {

constexpr int kWarpSpecializedThreads = 384, kConsumerWarps = 8;

// Which of the two warpgroups of consumers this one is; likewise known to be equal in a warp.
__device__ __forceinline__ int consumer_half() { return static_cast<int>(arch::lane_value(threadIdx.x / 128, 0)) - 1; }

// Beside the ring's barriers; initialize() by one thread.
struct NoMoreBarriers {
  __device__ void initialize() {}
};

// kBlocks: of a cluster, that fill each other's stages.
template <int kStages_, int kStageBytes_, int kScratchBytes_, typename MoreBarriers = NoMoreBarriers, int kBlocks = 1>
struct WarpSpecialized {
  static constexpr int kStages = kStages_, kStageBytes = kStageBytes_;
  static_assert(kStages >= 3 && kStageBytes % 1024 == 0 && kScratchBytes_ % 8 == 0);
  using Ring = tile::Ring<kStages, kBlocks>;
  struct Barriers {
    RingBarriers<kStages> ring;
    MoreBarriers more;
  };
  static constexpr int kSharedBytes = kStages * kStageBytes + kScratchBytes_ + static_cast<int>(sizeof(Barriers));

  // As every role sees it.
  struct Memory {
    uint32_t stages;
    uint8_t* scratch;
    Barriers& barriers;

    __device__ __forceinline__ uint32_t stage(uint32_t number) const { return stages + number * kStageBytes; }
  };

  // produce(memory) by the producer, consume(memory) by the consumers. kConsumerRegisters: of each of
  // their threads, for kernels of 168; the first warpgroup gives them up. 0: all keep theirs. kInCluster: MoreBarriers
  // are used by other blocks of the cluster, too, and whoever runs here sees to it that none is used after its block
  // has ended. Stages that other blocks fill are seen to here.
  template <int kConsumerRegisters, bool kInCluster, typename Produce, typename Consume, typename... TensorMaps>
  __device__ __forceinline__ static void run(Produce&& produce, Consume&& consume, const TensorMaps&... maps) {
    extern __shared__ __align__(1024) uint8_t memory_start[];
    uint8_t* scratch = memory_start + kStages * kStageBytes;
    const Memory memory{arch::shared_address(memory_start), scratch,
                        *reinterpret_cast<Barriers*>(scratch + kScratchBytes_)};
    if (threadIdx.x == 0) {
      memory.barriers.ring.initialize(kConsumerWarps * kBlocks);
      memory.barriers.more.initialize();
      arch::fence_barrier_initialization();
      (arch::prefetch_tensor_map(&maps), ...);
    }
    if constexpr (kInCluster || kBlocks > 1) {
      meet_cluster();
    } else {
      __syncthreads();
    }
    arch::wait_for_previous_launch();
    if (threadIdx.x < 128) {
      if constexpr (kConsumerRegisters) arch::shrink_to_registers<3 * 168 - 2 * kConsumerRegisters>();
      if (threadIdx.x < 32) produce(memory);
      arch::allow_next_launch();
    } else {
      if constexpr (kConsumerRegisters) arch::grow_to_registers<kConsumerRegisters>();
      consume(memory);
    }
    // Stages and barriers are there until no block of the cluster uses them any more.
    if constexpr (kBlocks > 1) meet_cluster();
  }

 private:
  __device__ __forceinline__ static void meet_cluster() {
    __syncwarp();  // the cluster's barrier takes whole warps
    arch::cluster_arrive();
    arch::cluster_wait();
  }
};

}  // namespace hunyuan_kernels::tile
