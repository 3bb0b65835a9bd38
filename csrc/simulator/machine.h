// Run-time state: warps, thread blocks, clusters and the launch that owns them.
#pragma once
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "simulator/counters.h"
#include "simulator/options.h"
#include "simulator/overlap.h"
#include "simulator/program.h"
#include "simulator/races.h"
#include "simulator/schedule.h"

namespace hunyuan_kernels::simulator {

class Launch;
struct Cta;
struct Cluster;

// Windows of the generic address space (global addresses are host addresses).
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kLocalWindow = 0x0200000000000000ull;
constexpr uint64_t kParamWindow = 0x0300000000000000ull;
constexpr uint64_t kWindowMask = 0xff00000000000000ull;
constexpr uint32_t kCtaRankShift = 24;  // shared addresses carry the CTA rank above bit 24

// mbarrier object: the full phase / pending-count / tx-count state machine.
struct MBarrier {
  uint32_t expected = 0;
  int64_t pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;
  const class Warp* init_warp = nullptr;  // who initialized it, and how often that lane had fenced before
  uint32_t init_lane = 0, init_fence = 0;
  // Race detection; of the initialization: number of the warp within the launch, its time, line.
  uint32_t init_id = 0, init_clock = 0, init_line = 0;
  uint32_t fence_id = 0, fence_clock = 0;  // the fence after it, see WarpClocks::init_id
  History arrivals, completed;
  // Phases before `waited` are known to be complete by a wait of a thread of the block; asynchronous work completed
  // bytes of the phases before `copied`, last by `copy`.
  uint64_t waited = 0, copied = 0;
  struct {
    const class Warp* warp;
    const Instr* instr;
    int lane;
  } copy{};
  struct Use {
    uint32_t warp, clock, line;  // number of the warp within the launch
    bool wait;
    uint64_t phase;  // of an arrival; a wait knows that the ones before it are complete
  };
  std::vector<Use> uses;  // race detection: the last wait and the last arrival of each warp
};

struct NamedBarrier {
  uint32_t arrived = 0;
  uint32_t expected = 0;  // 0: the whole block
  uint64_t generation = 0;
  uint32_t popc = 0;
  bool conjunction = true, disjunction = false;
  uint32_t results[3] = {0, 0, 0};  // of the last completed generation
  History arrivals, completed;      // race detection
};

// Shared memory of one block with its shadow state.
struct SharedMemory {
  static constexpr uint32_t kGranule = 4;
  static constexpr uint32_t kTileGranule = 16;
  struct Writer {
    uint32_t thread = 0;
    uint32_t epoch = 0;
  };  // thread: 0 none, else index+1

  uint32_t base = 0;   // first valid address (above the reserved area)
  uint32_t limit = 0;  // end of the valid addresses
  std::vector<uint8_t> data;
  std::vector<uint8_t> initialized;         // per byte
  std::vector<Writer> generic_writer;       // per 4 bytes: last generic-proxy writer
  std::vector<uint8_t> has_generic_writes;  // per 1 KiB: any generic_writer set
  std::vector<uint16_t> async_readers;      // per 16 bytes: in-flight asynchronous reads
  std::vector<uint16_t> async_writers;      // per 16 bytes: in-flight asynchronous writes
  std::vector<uint8_t> mbarrier_mark;       // per 8 bytes: a live mbarrier object
  std::vector<RaceInfo> race;               // per 4 bytes, only with check_races
  std::map<uint32_t, MBarrier> mbarriers;

  void reset(uint32_t bytes, bool races);
};

// Lanes of a warp that share a program counter and a call stack.
struct Fragment {
  uint32_t pc = 0;
  uint32_t mask = 0;
  std::vector<uint32_t> stack;  // return addresses
  bool arrived = false;         // a blocking instruction was entered and is being retried
  bool blocked = false;
  uint64_t token = 0;
};

// One queued wgmma, or a register copy that must happen after an earlier wgmma.
struct WgmmaOp {
  const Instr* instr = nullptr;
  bool is_copy = false;
  bool executed = false;
  uint32_t group = 0;
  uint32_t mask = 0;
  bool scale_d = true;
  std::vector<uint32_t> a_registers;  // snapshot of the A fragment, [register][lane]
  std::vector<uint32_t> chunks;       // 16-byte chunks of shared memory it reads: A (unless in registers), then B
};

// A register that wgmma uses.
struct WgmmaRegister {
  uint16_t accumulating = 0, feeding = 0;        // unfinished wgmma that write it, or read it as part of A
  uint32_t touched_fence = 0, touched_line = 0;  // last other access: after how many wgmma.fence (0: none), and where
  const Instr* user = nullptr;                   // last wgmma that accumulated into it
  uint32_t user_fence = 0;
};

class Warp {
 public:
  Warp() = default;
  Warp(const Warp&) = delete;
  Warp& operator=(const Warp&) = delete;
  Launch* launch = nullptr;
  Cta* cta = nullptr;
  const Program* program = nullptr;
  uint8_t* regs = nullptr;
  uint8_t* local = nullptr;
  uint32_t index = 0;        // within the block
  uint32_t thread_base = 0;  // unique index of lane 0 among resident threads
  uint32_t live_mask = 0;
  std::vector<Fragment> fragments;
  uint32_t current = 0;
  bool done = false;

