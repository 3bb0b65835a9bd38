// Priority schedules: beside the random one, some part of the machine stands still for whole phases.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

#include "simulator/options.h"

namespace hunyuan_kernels::simulator {

class Warp;
struct Cta;

class Scheduler {
 public:
  explicit Scheduler(Schedule schedule) : schedule_(schedule) {}

  bool holds(const Warp& warp) const;
  bool holds_copies() const { return copies_; }
  // Starts another phase when the present one is over: `issued` warp instructions so far, `idle` of them since the last
  // visible effect.
  void advance(const std::vector<Warp*>& warps, uint64_t issued, uint64_t idle, std::mt19937_64& random);
  // Nothing else can go on. Ends the phase; false when nothing was held.
  bool release();
  void forget(const Cta& cta);  // a block has left

 private:
  Schedule schedule_;
  const Cta* cta_ = nullptr;  // whose warps stand still
  uint32_t first_warp_ = 0, end_warp_ = 0;
  bool copies_ = false;
  uint64_t end_ = 0;
};

}  // namespace hunyuan_kernels::simulator
