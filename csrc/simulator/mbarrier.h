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
// A thread of the block has seen that the phases before the current one are complete.
void mbarrier_waited(Warp& warp, const Instr& instr, MBarrier& barrier);
// The object is to be invalidated or initialized again: nobody may use it any more, nor bytes be on their way to it.
void mbarrier_end(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, const char* what);
// The block has exited: what asynchronous work wrote to it has been waited for.
void mbarrier_exit(const Cta& cta);
void mbarrier_arrive(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t count, bool relaxed = false);
void mbarrier_expect_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes);
void mbarrier_complete_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes);

}  // namespace hunyuan_kernels::simulator
