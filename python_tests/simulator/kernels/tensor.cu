// TMA, mbarrier, wgmma, clusters, cp.async, ldmatrix + mma, and deliberate misuse of them.
#include <cuda_bf16.h>

#include "instructions.cuh"

// Loads a box, dumps the raw shared bytes and stores the box again.
extern "C" __global__ void tma_roundtrip(const __grid_constant__ CUtensorMap in,
                                         const __grid_constant__ CUtensorMap out, uint8_t* raw, int bytes, int x,
                                         int y) {
  extern __shared__ __align__(1024) uint8_t buffer[];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, bytes);
    tma_load(buffer, &in, &bar, x, y);
  }
  __syncthreads();
  wait(&bar, 0);
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) raw[i] = buffer[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store(&out, buffer, x, y);
    store_wait();
  }
}

#define ACC32(d)                                                                                              \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define REGS32                                                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%" \
  "30,%31}"

template <int ta, int tb>
__device__ void mma_bf16(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " REGS32 ", %32, %33, 1, 1, 1, %34, %35;"
               : ACC32(d)
               : "l"(a), "l"(b), "n"(ta), "n"(tb));
}
__device__ void mma_e4m3(float (&d)[32], uint64_t a, uint64_t b, int scale) {
  asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 " REGS32
               ", %32, %33, p, 1, 1;\n}"
               : ACC32(d)
               : "l"(a), "l"(b), "r"(scale));
}
__device__ void mma_bf16_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " REGS32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
               : ACC32(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}
__device__ inline void write_accumulators(float* out, const float (&d)[32], int ld) {
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
  for (int v = 0; v < 32; ++v) out[(row + (v & 2 ? 8 : 0)) * ld + col + (v & 1) + v / 4 * 8] = d[v];
}

struct OperandPlan {
  uint64_t descriptor;
  int boxes, inner, boxBytes, steps[4];
};
__device__ inline uint64_t with_start(uint64_t d, uint32_t address) { return d | ((address & 0x3ffff) >> 4); }

// One 64 x 64 tile, depth 128 bytes, operands in any canonical layout. kind: 0 bf16, 1 e4m3
template <int kind, int ta, int tb>
__device__ void gemm_tile(const CUtensorMap& a, const CUtensorMap& b, float* out, const OperandPlan& pa,
                          const OperandPlan& pb) {
  extern __shared__ __align__(1024) uint8_t buffer[];
  __shared__ uint64_t bar;
  uint8_t *sa = buffer, *sb = buffer + 8192;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    for (int i = 0; i < pa.boxes; ++i) tma_load(sa + i * pa.boxBytes, &a, &bar, i * pa.inner, 0);
    for (int i = 0; i < pb.boxes; ++i) tma_load(sb + i * pb.boxBytes, &b, &bar, i * pb.inner, 0);
    expect(&bar, pa.boxes * pa.boxBytes + pb.boxes * pb.boxBytes);
  }
  __syncthreads();
  wait(&bar, 0);
  float d[32];
  for (int i = 0; i < 32; ++i) d[i] = kind == 1 ? 7.f : 0.f;
  wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    uint64_t da = with_start(pa.descriptor, smem(sa) + pa.steps[k]),
             db = with_start(pb.descriptor, smem(sb) + pb.steps[k]);
    if constexpr (kind == 0)
      mma_bf16<ta, tb>(d, da, db);
    else
      mma_e4m3(d, da, db, k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  write_accumulators(out, d, 64);
}
#define TILE(name, kind, ta, tb)                                                                                \
  extern "C" __global__ void name(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, \
                                  float* out, const __grid_constant__ OperandPlan pa,                           \
                                  const __grid_constant__ OperandPlan pb) {                                     \
    gemm_tile<kind, ta, tb>(a, b, out, pa, pb);                                                                 \
  }
TILE(tile_bf16_kk, 0, 0, 0)
TILE(tile_bf16_mk, 0, 1, 0)
TILE(tile_bf16_kn, 0, 0, 1)
TILE(tile_bf16_mn, 0, 1, 1)
TILE(tile_e4m3, 1, 0, 0)

