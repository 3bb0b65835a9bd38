// The functions that exist once per instruction set, and how one set of them is chosen.
//
// Each file <isa>.cpp defines vector types in a namespace of its own, includes the <stem>.inl files, which are written
// once against those types, and fills one table. An .inl file must not include headers that define templates or
// non-static inline functions (std or ours): the linker keeps one copy of those, maybe the one with AVX-512 in it.
#pragma once
#include "cpu/isa/ceiling.h"
#include "cpu/isa/dispatch.h"
#include "cpu/isa/gemm.h"
#include "cpu/isa/nf4_gemm.h"
#include "cpu/isa/prepack.h"
#include "cpu/isa/quantize.h"
#include "cpu/isa/routing.h"
#include "cpu/isa/swiglu.h"

namespace hunyuan_kernels::cpu {

struct Microkernels {
  const char* name;  // "portable", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16"
  CeilingKernels ceiling;
  DispatchKernels dispatch;
  GemmKernels gemm;
  Nf4GemmKernels nf4_gemm;
  PrepackKernels prepack;
  QuantizeKernels quantize;
  RoutingKernels routing;
  SwigluKernels swiglu;
};

// The best table that this CPU runs, or the one that this thread forced (tests). HUNYUAN_KERNELS_ISA=<name> in the
// environment, read once, replaces the choice by CPU features (debugging; the name must exist in this build).
const Microkernels& microkernels();

// Forces a table for the calling thread; "" goes back to the choice by CPU features. Raises std::runtime_error when
// this build does not have it or this CPU cannot run it.
void force_instruction_set(const char* name);

// Names of the tables that this CPU can run, best first, separated by commas.
const char* supported_instruction_sets();

}  // namespace hunyuan_kernels::cpu
