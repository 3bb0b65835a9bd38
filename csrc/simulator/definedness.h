// Values read from uninitialized shared memory are followed through registers and shared memory to their first use: an
// address, a branch, a store outside of shared memory, an operand of an instruction that acts on more than registers.
//
// The shadow of a register lies behind the register file, at the same offset, and has a nonzero byte (in predicates a
// set bit) for each undefined one. It is exact for copies, selections and shuffles; other arithmetic makes the whole
// result of a lane undefined when any input of the lane is. Registers that were never written count as defined.
//
// All of it costs nothing until a warp reads its first undefined byte (Warp::follows_undefined).
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

// Before the instruction executes: enters what becomes of its undefined inputs, or raises when they are used.
void follow_undefined(Warp& warp, const Instr& instr, uint32_t mask);
// The lanes' guard predicate decides what they execute.
void check_defined_guard(Warp& warp, const Instr& instr, uint32_t lanes);
// Element `at` of a load has just been read from `address` of shared memory, whose bytes are marked in `initialized`.
void load_undefined(Warp& warp, const Instr& instr, int lane, const Operand& reg, uint32_t at, uint32_t bytes,
                    const uint8_t* initialized, uint64_t address);
// Bytes [at, at + bytes) of the lane's register have been stored: to shared memory with marks `initialized`, or, when
// that is null, to where undefined values must not go.
void store_undefined(Warp& warp, const Instr& instr, int lane, const Operand& reg, uint32_t at, uint32_t bytes,
                     uint8_t* initialized);

}  // namespace hunyuan_kernels::simulator
