// Loops over the active lanes of a warp; the full-mask case vectorizes.
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

}  // namespace hunyuan_kernels::simulator