  uint32_t fence_epoch[kWarpSize] = {};       // per lane: number of proxy fences executed
  uint32_t init_fence_epoch[kWarpSize] = {};  // per lane: fences that publish mbarrier initialization
  WarpClocks clocks;                          // race detection
  const struct Allocation* last_allocation = nullptr;

  // Pending wgmma work (see wgmma.cpp).
  std::deque<std::unique_ptr<WgmmaOp>> wgmma_queue;
  uint32_t wgmma_open_group = 0;
  // Race detection: number of the warpgroup among the warps of the launch, kept by its first warp; 0: none yet.
  uint32_t warpgroup_clock = 0;
  uint32_t wgmma_unfinished = 0;
  std::vector<WgmmaRegister> wgmma_registers;  // by register row; empty until the first is touched
  uint32_t wgmma_fences = 0;

  // Values of uninitialized shared memory (see definedness.h).
  bool follows_undefined = false;
  uint32_t undefined_countdown = 0;
  std::vector<uint32_t> undefined_origin;  // by register row: index into Launch::undefined_reads
  uint8_t* shared_marks = nullptr;         // SharedMemory::initialized of the last access; null when it was not shared

  // Per-thread asynchronous copy groups (see async_copy.cpp).
  uint32_t cp_async_group[kWarpSize] = {};
  uint32_t bulk_group[kWarpSize] = {};
  uint64_t cluster_token[kWarpSize] = {};  // generation of the cluster's barrier that the lane arrived at
  uint32_t cluster_arrived = 0;            // lanes that arrived and did not wait yet

  // Runs up to `budget` instructions; returns how many were issued.
  uint32_t run(uint32_t budget);
  Fragment& frag() { return fragments[current]; }
  template <typename T>
  T* ptr(const Operand& o) const {
    return reinterpret_cast<T*>(o.offset >= 0 ? regs + o.offset
                                              : const_cast<uint8_t*>(program->constants.data()) + ~o.offset);
  }
  uint32_t predicate(const Operand& o) const {
    uint32_t m = *ptr<uint32_t>(o);
    return o.negated ? ~m : m;
  }
  void set_predicate(const Operand& o, uint32_t mask, uint32_t values) {
    uint32_t* p = ptr<uint32_t>(o);
    *p = (*p & ~mask) | (values & mask);
  }
  // Lane value of an operand zero-extended to 64 bits.
  uint64_t value(const Operand& o, int lane) const {
    switch (o.bytes) {
      case 1: return ptr<uint8_t>(o)[lane];
      case 2: return ptr<uint16_t>(o)[lane];
      case 8: return ptr<uint64_t>(o)[lane];
      default: return ptr<uint32_t>(o)[lane];
    }
  }
  void set_value(const Operand& o, int lane, uint64_t v) {
    switch (o.bytes) {
      case 1: ptr<uint8_t>(o)[lane] = (uint8_t)v; break;
      case 2: ptr<uint16_t>(o)[lane] = (uint16_t)v; break;
      case 8: ptr<uint64_t>(o)[lane] = v; break;
      default: ptr<uint32_t>(o)[lane] = (uint32_t)v; break;
    }
  }
  uint64_t address(const AddressMode& a, int lane) const;
  uint8_t* lane_local(int lane) const { return local + size_t(lane) * program->local_bytes; }
  void exit_lanes(uint32_t mask);
  [[noreturn]] void fail(const Instr& instr, int lane, const std::string& what) const;
  std::string where(const Instr& instr, int lane) const;
  std::string state() const;  // what the warp waits for (deadlock report)
  // True when all live lanes of `needed` are in the current fragment.
  bool converged(uint32_t needed) const { return (needed & live_mask & ~fragments[current].mask) == 0; }

 private:
  void select_fragment(bool random);
  void split_randomly();
  void remove_empty_fragments();
};

struct Cta {
  Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  uint32_t id[3];
  uint32_t rank = 0;  // within the cluster
  uint32_t smid = 0;
  uint32_t threads = 0;
  SharedMemory shared;
  NamedBarrier barriers[16];
  std::vector<Warp> warps;
  std::vector<uint8_t*> register_storage;
  std::vector<uint8_t> local_storage;
  uint32_t live_warps = 0;
  uint32_t first_thread = 0;
  bool active = false;
  bool released = false;         // dependent launches need not wait for this block any more
  uint32_t async_in_flight = 0;  // asynchronous operations that still touch this block's shared memory
  uint32_t incoming = 0;         // those of them that write it
  struct {
    Warp* warp;
    const Instr* instr;
    int lane;
  } last_incoming{};
  std::map<uint32_t, RemoteAccess> remote_accesses;  // race detection: the last of each warp of the other blocks
  uint32_t shared_address(uint32_t offset) const { return (rank << kCtaRankShift) | offset; }
  void check_barrier(NamedBarrier& b);
};

struct Cluster {
  std::vector<std::unique_ptr<Cta>> ctas;
  uint32_t id[3];
  uint32_t arrived_lanes = 0;
  uint32_t live_lanes = 0;
  uint64_t generation = 0;
  uint32_t live_ctas = 0;
  History arrivals, completed;  // race detection
  void check_barrier();
};

struct Allocation {
  uint64_t begin, end;
  bool read_only;
  std::string name;
};

// Sorted set of registered global-memory ranges.
class AllocationTable {
 public:
  void add(uint64_t begin, uint64_t bytes, const std::string& name, bool read_only = false);
  void finish();
  const Allocation* find(uint64_t address) const;
  std::string describe(uint64_t address) const;

