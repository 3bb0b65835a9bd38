// Optional happens-before race detection on shared and global memory: a vector clock per warp, the last accesses of
// every 4 bytes.
//
// Barriers and mbarriers order what their users did. Strong accesses (volatile, relaxed, acquire, release, atomic)
// order by the rules of the PTX memory model: a release, or a relaxed write after a fence, hands the writer's history
// to whoever reads it by an acquire, or by a relaxed read before a fence. Two strong accesses never race with each
// other.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace hunyuan_kernels::simulator {

class Launch;
class Warp;
struct Cta;
struct Instr;

// What is known of the time of each warp of the launch, sorted by warp. Warps that were never heard of have no entry:
// a block that does not communicate knows its own warps only, however large the grid is.
class VectorClock {
 public:
  uint32_t of(uint32_t warp) const {
    auto it = std::lower_bound(times_.begin(), times_.end(), std::make_pair(warp, 0u));
    return it != times_.end() && it->first == warp ? it->second : 0;
  }
  void raise(uint32_t warp, uint32_t time);
  void join(const VectorClock& other);
  void clear() { times_.clear(); }

 private:
  std::vector<std::pair<uint32_t, uint32_t>> times_;
};

struct RecordedAccess {
  uint32_t warp = 0;  // number within the launch + 1; 0: none
  uint32_t clock = 0;
  uint32_t line = 0;
  uint8_t mask = 0;  // bytes of the granule
  bool write = false;
  bool strong = false;
};

// Last accesses of one 4-byte granule. Those that differ in warp or bytes from the latest ones are kept beside them.
struct RaceInfo {
  RecordedAccess write, read;
  std::unique_ptr<std::vector<RecordedAccess>> others;
};

// History that a strong write leaves at its address, for readers of the same block and for all others.
struct StrongLocation {
  VectorClock device, block;
  const Cta* writer_block = nullptr;
};

// A warp's part in race detection.
struct WarpClocks {
  VectorClock now;
  VectorClock fenced_device, fenced_block;  // history at the last fence of that scope: what a relaxed write hands on
  VectorClock observed_device, observed_block;  // read by relaxed reads: what the next fence of that scope takes over
  // What fence.mbarrier_init publishes, to relaxed arrivals on the cluster's barrier too: an entry of its own in the
  // clocks, made at the first initialization, whose time counts the fences.
  uint32_t init_id = 0, init_fences = 0;
  uint32_t id = 0;    // number of the warp within the launch
  uint32_t time = 1;  // own entry of `now`
};

// A remote access to a block's shared memory, which the block has to outlive.
struct RemoteAccess {
  Warp* warp = nullptr;
  const Instr* instr = nullptr;
  int lane = 0;
  uint32_t clock = 0;
};

void race_start(Warp& warp);
// Release: the warp's clock flows into a synchronization object; acquire: back into a warp. A relaxed release hands on
// only what was fenced before.
void race_release(Warp& warp, VectorClock& object, bool relaxed = false);
void race_acquire(Warp& warp, const VectorClock& object);
void race_fence(Warp& warp, bool device_scope);
void race_init(Warp& warp);
void race_init_fence(Warp& warp);
// A wgmma reads shared memory until a warp of its warpgroup has waited for its group: the warpgroup has an entry of its
// own in the clocks, whose time counts the groups that were waited for.
void race_wgmma_read(Warp& warp, const Instr& instr, uint32_t offset, uint32_t bytes);
void race_wgmma_wait(Warp& warp, uint32_t groups);
// Whether what a warp did at its time `clock` is known to lie before what this warp does now.
bool race_ordered(const Warp& warp, uint32_t other, uint32_t clock);
// Checks and records an access.
void race_access(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes, bool write);
void race_global(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write);
// An asynchronous copy issued by the warp will overwrite the range.
void race_async_write(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes);
// The warp touches shared memory of another block of its cluster, which must not exit before.
void race_remote(Warp& warp, const Instr& instr, int lane, Cta& owner);
void race_exit(Cta& cta);

}  // namespace hunyuan_kernels::simulator
