// Probes of what this machine reaches at best, on every thread of the pool and for the instruction set in use: what
// benches hold the ops against.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace hunyuan_kernels::cpu {

// Multiply-adds on registers alone, about `flops` of them; returns how many there were. bfloat16: dot products of
// bf16 pairs, and 0 without running where the instruction set has none. Else float32.
int64_t multiply_at_best(DType dtype, int64_t flops, const ThreadPool& pool);

// Reads `bytes` (a multiple of 1024) once.
void read_at_best(const void* from, int64_t bytes, const ThreadPool& pool);

// Copies `bytes` (a multiple of 1024) to an address that is aligned to 64 bytes.
void copy_at_best(const void* from, void* to, int64_t bytes, const ThreadPool& pool);

}  // namespace hunyuan_kernels::cpu
