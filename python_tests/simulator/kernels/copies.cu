// TMA reductions of every operation and type, out-of-bounds fill, multicast; cp.async with zero fill; bulk copies.
#include "instructions.cuh"

// Adds a tile that threads wrote to a tensor by TMA. `in` and `out` are [rows][16] of 4-byte words or [rows][32] of
// 2-byte elements; the tile is `bytes` long, its first element at (x, y).
#define TMA_REDUCE(operation)                                                                                    \
  extern "C" __global__ void tma_reduce_##operation(const uint32_t* in, const __grid_constant__ CUtensorMap out, \
                                                    int bytes, int x, int y) {                                   \
    extern __shared__ __align__(1024) uint32_t words[];                                                          \
    for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = in[i];                                  \
    fence_async();                                                                                               \
    __syncthreads();                                                                                             \
    if (threadIdx.x == 0) {                                                                                      \
      asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta." #operation                               \
                   ".tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&out),                                         \
                   "r"(smem(words)), "r"(x), "r"(y)                                                              \
                   : "memory");                                                                                  \
      store_wait();                                                                                              \
    }                                                                                                            \
  }
TMA_REDUCE(add)
TMA_REDUCE(min)
TMA_REDUCE(max)
TMA_REDUCE(inc)
TMA_REDUCE(dec)
TMA_REDUCE(and)
TMA_REDUCE(or)
TMA_REDUCE(xor)

// Each of the four blocks of a cluster loads a quarter of a [16][64] tile of words and sends it to the blocks of its
// mask; a block that nobody sends a quarter to keeps the marks that were there.
extern "C" __global__ void __cluster_dims__(4, 1, 1)
    multicast_masks(const __grid_constant__ CUtensorMap in, uint32_t* out, uint32_t masks, uint32_t expected) {
  __shared__ __align__(128) uint32_t tile[4][64 * 4];
  __shared__ uint64_t bar;
  const uint32_t rank = cluster_rank();
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) (&tile[0][0])[i] = 0xabababab;
  fence_async();
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, (expected >> 8 * rank & 255) * 1024);
  }
  __syncthreads();
  cluster_sync();
  if (threadIdx.x == 0) tma_load_multicast(tile[rank], &in, &bar, 0, 4 * rank, masks >> 8 * rank & 15);
  wait(&bar, 0);
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) out[1024 * blockIdx.x + i] = (&tile[0][0])[i];
  cluster_sync();  // nobody leaves while copies into another block are under way
}

// Bytes from a block's shared memory into its neighbour's, counted by the neighbour's mbarrier.
extern "C" __global__ void __cluster_dims__(2, 1, 1) bulk_to_neighbour(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(128) uint32_t mine[64], theirs[64];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, 256);
  }
  for (int i = threadIdx.x; i < 64; i += blockDim.x) mine[i] = in[64 * blockIdx.x + i];
  fence_async();
  __syncthreads();
  cluster_sync();
  if (threadIdx.x == 0) {
    uint32_t to, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(smem(theirs)), "r"(cluster_rank() ^ 1));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(smem(&bar)), "r"(cluster_rank() ^ 1));
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], 256, [%2];" ::"r"(to),
        "r"(smem(mine)), "r"(counted)
        : "memory");
  }
  wait(&bar, 0);
  for (int i = threadIdx.x; i < 64; i += blockDim.x) out[64 * blockIdx.x + i] = theirs[i];
  cluster_sync();
}

// cp.async of 4, 8 and 16 bytes, of which only the first `given` are read; the rest becomes zero. The third group is
// waited for after the first two.
extern "C" __global__ void cp_async_fill(const uint32_t* in, const int* given, uint32_t* out) {
  __shared__ __align__(16) uint32_t staged[3][32 * 4];
  const int lane = threadIdx.x;
  const uint32_t* from = in + 4 * lane;
  for (int i = 0; i < 4; ++i)
    for (int g = 0; g < 3; ++g) staged[g][4 * lane + i] = 0xabababab;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\ncp.async.commit_group;" ::"r"(smem(&staged[0][4 * lane])),
               "l"(from), "r"(min(given[lane], 4))
               : "memory");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\ncp.async.commit_group;" ::"r"(smem(&staged[1][4 * lane])),
               "l"(from), "r"(min(given[lane], 8))
               : "memory");
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;\ncp.async.commit_group;" ::"r"(smem(&staged[2][4 * lane])),
      "l"(from), "r"(given[lane])
      : "memory");
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  for (int i = 0; i < 4; ++i)
    for (int g = 0; g < 2; ++g) out[128 * g + 4 * lane + i] = staged[g][4 * lane + i];
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[256 + 4 * lane + i] = staged[2][4 * lane + i];
}
