// Sums over the blocks of a cluster, in the order of their ranks: the threads of each block leave their addends in
// shared memory, and read those of their own number in the other blocks.
//
//   ready    a phase ends when every warp of every block has left its addends
//   read     a phase ends when every warp of every block has read what it wanted: the memory is free again, and
//            a block may end
#pragma once
#include "arch/barrier.cuh"
#include "arch/cluster.cuh"

namespace hunyuan_kernels::tile {

struct ClusterSumBarriers {
  uint64_t ready, read;

  // By one thread; arch::fence_barrier_initialization() and a barrier of the cluster have to follow.
  __device__ void initialize(uint32_t warps_of_cluster) {
    arch::initialize_barrier(&ready, warps_of_cluster);
    arch::initialize_barrier(&read, warps_of_cluster);
  }
};

// kThreads threads of a block in whole warps call every function together.
template <int kThreads>
class ClusterSum {
 public:
  // `addends`: kThreads floats for each addend.
  __device__ ClusterSum(ClusterSumBarriers& barriers, float* addends, int thread)
      : barriers_(barriers), addends_(addends + thread), blocks_(arch::cluster_size()) {}

  // leave(write): calls write(index, value) for each addend of this thread.
  template <typename Leave>
  __device__ __forceinline__ void exchange(Leave&& leave) {
    wait(&barriers_.read, parity_ ^ 1);
    leave([&](int index, float value) { addends_[index * kThreads] = value; });
    arrive_everywhere(&barriers_.ready);
    wait(&barriers_.ready, parity_);
  }
  __device__ __forceinline__ float sum(int index) const {
    float sum = 0.0f;
    for (uint32_t rank = 0; rank < blocks_; ++rank)
      sum += __uint_as_float(arch::load_cluster(arch::map_to_rank(addends_ + index * kThreads, rank)));
    return sum;
  }
  // After the last sum() of an exchange.
  __device__ __forceinline__ void release() {
    arrive_everywhere(&barriers_.read);
    parity_ ^= 1;
  }
  // Before the block ends: until nobody reads here any more.
  __device__ __forceinline__ void finish() const { wait(&barriers_.read, parity_ ^ 1); }

 private:
  __device__ __forceinline__ void arrive_everywhere(uint64_t* barrier) const {
    __syncwarp();  // the lanes that arrive do so for all
    if (const uint32_t lane = threadIdx.x % 32; lane < blocks_) arch::arrive_cluster(arch::map_to_rank(barrier, lane));
  }
  __device__ __forceinline__ static void wait(uint64_t* barrier, uint32_t parity) {
    while (!arch::try_wait_cluster(barrier, parity)) {
    }
  }

  ClusterSumBarriers& barriers_;
  float* addends_;
  const uint32_t blocks_;
  uint32_t parity_ = 0;
};

}  // namespace hunyuan_kernels::tile
