#include "simulator/mbarrier.h"

#include <algorithm>

#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {

MBarrierRef mbarrier_at(Warp& warp, const Instr& instr, int lane, uint64_t address, bool cluster) {
  if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
  uint32_t offset;
  Cta& owner = shared_owner(warp, instr, lane, address, cluster, offset);
  if (offset & 7) warp.fail(instr, lane, format("mbarrier address 0x%x is not 8-byte aligned", offset));
  auto it = owner.shared.mbarriers.find(offset);
  if (it == owner.shared.mbarriers.end())
    warp.fail(instr, lane,
              format("no initialized mbarrier at shared address 0x%x of block rank %u (never initialized, invalidated, "
                     "or overwritten)",
                     offset, owner.rank));
  const MBarrier& b = it->second;
  if (warp.launch->options.check_races && !race_ordered(warp, b.init_id, b.init_clock) &&
      !race_ordered(warp, b.fence_id, b.fence_clock))
    warp.fail(instr, lane,
              format("mbarrier 0x%x of block rank %u: its initialization at PTX line %u by %s is not ordered before "
                     "this use",
                     offset, owner.rank, b.init_line, warp.launch->warp_names[b.init_id].c_str()));
  return {&it->second, &owner, offset};
}

namespace {

constexpr int64_t kTxLimit = (1 << 20) - 1;

void note_use(Warp& warp, const Instr& instr, MBarrier& b, bool wait) {
  if (!warp.launch->options.check_races) return;
  const MBarrier::Use use{warp.clocks.id, warp.clocks.time, instr.line, wait, b.phase};
  for (MBarrier::Use& earlier : b.uses)
    if (earlier.warp == use.warp && earlier.wait == wait) {
      earlier = use;
      return;
    }
  b.uses.push_back(use);
}

void complete_phase_if_done(Warp& warp, MBarrier& b) {
  warp.launch->progress();
  if (b.pending != 0 || b.tx != 0) return;
  ++b.phase;
  b.pending = b.expected;
  b.completed = std::move(b.arrivals);
  b.arrivals.clear();
}

}  // namespace

void mbarrier_waited(Warp& warp, const Instr& instr, MBarrier& b) {
  b.waited = std::max(b.waited, b.phase);
  note_use(warp, instr, b, true);
  race_acquire(warp, b.completed);
}

void mbarrier_end(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, const char* what) {
  const MBarrier& b = *ref.barrier;
  if (b.tx != 0)
    warp.fail(instr, lane,
              format("mbarrier 0x%x %s in the middle of phase %llu (pending %lld, tx %lld)", ref.offset, what,
                     (unsigned long long)b.phase, (long long)b.pending, (long long)b.tx));
  if (!warp.launch->options.check_races) return;
  auto ordered = [&](const MBarrier::Use& use) { return race_ordered(warp, use.warp, use.clock); };
  uint64_t complete = 0;  // phases before it: known here
  for (const MBarrier::Use& use : b.uses)
    if (use.wait && ordered(use)) complete = std::max(complete, use.phase);
  for (const MBarrier::Use& use : b.uses)
    if (!ordered(use) && (use.wait || use.phase >= complete))
      warp.fail(instr, lane,
                format("mbarrier 0x%x %s, which is not ordered after the %s at PTX line %u by %s", ref.offset, what,
                       use.wait ? "wait" : "arrival", use.line, warp.launch->warp_names[use.warp].c_str()));
  if (b.copied > complete)
    warp.fail(instr, lane,
              format("mbarrier 0x%x %s, which is not ordered after phase %llu, in which an asynchronous copy issued at "
                     "PTX line %u completes on it",
                     ref.offset, what, (unsigned long long)b.copied - 1, b.copy.instr->line));
}

void mbarrier_exit(const Cta& cta) {
  if (!cta.launch->options.check_async_hazards) return;
  for (const auto& [offset, b] : cta.shared.mbarriers)
    if (b.copied > b.waited)
      b.copy.warp->fail(*b.copy.instr, b.copy.lane,
                        format("block rank %u exits without a wait for phase %llu of mbarrier 0x%x, on which this "
                               "asynchronous copy completes: the block may exit before it is in its shared memory",
                               cta.rank, (unsigned long long)b.copied - 1, offset));
}

void mbarrier_arrive(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t count, bool relaxed) {
  MBarrier& b = *ref.barrier;
  if (count > b.pending)
    warp.fail(instr, lane,
              format("mbarrier 0x%x: arrive of %lld exceeds the pending count %lld (phase %llu)", ref.offset,
                     (long long)count, (long long)b.pending, (unsigned long long)b.phase));
  note_use(warp, instr, b, false);
  b.pending -= count;
  race_release(warp, b.arrivals, relaxed);
  complete_phase_if_done(warp, b);
}

void mbarrier_expect_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes) {
  MBarrier& b = *ref.barrier;
  b.tx += bytes;
  if (b.tx > kTxLimit)
    warp.fail(instr, lane, format("mbarrier 0x%x: transaction count overflow (%lld)", ref.offset, (long long)b.tx));
  warp.launch->progress();
}

void mbarrier_complete_tx(Warp& warp, const Instr& instr, int lane, MBarrierRef ref, int64_t bytes) {
  MBarrier& b = *ref.barrier;
  if (warp.launch->options.check_proxy_fence && b.init_warp &&
      b.init_warp->init_fence_epoch[b.init_lane] == b.init_fence)
    warp.fail(instr, lane,
              format("an asynchronous copy completes on mbarrier 0x%x, whose initialization was not followed by "
                     "fence.mbarrier_init or fence.proxy.async",
                     ref.offset));
  b.copied = b.phase + 1;
  b.copy = {&warp, &instr, lane};
  b.tx -= bytes;
  if (b.tx < -kTxLimit)
    warp.fail(instr, lane, format("mbarrier 0x%x: transaction count underflow (%lld)", ref.offset, (long long)b.tx));
  complete_phase_if_done(warp, b);
}

}  // namespace hunyuan_kernels::simulator
