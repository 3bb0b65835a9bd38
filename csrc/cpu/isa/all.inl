// The body of every <isa>.cpp: the microkernels of all stems for HK_ISA, with vectors of HK_VECTOR_FLOATS fp32 lanes.
// HK_BF16_DOT is defined where the set multiplies pairs of bf16.
#include <stdint.h>

#include "common/dtype.h"
#include "common/integer_math.h"
#include "common/nf4.h"
#include "cpu/isa/tables.h"

#define HK_PASTE_(a, b) a##b
#define HK_PASTE(a, b) HK_PASTE_(a, b)
#define HK_STRING_(a) #a
#define HK_STRING(a) HK_STRING_(a)

namespace hunyuan_kernels::cpu {
namespace {

// First: the vector types that the others use.
#include "cpu/isa/simd.inl"

// One per stem, sorted; the probes last, which are made of the GEMMs' multiply-adds.
#include "cpu/isa/dispatch.inl"
#include "cpu/isa/gemm.inl"
#include "cpu/isa/prepack.inl"
#include "cpu/isa/quantize.inl"
#include "cpu/isa/routing.inl"
#include "cpu/isa/swiglu.inl"

#include "cpu/isa/ceiling.inl"

}  // namespace

const Microkernels HK_PASTE(HK_ISA, _microkernels) = {
    .name = HK_STRING(HK_ISA),
    .ceiling = ceiling_kernels,
    .dispatch = dispatch_kernels,
    .gemm = gemm_kernels,
    .nf4_gemm = nf4_gemm_kernels,
    .prepack = prepack_kernels,
    .quantize = quantize_kernels,
    .routing = routing_kernels,
    .swiglu = swiglu_kernels,
};

}  // namespace hunyuan_kernels::cpu
