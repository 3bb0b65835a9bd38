// Elementwise, reductions, atomics, divergence, device functions, printf.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cstdint>
#include <cstdio>

extern "C" __global__ void saxpy(float* y, const float* x, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

extern "C" __global__ void block_sum(const float* x, float* out, int n) {
  __shared__ float partial[32];
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
    for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o);
    if (threadIdx.x == 0) atomicAdd(out, v);
  }
}

extern "C" __global__ void histogram(const int* x, int* bins, int n, int nb) {
  extern __shared__ int local[];
  for (int i = threadIdx.x; i < nb; i += blockDim.x) local[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < nb; i += blockDim.x) atomicAdd(&bins[i], local[i]);
}

__device__ __noinline__ float polynomial(float x, int degree) {
  float r = 0;
  for (int i = 0; i < degree; ++i) r = r * x + i;
  return r;
}
extern "C" __global__ void divergent(float* out, const int* degree) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float r;
  switch (degree[i] % 5) {
    case 0: r = polynomial(0.5f, degree[i]); break;
    case 1: r = sinf(degree[i]); break;
    case 2: r = logf(1.0f + degree[i]); break;
    case 3: r = expf(-degree[i] * 0.1f); break;
    default: r = degree[i] % 7 / 3.0f; break;
  }
  out[i] = r;
}

extern "C" __global__ void conversions(const float* x, __nv_bfloat16* b, __half* h, uint8_t* e4, uint8_t* e5, int* i32,
                                       float* back, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  b[i] = __float2bfloat16(x[i]);
  h[i] = __float2half(x[i]);
  e4[i] = __nv_fp8_e4m3(x[i]).__x;
  e5[i] = __nv_fp8_e5m2(x[i]).__x;
  i32[i] = __float2int_rn(x[i]);
  __nv_fp8_e4m3 q;
  q.__x = e4[i];
  back[i] = float(q);
}

extern "C" __global__ void spin_lock(int* lock, int* value) {
  for (int lane = 0; lane < 32; ++lane)
    if (threadIdx.x % 32 == lane) {
      while (atomicCAS(lock, 0, 1) != 0) {
      }
      __threadfence();
      *(volatile int*)value += 1;
      __threadfence();
      atomicExch(lock, 0);
    }
}

extern "C" __global__ void grid_barrier(unsigned* counter, int* data) {
  data[blockIdx.x] = blockIdx.x + 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1u);
    while (*(volatile unsigned*)counter < gridDim.x) {
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int s = 0;
    for (int i = 0; i < gridDim.x; ++i) s += ((volatile int*)data)[i];
    data[gridDim.x + blockIdx.x] = s;
  }
}

extern "C" __global__ void hello(int n) {
  if (threadIdx.x < n) printf("thread %d of %s: %.2f\n", threadIdx.x, "block", threadIdx.x * 0.5);
}

// Deliberate bugs.
extern "C" __global__ void bug_oob(float* x, int n) { x[threadIdx.x + n] = 1; }
extern "C" __global__ void bug_uninit(float* x) {
  __shared__ float s[64];
  if (threadIdx.x < 16) s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void bug_deadlock(int* x) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");
  x[threadIdx.x] = 1;
}
extern "C" __global__ void bug_misaligned(char* x) { *(int*)(x + 2) = 5; }
extern "C" __global__ void bug_smem_oob(int* x, int i) {
  extern __shared__ int dyn[];
  dyn[i] = 3;
  x[0] = dyn[i];
}

// A missing barrier between the write and the read of another warp's value.
extern "C" __global__ void bug_race(int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  if (blockIdx.y) __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
}

// Two devices hand a value to each other through peer memory.
extern "C" __global__ void exchange(int* mine, int* peer, int rank, int* out) {
  if (threadIdx.x == 0) {
    peer[1] = 100 + rank;
    __threadfence_system();
    asm volatile("st.release.sys.global.s32 [%0], 1;" ::"l"(peer) : "memory");
    int ready = 0;
    while (!ready) asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(ready) : "l"(mine) : "memory");
    out[0] = mine[1];
  }
}

// Lane 0 reads what the other lanes of its warp wrote, without __syncwarp.
extern "C" __global__ void bug_no_syncwarp(int* out, int fixed) {
  __shared__ volatile int s[32];
  s[threadIdx.x] = threadIdx.x;
  if (fixed) __syncwarp();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < 32; ++i) sum += s[i];
    out[0] = sum;
  }
}
