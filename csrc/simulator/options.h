// Settings of a simulated launch: what is checked and how work is scheduled.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace hunyuan_kernels::simulator {

// Which part of the machine stands still for whole phases.
enum class Schedule : uint8_t {
  Random,      // none: warps take turns at random
  HoldWarps,   // four warps of a block, or one where a block has no more than four
  HoldBlock,   // one block
  HoldCopies,  // the asynchronous engine: copies and wgmma finish when nothing else can go on
};

struct Options {
  uint64_t seed = 0;
  Schedule schedule = Schedule::Random;
  uint32_t num_sms = 8;  // blocks that are resident at once
  bool check_uninitialized_shared = true;
  bool check_proxy_fence = true;
  bool check_async_hazards = true;    // tiles overwritten or read while an asynchronous operation is in flight
  bool check_races = false;           // happens-before race detection
  bool split_warps = false;           // let lanes of a warp run apart at random between .sync instructions
  uint32_t fp8_accumulator_bits = 0;  // 0: exact f32
  uint64_t max_instructions = 0;      // warp instructions; 0: unlimited
  uint64_t livelock_instructions = 20'000'000;
  uint32_t async_latency = 64;  // upper bound of the random latency of asynchronous work, in scheduling steps
  uint32_t max_shared_bytes = 227 * 1024;
  uint32_t capability = 90;  // compute capability that host code is told, 10 * major + minor
  bool eager_async = false;  // complete asynchronous work immediately
  // A launch that may overlap the one before it, with none enqueued, overlaps one that touches all memory.
  bool assume_predecessor = false;
};

}  // namespace hunyuan_kernels::simulator
