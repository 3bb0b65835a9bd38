// Common parts of the asynchronous copies: groups and completion bookkeeping.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

// A block whose shared memory an operation uses; keeps the block alive until released.
void hold_cta(Cta& cta);
void release_cta(Cta& cta);
// The same for an operation that writes the block's shared memory, which the block has to wait for.
void hold_incoming(Cta& cta, Warp& warp, const Instr& instr, int lane);
void release_incoming(Cta& cta);
// Marks [offset, offset+bytes) as read by `p` until a covering wait_group.
void hold_source(PendingCopy& p, const Instr& instr, Cta& owner, uint32_t offset, uint32_t bytes);
std::shared_ptr<PendingCopy> add_pending(std::vector<std::shared_ptr<PendingCopy>>& list, Warp& warp, uint32_t mask,
                                         const uint32_t* groups);
// True when no operation of the lanes in `mask` older than the newest `keep` groups is unfinished.
bool groups_done(std::vector<std::shared_ptr<PendingCopy>>& list, Warp& warp, uint32_t mask, const uint32_t* groups,
                 uint32_t keep, bool read_only);

}  // namespace hunyuan_kernels::simulator
