// Microkernels of the probes: see ceiling.inl.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::cpu {

struct CeilingKernels {
  // Multiply-adds on registers alone: fp32, and bf16 dot products where the set has them (else null). Each returns a
  // sum of its products, and `..._flops` says what one step counts.
  float (*multiply_float)(int64_t steps);
  int64_t multiply_float_flops;
  float (*multiply_bfloat16)(int64_t steps);
  int64_t multiply_bfloat16_flops;
  // Reads every byte once; the result depends on all. `bytes` is a multiple of 1024.
  uint32_t (*read)(const void* from, int64_t bytes);
  // Copies past the caches where the set has such stores; `to` is aligned to 64 bytes, `bytes` a multiple of 1024.
  void (*copy)(const void* from, void* to, int64_t bytes);
};

}  // namespace hunyuan_kernels::cpu
