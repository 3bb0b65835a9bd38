// AVX-512 F, CD, BW, DQ, VL (Skylake server and newer).
#define HK_ISA avx512
#define HK_VECTOR_FLOATS 16
#include <immintrin.h>

#include "cpu/isa/all.inl"
