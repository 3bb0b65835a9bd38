// What threads, warps, blocks and launches exchange: matrices of 8 x 8, shuffles, votes, reductions, atomics, barriers,
// mbarriers, distributed shared memory, dependent launches; and conversions and approximations beside them.
#include <cuda_fp16.h>

#include "instructions.cuh"

// Four 8 x 8 matrices of 16-bit elements, rows at addresses that `rows` chooses (16-byte lines of `in`): ldmatrix into
// registers in six forms, 14 registers for each lane; then stmatrix of the first four registers in six forms.
extern "C" __global__ void load_and_store_matrix(const uint32_t* in, const int* rows, uint32_t* loaded,
                                                 uint32_t* stored) {
  __shared__ __align__(16) uint32_t lines[32 * 4], back[6][32 * 4];
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) {
    lines[i * 32 + lane] = in[i * 32 + lane];
    for (int form = 0; form < 6; ++form) back[form][i * 32 + lane] = 0xabababab;
  }
  __syncwarp();
  const uint32_t at = smem(&lines[4 * rows[lane]]);
  uint32_t r[14];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
               : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[8]), "=r"(r[9]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[10]), "=r"(r[11]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[12]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[13]) : "r"(at));
  for (int i = 0; i < 14; ++i) loaded[i * 32 + lane] = r[i];
#define TO(form) smem(&back[form][4 * rows[lane]])
  uint32_t v[4];
  for (int i = 0; i < 4; ++i) v[i] = in[i * 32 + lane];
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(TO(0)), "r"(v[0]), "r"(v[1]),
               "r"(v[2]), "r"(v[3])
               : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(TO(1)), "r"(v[0]), "r"(v[1]),
               "r"(v[2]), "r"(v[3])
               : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(TO(2)), "r"(v[0]), "r"(v[1]) : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(TO(3)), "r"(v[0]), "r"(v[1])
               : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(TO(4)), "r"(v[0]) : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(TO(5)), "r"(v[0]) : "memory");
  __syncwarp();
  for (int form = 0; form < 6; ++form)
    for (int i = 0; i < 4; ++i) stored[form * 128 + i * 32 + lane] = back[form][i * 32 + lane];
}

// 17 results for each lane.
extern "C" __global__ void warp_exchange(const int* in, int* out) {
  const int lane = threadIdx.x, v = in[lane];
  const uint32_t u = v;
  int r[17] = {__shfl_sync(~0u, v, lane * 7 % 32),
               __shfl_sync(~0u, v, lane + 3, 8),
               __shfl_up_sync(~0u, v, 3),
               __shfl_up_sync(~0u, v, 5, 16),
               __shfl_down_sync(~0u, v, 3),
               __shfl_down_sync(~0u, v, 9, 16),
               __shfl_xor_sync(~0u, v, 21),
               __all_sync(~0u, v != 0) + 2 * __any_sync(~0u, v == 5) + 4 * __all_sync(~0u, v < 8),
               static_cast<int>(__ballot_sync(~0u, v & 1)),
               static_cast<int>(__match_any_sync(~0u, v)),
               static_cast<int>(__reduce_add_sync(~0u, u)),
               __reduce_min_sync(~0u, v),
               __reduce_max_sync(~0u, v),
               static_cast<int>(__reduce_and_sync(~0u, u)),
               static_cast<int>(__reduce_or_sync(~0u, u)),
               static_cast<int>(__reduce_xor_sync(~0u, u)),
               0};
  if (lane % 2) r[16] = static_cast<int>(__reduce_add_sync(0xaaaaaaaau, u));  // of half a warp
  for (int i = 0; i < 17; ++i) out[i * 32 + lane] = r[i];
}

// Every thread applies each operation to a word of its own operation, in global and in shared memory.
extern "C" __global__ void atomics(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t local[12];
  const uint32_t v = in[blockIdx.x * blockDim.x + threadIdx.x];
  if (threadIdx.x < 12) local[threadIdx.x] = out[12 + threadIdx.x];
  __syncthreads();
  for (int shared = 0; shared < 2; ++shared) {
    uint32_t* a = shared ? local : out;
    atomicAdd(&a[0], v);
    atomicMin(&a[1], v);
    atomicMax(&a[2], v);
    atomicMin(reinterpret_cast<int*>(&a[3]), static_cast<int>(v));
    atomicMax(reinterpret_cast<int*>(&a[4]), static_cast<int>(v));
    atomicAnd(&a[5], v | 0xff);
    atomicOr(&a[6], v & 0xff00ff);
    atomicXor(&a[7], v);
    atomicInc(&a[8], 99);
    atomicDec(&a[9], 99);
    uint32_t seen = atomicAdd(&a[10], 0), assumed;
    do {
      assumed = seen;
      seen = atomicCAS(&a[10], assumed, assumed * 3 + 1);
    } while (seen != assumed);
    atomicAdd(&a[11], atomicExch(&a[11], 0));
  }
  __syncthreads();
  if (threadIdx.x < 12 && blockIdx.x == 0) out[24 + threadIdx.x] = local[threadIdx.x];
}

