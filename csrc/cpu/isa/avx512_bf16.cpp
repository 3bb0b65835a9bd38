// AVX-512 with VBMI and BF16 dot products (Zen 4, Sapphire Rapids, and newer).
#define HK_ISA avx512_bf16
#define HK_VECTOR_FLOATS 16
#define HK_BF16_DOT
#include <immintrin.h>

#include "cpu/isa/all.inl"
