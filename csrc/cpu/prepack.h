// Weights laid out once in the order in which the CPU's GEMMs read them: see isa/gemm.h.
#pragma once
#include "cpu/grouped_gemm.h"

namespace hunyuan_kernels::cpu {

// k that share a 32-bit word.
inline int64_t packed_word(DType dtype) { return 4 / element_size(dtype); }

// packed[E][N / 16][K / word][16][word] from weights with contiguous rows; N is a multiple of 16, K and the strides of
// the word.
void prepack(const Microkernels& microkernels, const ThreadPool& pool, const ExpertWeights& b, void* packed);

}  // namespace hunyuan_kernels::cpu