// One thread walks an mbarrier of three arrivals through its phases and notes after each step which parities are over.
extern "C" __global__ void mbarrier_phases(int* out) {
  __shared__ uint64_t bar;
  if (threadIdx.x) return;
  int n = 0;
  auto note = [&] {
    int over[2];
    for (int parity = 0; parity < 2; ++parity)
      asm volatile("{.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.s32 %0, 1, 0, p;\n}"
                   : "=r"(over[parity])
                   : "r"(smem(&bar)), "r"(parity)
                   : "memory");
    out[n++] = over[0] + 2 * over[1];
  };
  auto pending = [&](uint64_t state) {
    int count;
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(state));
    out[n++] = 10 + count;
  };
  uint64_t state;
  barrier_init(&bar, 3);
  fence_init();
  note();
  for (int i = 0; i < 3; ++i) {  // the third ends the phase
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(smem(&bar)) : "memory");
    pending(state);
    note();
  }
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 2;" : "=l"(state) : "r"(smem(&bar)) : "memory");
  pending(state);
  note();
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 64;" ::"r"(smem(&bar)) : "memory");
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem(&bar)) : "memory");
  note();  // bytes are missing
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 48;" ::"r"(smem(&bar)) : "memory");
  note();
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(smem(&bar)) : "memory");
  note();
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(smem(&bar)) : "memory");
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" ::"r"(smem(&bar)) : "memory");
  note();  // the phases to come have two arrivals
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" ::"r"(smem(&bar)) : "memory");
  note();
  out[n++] = 99;
}

// Blocks of a 2 x 2 cluster: who they are; a word that each reads from the next block's shared memory, writes into the
// one after it, and adds to the first's; arrivals of all on the first's mbarrier.
extern "C" __global__ void __cluster_dims__(2, 2, 1) cluster_exchange(int* out) {
  __shared__ int mine, theirs, sum;
  __shared__ uint64_t bar;
  uint32_t x, y, nx, ny, cx, cy;
  asm("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(x));
  asm("mov.u32 %0, %%cluster_ctaid.y;" : "=r"(y));
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(nx));
  asm("mov.u32 %0, %%cluster_nctaid.y;" : "=r"(ny));
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(cx));
  asm("mov.u32 %0, %%clusterid.y;" : "=r"(cy));
  const int rank = cluster_rank(), block = blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) {
    mine = 100 + block;
    theirs = -1;
    sum = 0;
    barrier_init(&bar, 4);
    fence_init();
  }
  cluster_sync();
  int read = 0;
  if (threadIdx.x == 0) {
    uint32_t from, to, first;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from) : "r"(smem(&mine)), "r"((rank + 1) % 4));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(smem(&theirs)), "r"((rank + 2) % 4));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(first) : "r"(smem(&sum)), "r"(0));
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(read) : "r"(from) : "memory");
    asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(to), "r"(rank) : "memory");
    asm volatile("red.relaxed.cluster.shared::cluster.add.s32 [%0], %1;" ::"r"(first), "r"(1 << 4 * rank) : "memory");
    arrive_remote(&bar, 0);
  }
  if (rank == 0) wait(&bar, 0);
  cluster_sync();
  if (threadIdx.x == 0) {
    const int values[10] = {rank,
                            static_cast<int>(x),
                            static_cast<int>(y),
                            static_cast<int>(nx),
                            static_cast<int>(ny),
                            static_cast<int>(cx),
                            static_cast<int>(cy),
                            read,
                            theirs,
                            sum};
    for (int i = 0; i < 10; ++i) out[block * 10 + i] = values[i];
  }
}

// The first of two launches lets the second start, then writes; the second waits before it reads.
extern "C" __global__ void launch_first(const int* in, int* between) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  between[i] = in[i] * 3;
}
extern "C" __global__ void launch_second(const int* between, int* out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = between[gridDim.x * blockDim.x - 1 - i] + 1;
}

// Two e4m3 or e5m2 values to two of f16, and two of f16 to FP8, for each of the 65,536 patterns of 16 bits.
extern "C" __global__ void packed_conversions(uint32_t* from_e4m3, uint32_t* from_e5m2, uint16_t* to_e4m3,
                                              uint16_t* to_e5m2) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint16_t pair = i, next = i + 1;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(from_e4m3[i]) : "h"(pair));
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(from_e5m2[i]) : "h"(pair));
  const uint32_t halves = pair | static_cast<uint32_t>(next) << 16;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(to_e4m3[i]) : "r"(halves));
  asm("cvt.rn.satfinite.e5m2x2.f16x2 %0, %1;" : "=h"(to_e5m2[i]) : "r"(halves));
}

// ex2, lg2, rcp, rsqrt, sqrt, tanh of x, in the form that kernels use.
extern "C" __global__ void approximations(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float x = in[i];
  float y[6];
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y[0]) : "f"(x));
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y[1]) : "f"(x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y[2]) : "f"(x));
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y[3]) : "f"(x));
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y[4]) : "f"(x));
  asm("tanh.approx.f32 %0, %1;" : "=f"(y[5]) : "f"(x));
  for (int k = 0; k < 6; ++k) out[k * n + i] = y[k];
}
