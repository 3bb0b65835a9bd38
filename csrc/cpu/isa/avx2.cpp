// AVX2 with FMA and F16C (Haswell, Zen, and newer).
#define HK_ISA avx2
#define HK_VECTOR_FLOATS 8
#include <immintrin.h>

#include "cpu/isa/all.inl"
