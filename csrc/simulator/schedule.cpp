#include "simulator/schedule.h"

#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {
namespace {

constexpr uint32_t kWarpsPerGroup = 4;
constexpr uint64_t kPatience = 20'000;  // instructions without visible effect: the others may spin on what is held

}  // namespace

bool Scheduler::holds(const Warp& warp) const {
  return warp.cta == cta_ && warp.index >= first_warp_ && warp.index < end_warp_;
}

void Scheduler::advance(const std::vector<Warp*>& warps, uint64_t issued, uint64_t idle, std::mt19937_64& random) {
  if (schedule_ == Schedule::Random || (issued < end_ && idle < kPatience)) return;
  release();
  // From a few instructions to longer than most kernels run.
  end_ = issued + (uint64_t{64} << random() % 15);
  if (random() % 8 == 0) return;  // a phase in which everything runs
  const Warp& warp = *warps[random() % warps.size()];
  if (schedule_ == Schedule::HoldCopies) {
    copies_ = true;
  } else {
    cta_ = warp.cta;
    const bool group = schedule_ == Schedule::HoldWarps;
    first_warp_ = group ? warp.index / kWarpsPerGroup * kWarpsPerGroup : 0;
    end_warp_ = group ? first_warp_ + kWarpsPerGroup : static_cast<uint32_t>(cta_->warps.size());
    // In small blocks a single warp.
    if (group && cta_->warps.size() <= kWarpsPerGroup) {
      first_warp_ = warp.index;
      end_warp_ = first_warp_ + 1;
    }
  }
}

bool Scheduler::release() {
  const bool held = cta_ || copies_;
  cta_ = nullptr;
  copies_ = false;
  end_ = 0;
  return held;
}

void Scheduler::forget(const Cta& cta) {
  if (cta_ == &cta) release();
}

}  // namespace hunyuan_kernels::simulator
