// AArch64 with BF16 dot products, BFDOT (Neoverse V1, N2 and V2, Apple M2, and newer).
#define HK_ISA neon_bf16
#define HK_VECTOR_FLOATS 4
#define HK_BF16_DOT
#include <arm_neon.h>

#include "cpu/isa/all.inl"
