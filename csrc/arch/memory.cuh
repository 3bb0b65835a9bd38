// Global memory, one PTX instruction per function.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::arch {

struct alignas(16) Words4 {
  uint32_t word[4];
};

// 16 bytes that no kernel writes while this one runs; not kept in L1, because nobody reads them again.
__device__ __forceinline__ Words4 load_streaming(const void* address) {
  Words4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address));
  return v;
}

// 16 bytes in one access: of a plain assignment the compiler may make four.
__device__ __forceinline__ void store(void* address, const Words4& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(address), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

// Sees what an earlier kernel of a programmatic dependent launch wrote before wait_for_previous_launch().
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

}  // namespace hunyuan_kernels::arch
