// Loops over the active lanes of a warp; the full-mask case vectorizes, with the widest vectors of the machine.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

template <typename F>
inline __attribute__((always_inline)) void for_lanes(uint32_t mask, F&& f) {
  if (mask == kFullMask) {
#pragma GCC ivdep
    for (int lane = 0; lane < (int)kWarpSize; ++lane) f(lane);
  } else {
    for (uint32_t m = mask; m; m &= m - 1) f(first_lane(m));
  }
}

template <typename T, typename Op>
ExecStatus exec1(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  for_lanes(mask, [&](int lane) { d[lane] = Op::apply(a[lane]); });
  return ExecStatus::Next;
}
template <typename T, typename Op>
ExecStatus exec2(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  for_lanes(mask, [&](int lane) { d[lane] = Op::apply(a[lane], b[lane]); });
  return ExecStatus::Next;
}
template <typename T, typename Op>
ExecStatus exec3(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]), *c = warp.ptr<T>(instr.op[3]);
  for_lanes(mask, [&](int lane) { d[lane] = Op::apply(a[lane], b[lane], c[lane]); });
  return ExecStatus::Next;
}

// The simulator is built for the baseline processor. lane_parallel<&function>() is the function, compiled once more
// for AVX2 and AVX-512 where the compiler can, in the variant that suits the machine. Everything inline that the
// function calls becomes part of the variant (flatten), so no function compiled for a higher instruction set has
// another's name.
#if defined(__x86_64__) && defined(__GNUC__)
enum class VectorLevel { Baseline, Avx2, Avx512 };

inline VectorLevel vector_level() {
  static const VectorLevel level = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return VectorLevel::Baseline;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? VectorLevel::Avx512
               : VectorLevel::Avx2;
  }();
  return level;
}

#define HUNYUAN_KERNELS_AVX2 __attribute__((target("avx2,fma"), flatten))
#if defined(__clang__)
#define HUNYUAN_KERNELS_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"), flatten))
#else
#define HUNYUAN_KERNELS_AVX512 \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"), flatten))
#endif

template <auto function>
struct Variants;
template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Variants<function> {
  HUNYUAN_KERNELS_AVX2 static Result avx2(Arguments... arguments) { return function(arguments...); }
  HUNYUAN_KERNELS_AVX512 static Result avx512(Arguments... arguments) { return function(arguments...); }
};

template <auto function>
auto lane_parallel() {
  switch (vector_level()) {
    case VectorLevel::Avx512: return &Variants<function>::avx512;
    case VectorLevel::Avx2: return &Variants<function>::avx2;
    default: return function;
  }
}
#else
template <auto function>
auto lane_parallel() {
  return function;
}
#endif

}  // namespace hunyuan_kernels::simulator
