// AArch64: NEON is part of the baseline.
#define HK_ISA neon
#define HK_VECTOR_FLOATS 4
#include <arm_neon.h>

#include "cpu/isa/all.inl"
