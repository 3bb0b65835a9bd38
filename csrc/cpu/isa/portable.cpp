// Any CPU: 4 lanes, which every 64-bit baseline (SSE2, NEON) has and a compiler can emulate elsewhere.
#define HK_ISA portable
#define HK_VECTOR_FLOATS 4
#include "cpu/isa/all.inl"
