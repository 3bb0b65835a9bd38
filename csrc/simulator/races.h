// Optional happens-before race detection on shared and global memory: a vector clock per warp, the last accesses of
// every 4 bytes.
//
// Barriers and mbarriers order what their users did. Strong accesses (volatile, relaxed, acquire, release, atomic)
// order by the rules of the PTX memory model: a release, or a relaxed write after a fence, hands the writer's history
// to whoever reads it by an acquire, or by a relaxed read before a fence. Two strong accesses never race with each
// other.
//
// fence.sc orders more than its own thread's relaxed accesses: two of them are ordered when what is ordered after the
// first was seen by what is ordered before the second. So in the usual way to find the last block (all threads write
// and fence, a barrier, one thread counts by a relaxed atomic, a barrier, all threads fence and read), what was fenced
// and what was seen travel through the barriers.
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
  bool empty() const { return times_.empty(); }

 private:
  std::vector<std::pair<uint32_t, uint32_t>> times_;
};

// What is ordered before something, and of that: what lies before a fence.sc of device scope, and what such fences
// handed to writes that were read since by relaxed reads.
struct History : VectorClock {
  VectorClock fenced, seen;
  void join(const History& other) {
    VectorClock::join(other);
    fenced.join(other.fenced);
    seen.join(other.seen);
  }
  void clear() {
    VectorClock::clear();
    fenced.clear();
    seen.clear();
  }
};

struct RecordedAccess {
  uint32_t warp = 0;  // number within the launch + 1; 0: none
  uint32_t clock = 0;
  uint32_t line = 0;
  uint8_t mask = 0;  // bytes of the granule
  bool write = false;
  bool strong = false;
};

// A few accesses; one of them takes no memory of its own.
class OtherAccesses {
 public:
  bool empty() const { return !first_.warp && !more_; }
  void push(const RecordedAccess& access);  // forgets the oldest beyond a bound
  template <typename Visit>
  void for_each(Visit&& visit) const {
    if (first_.warp) visit(first_);
    if (more_)
      for (const RecordedAccess& access : *more_) visit(access);
  }
  template <typename Condition>
  void erase_if(Condition&& condition) {
    if (first_.warp && condition(first_)) first_ = {};
    if (more_ && std::erase_if(*more_, condition) && more_->empty()) more_.reset();
  }

 private:
  RecordedAccess first_;
  std::unique_ptr<std::vector<RecordedAccess>> more_;
};

// Last accesses of one 4-byte granule. Those that differ in warp or bytes from the latest ones are kept beside them.
struct RaceInfo {
  RecordedAccess write, read;
  OtherAccesses others;
};

// History that a strong write leaves at its address, for readers of the same block and for all others.
struct StrongLocation {
  VectorClock device, block;
  VectorClock fenced;  // History::fenced of its writers
  const Cta* writer_block = nullptr;
};

// A warp's part in race detection.
struct WarpClocks {
  History now;
  VectorClock fenced_device, fenced_block;  // history at the last fence of that scope: what a relaxed write hands on
  VectorClock observed_device, observed_block;  // read by relaxed reads: what the next fence of that scope takes over
  // What fence.mbarrier_init publishes, to relaxed arrivals on the cluster's barrier too: an entry of its own in the
  // clocks, made at the first initialization, whose time counts the fences.
  uint32_t init_id = 0, init_fences = 0;
  std::vector<uint32_t> bulk_ids;  // by lane: the entry of its bulk stores, 0: none
  uint32_t id = 0;                 // number of the warp within the launch
  uint32_t time = 1;               // own entry of `now`
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
void race_release(Warp& warp, History& object, bool relaxed = false);
void race_acquire(Warp& warp, const History& object);
void race_fence(Warp& warp, bool device_scope, bool sequential);
void race_init(Warp& warp);
void race_init_fence(Warp& warp);
// A wgmma reads shared memory until a warp of its warpgroup has waited for its group: the warpgroup has an entry of its
// own in the clocks, whose time counts the groups that were waited for.
void race_wgmma_read(Warp& warp, const Instr& instr, uint32_t offset, uint32_t bytes);
void race_wgmma_wait(Warp& warp, uint32_t groups);
// A bulk store reads shared memory until its thread has waited for its group: each thread that stores has an entry of
// its own in the clocks, whose time counts the groups that were waited for.
void race_bulk_read(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes);
void race_bulk_wait(Warp& warp, int lane, uint32_t groups);
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