// A from registers, B written by threads through the generic proxy. bug: 1 no proxy fence, 2 accumulators read
// before wait_group, 3 tile overwritten before wait_group. 4 is none: one warp overwrites the tile after its own
// wait_group, and so after that of the warpgroup.
template <int bug>
__device__ void gemm_registers(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  __shared__ __align__(1024) __nv_bfloat16 sb[64 * 16];  // no swizzle: 8x8 core matrices, K chunks 1024 bytes apart
  for (int i = threadIdx.x; i < 64 * 16; i += 128) {
    int n = i / 16, k = i % 16;
    sb[k / 8 * 512 + n * 8 + k % 8] = b[i];
  }
  if (bug != 1) fence_async();
  __syncthreads();
  uint32_t fragment[4];
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
  for (int i = 0; i < 4; ++i) fragment[i] = *(const uint32_t*)&a[(row + (i & 1) * 8) * 16 + col + i / 2 * 8];
  float d[32] = {};
  uint64_t descriptor = (uint64_t(1024 >> 4) << 16) | (uint64_t(128 >> 4) << 32);
  wgmma_fence();
  mma_bf16_rs(d, fragment, with_start(descriptor, smem(sb)));
  wgmma_commit();
  if (bug == 2) write_accumulators(out, d, 64);
  if (bug == 3) sb[threadIdx.x] = __float2bfloat16(0.f);
  wgmma_wait<0>();
  if (bug == 4 && threadIdx.x < 32)
    for (int i = threadIdx.x; i < 64 * 16; i += 32) sb[i] = __float2bfloat16(0.f);
  write_accumulators(out, d, 64);
}
extern "C" __global__ void one_warp_reuses(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  gemm_registers<4>(a, b, out);
}
extern "C" __global__ void registers_ok(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  gemm_registers<0>(a, b, out);
}
extern "C" __global__ void bug_no_proxy_fence(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  gemm_registers<1>(a, b, out);
}
extern "C" __global__ void bug_early_read(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  gemm_registers<2>(a, b, out);
}
extern "C" __global__ void bug_overwrite(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  gemm_registers<3>(a, b, out);
}

// Each block of a pair loads half of a tile and multicasts it to both; then blocks exchange sums through DSMEM.
extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(const __grid_constant__ CUtensorMap in, float* out) {
  __shared__ __align__(128) float tile[2][16 * 16];
  __shared__ uint64_t bar;
  __shared__ float sums[2];
  uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    expect(&bar, 2 * 16 * 16 * 4);
    tma_load_multicast(tile[rank], &in, &bar, 0, (blockIdx.x / 2 * 2 + rank) * 16, 3);
  }
  wait(&bar, 0);
  float s = 0;
  for (int i = threadIdx.x; i < 512; i += 32) s += (&tile[0][0])[i] * (rank + 1);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x == 0) {
    for (uint32_t r = 0; r < 2; ++r) {
      uint32_t remote;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(smem(&sums[rank])), "r"(r));
      asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(s) : "memory");
    }
  }
  cluster_sync();
  if (threadIdx.x == 0) out[blockIdx.x] = sums[0] + sums[1];
}

// Producer warp / consumer warps over a ring of stages. bug 1: consumers never release a stage (deadlock),
// bug 2: the producer does not wait for free stages (overwrite), bug 3: too few expected bytes
template <int bug>
__device__ void ring(const CUtensorMap& in, float* out, int tiles) {
  constexpr int kStages = 2;
  __shared__ __align__(128) float tile[kStages][32 * 32];
  __shared__ uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], 4);
    }
    fence_init();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128)
      for (int t = 0; t < tiles; ++t) {
        int s = t % kStages;
        if (bug != 2) wait(&empty[s], (t / kStages + 1) & 1);
        expect(&full[s], bug == 3 ? 2048 : 4096);
        tma_load(tile[s], &in, &full[s], 0, t * 32);
      }
  } else {
    float sum = 0;
    for (int t = 0; t < tiles; ++t) {
      int s = t % kStages;
      wait(&full[s], (t / kStages) & 1);
      for (int i = threadIdx.x; i < 1024; i += 128) sum += tile[s][i];
      __syncwarp();
      if (threadIdx.x % 32 == 0 && bug != 1)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem(&empty[s])) : "memory");
    }
    atomicAdd(out, sum);
  }
}
extern "C" __global__ void ring_ok(const __grid_constant__ CUtensorMap in, float* out, int tiles) {
  ring<0>(in, out, tiles);
}
extern "C" __global__ void bug_ring_deadlock(const __grid_constant__ CUtensorMap in, float* out, int tiles) {
  ring<1>(in, out, tiles);
}
extern "C" __global__ void bug_ring_overrun(const __grid_constant__ CUtensorMap in, float* out, int tiles) {
  ring<2>(in, out, tiles);
}
extern "C" __global__ void bug_ring_bytes(const __grid_constant__ CUtensorMap in, float* out, int tiles) {
  ring<3>(in, out, tiles);
}

