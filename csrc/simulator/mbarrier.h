// mbarrier objects: lookup and phase transitions.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

struct MBarrierRef {
  MBarrier* barrier;
  Cta* owner;
  uint32_t offset;
};

// Finds an initialized mbarrier; `address` is shared (rank in the upper bits) or generic.
MBarrierRef mbarrier_at(Warp& warp, const Instr& instr, int lane, uint64_t address, bool cluster);
void mbarrier_arrive(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t count, bool relaxed = false);
void mbarrier_expect_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes);
void mbarrier_complete_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes);

}  // namespace hunyuan_kernels::simulator