 private:
  std::vector<Allocation> ranges_;
};

// Work that completes at a later, randomly chosen step.
struct AsyncEvent {
  uint64_t time;
  uint64_t order;
  std::function<void()> action;
  bool operator<(const AsyncEvent& o) const { return time != o.time ? time > o.time : order > o.order; }
};

struct PendingCopy {  // a cp.async or bulk operation that wait_group can wait for
  Warp* warp;
  uint32_t mask;
  uint32_t group[kWarpSize];
  bool read_done = false;
  bool done = false;
  // Shared source of a bulk store: counts as being read until the issuing thread has waited for it.
  Cta* source = nullptr;
  uint32_t offset = 0, bytes = 0;
  const Instr* instr = nullptr;
};

class Launch {
 public:
  Launch(const Program& program, const Options& options, AllocationTable& allocations);
  ~Launch();
  enum class Step { Progress, Stuck, Livelock, LimitReached, Finished };
  void begin();  // starts the first clusters
  Step step();   // one scheduling decision
  // Runs launches interleaved (several devices that share memory); a single one is the usual case.
  static void run_all(const std::vector<Launch*>& launches);

  const Program& program;
  const Options& options;
  AllocationTable& allocations;
  Counters counters;
  std::vector<uint8_t> params;
  uint32_t grid[3], block[3], cluster[3];
  uint32_t shared_bytes = 0;  // static + dynamic
  uint32_t dynamic_shared_bytes = 0;
  uint64_t time = 0;           // scheduling steps
  uint64_t issued = 0;         // warp instructions
  uint64_t last_progress = 0;  // value of `issued` at the last visible effect
  std::mt19937_64 rng;
  std::string output;  // printf text
  // Values of uninitialized shared memory.
  struct UndefinedRead {
    const Warp* warp;
    uint32_t line;
    int lane;
    uint64_t address;
  };
  std::vector<UndefinedRead> undefined_reads;
  std::unordered_map<const Instr*, std::unique_ptr<Instr>> shadow_instrs;  // instructions on shadow registers

  bool watch_global = false;  // accesses of global memory are recorded

  Scheduler scheduler;

  // Programmatic dependent launch.
  std::unique_ptr<Overlap> overlap;  // null: the launch runs alone
  bool predecessor_pending = false;  // Options::assume_predecessor: that launch is not complete
  Launch* prerequisite = nullptr;    // what griddepcontrol.wait waits for
  bool waited = false;               // for its prerequisite: then it cannot be complete before that
  bool complete = false;             // to the launches that wait for it
  uint64_t released_blocks = 0;      // executed griddepcontrol.launch_dependents, or exited
  bool released() const { return released_blocks == uint64_t(grid[0]) * grid[1] * grid[2]; }
  void release_block(Cta& cta);

  // Race detection.
  std::unordered_map<uint64_t, StrongLocation> strong_locations;
  PagedShadow<RaceInfo> global_races;
  std::vector<std::string> warp_names;
  std::string scratch_name;                                  // reused buffer for counter names
  std::vector<std::shared_ptr<PendingCopy>> pending_copies;  // cp.async
  std::vector<std::shared_ptr<PendingCopy>> pending_bulk;    // bulk groups
  uint32_t async_in_flight() const { return (uint32_t)events_.size(); }

  void progress() { last_progress = issued; }
  // Schedules `action`; `extra` delays it further than an earlier event of the same operation.
  void defer(std::function<void()> action, uint64_t not_before = 0);
  // Mostly short, sometimes very long.
  uint64_t random_delay() { return 1 + rng() % (std::max(1u, options.async_latency) * (rng() % 8 == 0 ? 32 : 1)); }

 private:
  std::vector<std::unique_ptr<Cluster>> resident_;
  std::vector<Warp*> active_warps_;
  std::priority_queue<AsyncEvent> events_;
  uint64_t next_cluster_ = 0, total_clusters_ = 0, event_order_ = 0;

  bool start_cluster(Cluster& slot);
  void rebuild_active();
  void retire_block(Cta& cta);
  void run_next_event();
  void check_bulk_sources(const Cta& cta);
  bool run_due_events();
  [[noreturn]] void report_deadlock(const char* kind);
};

}  // namespace hunyuan_kernels::simulator
