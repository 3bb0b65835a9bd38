// One table per instruction set in this build; microkernels.cpp chooses.
#pragma once
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {

extern const Microkernels portable_microkernels;
#if defined(__x86_64__)
extern const Microkernels avx2_microkernels;
extern const Microkernels avx512_microkernels;
extern const Microkernels avx512_bf16_microkernels;
#elif defined(__aarch64__)
extern const Microkernels neon_microkernels;
extern const Microkernels neon_bf16_microkernels;
#endif

}  // namespace hunyuan_kernels::cpu
