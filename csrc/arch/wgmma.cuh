// Matrix products of a warpgroup (128 threads), one PTX instruction per function: D[64, N] (+)= A[64, 16] B[N, 16]^T,
// bf16 from shared memory, fp32 sums in registers. e4m3: 32 deep, K-major both, sums of about 14 bits.
//
// A may come from registers: a[i] holds row 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2) at the depths 8 * (i / 2) + 2 *
// (t % 4) (bits 0-15) and the next. They may not be touched before the wait either.
//
// Thread t of the warpgroup holds, in sums[4 * j + i], row 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2) and column
// 8 * j + 2 * (t % 4) + i % 2. Between the issue of a product and the wait for it nothing may touch its sums.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::arch {

// Between any access to registers that products use, and the first of those products.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last kPending committed groups are complete.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction: keeps the compiler from moving accesses to a register across this point.
__device__ __forceinline__ void pin(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void pin(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
__device__ __forceinline__ void pin(uint16_t& value) { asm volatile("" : "+h"(value)::"memory"); }

// How an operand lies in shared memory: depth neighbouring (K-major) or rows of A, columns of B (MN-major).
enum class Major { k = 0, mn = 1 };

// The operands of a product as text: registers %0 ... and their constraints.
#define HK_TEN(tens)                                                                                        \
  "%" #tens "0,%" #tens "1,%" #tens "2,%" #tens "3,%" #tens "4,%" #tens "5,%" #tens "6,%" #tens "7,%" #tens \
  "8,%" #tens "9,"
#define HK_FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HK_SIXTEEN(d, i) HK_FOUR(d, i), HK_FOUR(d, i + 4), HK_FOUR(d, i + 8), HK_FOUR(d, i + 12)
#define HK_SIXTY_FOUR(d, i) HK_SIXTEEN(d, i), HK_SIXTEEN(d, i + 16), HK_SIXTEEN(d, i + 32), HK_SIXTEEN(d, i + 48)

// `accumulate` false: the old sums are not read.
template <Major kA, Major kB>
__device__ __forceinline__ void multiply(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" HK_TEN() HK_TEN(1) HK_TEN(2) HK_TEN(3) HK_TEN(4)
          HK_TEN(5) HK_TEN(6) HK_TEN(7) HK_TEN(8) HK_TEN(9) HK_TEN(10)
              HK_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, p, 1, 1, %131, %132; }"
      : HK_SIXTY_FOUR(d, 0), HK_SIXTY_FOUR(d, 64)
      : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}
template <Major kA, Major kB>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HK_TEN() HK_TEN(1) HK_TEN(2) HK_TEN(3) HK_TEN(4)
          HK_TEN(5) "%60,%61,%62,%63}, %64, %65, p, 1, 1, %67, %68; }"
      : HK_SIXTY_FOUR(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}
template <Major kA, Major kB>
__device__ __forceinline__ void multiply(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" HK_TEN() HK_TEN(1)
          HK_TEN(2) "%30,%31}, %32, %33, p, 1, 1, %35, %36; }"
      : HK_SIXTEEN(d, 0), HK_SIXTEEN(d, 16)
      : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}
template <Major kA, Major kB>
__device__ __forceinline__ void multiply(float (&d)[8], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1, %11, "
      "%12; }"
      : HK_FOUR(d, 0), HK_FOUR(d, 4)
      : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}
__device__ __forceinline__ void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" HK_TEN() HK_TEN(1)
          HK_TEN(2) "%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
      : HK_SIXTEEN(d, 0), HK_SIXTEEN(d, 16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(accumulate)));
}
__device__ __forceinline__ void multiply(float (&d)[8], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, "
      "0; }"
      : HK_FOUR(d, 0), HK_FOUR(d, 4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(accumulate)));
}
__device__ __forceinline__ void multiply_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" HK_TEN() HK_TEN(1) HK_TEN(2) HK_TEN(3) HK_TEN(4)
          HK_TEN(5) "%60,%61,%62,%63}, %64, %65, p, 1, 1; }"
      : HK_SIXTY_FOUR(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)));
}
#undef HK_TEN
#undef HK_FOUR
#undef HK_SIXTEEN
#undef HK_SIXTY_FOUR

}  // namespace hunyuan_kernels::arch