// 16 x 8 x 16 product from shared memory filled by cp.async, through ldmatrix and mma.sync.
extern "C" __global__ void ldmatrix_mma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  __shared__ __align__(16) __nv_bfloat16 sa[16 * 16], sb[16 * 8];  // b is [k][n]
  int lane = threadIdx.x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(sa + lane * 8)), "l"(a + lane * 8) : "memory");
  if (lane < 16)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(smem(sb + lane * 8)), "l"(b + lane * 8) : "memory");
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
  __syncwarp();
  uint32_t fa[4], fb[2];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
               : "r"(smem(sa + (lane % 16) * 16 + lane / 16 * 8)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(fb[0]), "=r"(fb[1])
               : "r"(smem(sb + (lane % 16) * 8)));
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  for (int v = 0; v < 4; ++v) out[(lane / 4 + v / 2 * 8) * 8 + lane % 4 * 2 + v % 2] = d[v];
}

// Reads a tile before waiting for its copy.
extern "C" __global__ void bug_no_wait(const __grid_constant__ CUtensorMap in, float* out) {
  __shared__ __align__(128) float tile[32 * 32];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, 4096);
    tma_load(tile, &in, &bar, 0, 0);
  }
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
  wait(&bar, 0);
}
extern "C" __global__ void bug_mbarrier_uninit(float* out) {
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) expect(&bar, 16);
  out[0] = 0;
}

// Bulk copy without tensor map, and bulk reduction.
extern "C" __global__ void bulk_add(const float* in, float* out, int n) {
  extern __shared__ __align__(128) float staged[];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, n * 4);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem(staged)),
        "l"(in), "r"(n * 4), "r"(smem(&bar))
        : "memory");
  }
  __syncthreads();
  wait(&bar, 0);
  for (int i = threadIdx.x; i < n; i += blockDim.x) staged[i] *= 2;
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(out),
                 "r"(smem(staged)), "r"(n * 4)
                 : "memory");
    store_wait();
  }
}

// Loads a box of rank 1, 3 or 5 and stores it back with an additive reduction.
template <int rank>
__device__ void tma_rank(const CUtensorMap& in, const CUtensorMap& out, float* raw, int bytes, const int (&c)[5]) {
  extern __shared__ __align__(1024) uint8_t buffer[];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    fence_init();
    expect(&bar, bytes);
    if constexpr (rank == 1)
      asm volatile(
          "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::
              "r"(smem(buffer)),
          "l"(&in), "r"(smem(&bar)), "r"(c[0])
          : "memory");
    if constexpr (rank == 3)
      asm volatile(
          "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5}], "
          "[%2];" ::"r"(smem(buffer)),
          "l"(&in), "r"(smem(&bar)), "r"(c[0]), "r"(c[1]), "r"(c[2])
          : "memory");
    if constexpr (rank == 5)
      asm volatile(
          "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
          "{%3,%4,%5,%6,%7}], [%2];" ::"r"(smem(buffer)),
          "l"(&in), "r"(smem(&bar)), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
          : "memory");
  }
  __syncthreads();
  wait(&bar, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) raw[i] = ((float*)buffer)[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    if constexpr (rank == 1)
      asm volatile(
          "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%0, {%2}], [%1];" ::"l"(&out),
          "r"(smem(buffer)), "r"(c[0])
          : "memory");
    if constexpr (rank == 3)
      asm volatile(
          "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2,%3,%4}], [%1];" ::"l"(&out),
          "r"(smem(buffer)), "r"(c[0]), "r"(c[1]), "r"(c[2])
          : "memory");
    if constexpr (rank == 5)
      asm volatile(
          "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group [%0, {%2,%3,%4,%5,%6}], [%1];" ::"l"(
              &out),
          "r"(smem(buffer)), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
          : "memory");
    store_wait();
  }
}
struct Coordinates {
  int v[5];
};
extern "C" __global__ void tma_rank1(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out,
                                     float* raw, int bytes, Coordinates c) {
  tma_rank<1>(in, out, raw, bytes, c.v);
}
extern "C" __global__ void tma_rank3(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out,
                                     float* raw, int bytes, Coordinates c) {
  tma_rank<3>(in, out, raw, bytes, c.v);
}
extern "C" __global__ void tma_rank5(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out,
                                     float* raw, int bytes, Coordinates c) {
  tma_rank<5>(in, out, raw, bytes, c.v);
}

// Two pairs of warps meet at their own named barriers; a counting reduction joins all.
extern "C" __global__ void named_barriers(int* out) {
  __shared__ int s[128];
  int group = threadIdx.x / 64;
  s[threadIdx.x] = threadIdx.x;
  asm volatile("bar.sync %0, 64;" ::"r"(1 + group) : "memory");
  int other = s[group * 64 + (threadIdx.x + 32) % 64];
  int count = __syncthreads_count(other % 3 == 0);
  out[threadIdx.x] = other * 1000 + count;
}
