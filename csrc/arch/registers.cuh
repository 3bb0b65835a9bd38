// Registers that a warpgroup may use, one PTX instruction per function. All four warps call it; a growing warpgroup
// waits until others of the block have given enough back.
#pragma once

namespace hunyuan_kernels::arch {

template <int kRegisters>
__device__ __forceinline__ void shrink_to_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow_to_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace hunyuan_kernels::arch
