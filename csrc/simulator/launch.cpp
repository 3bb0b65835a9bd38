// Scheduling of clusters, blocks and warps; asynchronous event queue; deadlock detection.
#include <algorithm>
#include <cfenv>
#include <chrono>
#include <cstdlib>

#include "simulator/machine.h"
#include "simulator/mbarrier.h"
#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {

void Cta::check_barrier(NamedBarrier& b) {
  uint32_t needed = b.expected ? b.expected : live_warps * kWarpSize;
  if (b.arrived < needed) return;
  b.results[0] = b.popc;
  b.results[1] = b.conjunction;
  b.results[2] = b.disjunction;
  b.popc = 0;
  b.conjunction = true;
  b.disjunction = false;
  b.arrived = 0;
  b.expected = 0;
  ++b.generation;
  b.completed = std::move(b.arrivals);
  b.arrivals.clear();
  launch->progress();
}

void Cluster::check_barrier() {
  if (arrived_lanes == 0 || arrived_lanes < live_lanes) return;
  arrived_lanes = 0;
  ++generation;
  completed = std::move(arrivals);
  arrivals.clear();
}

Launch::Launch(const Program& program, const Options& options, AllocationTable& allocations)
    : program(program),
      options(options),
      allocations(allocations),
      rng(options.seed * 0x9e3779b97f4a7c15ull + 12345),
      scheduler(options.schedule) {
  watch_global = options.check_races;
  counters.issued.resize(program.code.size());
  counters.lanes.resize(program.code.size());
}

Launch::~Launch() {
  for (auto& cluster : resident_)
    for (auto& cta : cluster->ctas)
      for (auto* p : cta->register_storage) free(p);
}

void Launch::defer(std::function<void()> action, uint64_t not_before) {
  uint64_t at = std::max(time, not_before) + (options.eager_async ? 0 : random_delay());
  events_.push({at, event_order_++, std::move(action)});
  if (options.eager_async) run_due_events();
}

bool Launch::run_due_events() {
  bool any = false;
  while (!events_.empty() && events_.top().time <= time) {
    auto action = events_.top().action;
    events_.pop();
    action();
    any = true;
    progress();
  }
  return any;
}

bool Launch::start_cluster(Cluster& slot) {
  if (next_cluster_ >= total_clusters_) return false;
  uint64_t n = next_cluster_++;
  uint32_t per_axis[3] = {grid[0] / cluster[0], grid[1] / cluster[1], grid[2] / cluster[2]};
  slot.id[0] = n % per_axis[0];
  slot.id[1] = n / per_axis[0] % per_axis[1];
  slot.id[2] = n / (uint64_t(per_axis[0]) * per_axis[1]);
  const uint32_t threads = block[0] * block[1] * block[2];
  const uint32_t warps_per_cta = (threads + kWarpSize - 1) / kWarpSize;
  slot.arrived_lanes = 0;
  slot.generation = 0;
  slot.live_ctas = (uint32_t)slot.ctas.size();
  slot.live_lanes = threads * (uint32_t)slot.ctas.size();
  for (uint32_t r = 0; r < slot.ctas.size(); ++r) {
    Cta& cta = *slot.ctas[r];
    uint32_t within[3] = {r % cluster[0], r / cluster[0] % cluster[1], r / (cluster[0] * cluster[1])};
    for (int i = 0; i < 3; ++i) cta.id[i] = slot.id[i] * cluster[i] + within[i];
    cta.launch = this;
    cta.cluster = &slot;
    cta.rank = r;
    cta.threads = threads;
    cta.live_warps = warps_per_cta;
    cta.active = true;
    cta.shared.reset(shared_bytes, options.check_races);
    for (auto& b : cta.barriers) b = NamedBarrier{};
    cta.released = false;
    cta.incoming = 0;
    cta.remote_accesses.clear();
    for (auto& warp : cta.warps)
      if (warp.follows_undefined) memset(warp.regs + program.register_bytes, 0, program.register_bytes);
    cta.warps = std::vector<Warp>(warps_per_cta);
    // Registers and their shadows (definedness.h); calloc leaves untouched pages unmapped.
    if (cta.register_storage.empty())
      for (uint32_t i = 0; i < warps_per_cta; ++i)
        cta.register_storage.push_back((uint8_t*)calloc(2 * program.register_bytes + 64, 1));
    cta.local_storage.resize(size_t(warps_per_cta) * kWarpSize * program.local_bytes);
    ++counters.blocks;
    for (uint32_t i = 0; i < warps_per_cta; ++i) {
      Warp& warp = cta.warps[i];
      warp.launch = this;
      warp.cta = &cta;
      warp.program = &program;
      warp.regs = (uint8_t*)(((uintptr_t)cta.register_storage[i] + 63) & ~uintptr_t(63));
      warp.local = cta.local_storage.data() + size_t(i) * kWarpSize * program.local_bytes;
      warp.index = i;
      warp.thread_base = cta.first_thread + i * kWarpSize;
      uint32_t lanes = std::min(kWarpSize, threads - i * kWarpSize);
      warp.live_mask = lanes == kWarpSize ? kFullMask : (1u << lanes) - 1;
      warp.fragments.resize(1);
      warp.fragments[0].mask = warp.live_mask;
      race_start(warp);
      ++counters.warps;
    }
  }
  return true;
}

void Launch::run_next_event() {
  if (events_.empty()) return;
  time = std::max(time, events_.top().time);
  auto action = events_.top().action;
  events_.pop();
  action();
  progress();
}

void Launch::release_block(Cta& cta) {
  if (cta.released) return;
  cta.released = true;
  ++released_blocks;
  progress();
}

// All warps of the block have exited.
void Launch::retire_block(Cta& cta) {
  if (cta.incoming && options.check_async_hazards)
    cta.last_incoming.warp->fail(*cta.last_incoming.instr, cta.last_incoming.lane,
                                 format("block rank %u exits while an asynchronous copy into its shared memory is in "
                                        "flight",
                                        cta.rank));
  while (cta.async_in_flight && !events_.empty()) run_next_event();  // the block stays until they are done
  check_bulk_sources(cta);
  mbarrier_exit(cta);
  race_exit(cta);
  release_block(cta);
  scheduler.forget(cta);
  cta.active = false;
  if (--cta.cluster->live_ctas == 0) start_cluster(*cta.cluster);
}

// The block must stay until the threads that stored its shared memory know that it has been read.
void Launch::check_bulk_sources(const Cta& cta) {
  for (auto& p : pending_bulk) {
    if (p->source != &cta) continue;
    if (options.check_async_hazards)
      p->warp->fail(*p->instr, first_lane(p->mask),
                    format("block rank %u exits before cp.async.bulk.wait_group for a bulk store of its shared memory",
                           cta.rank));
    p->source = nullptr;
  }
}

void Launch::rebuild_active() {
  active_warps_.clear();
  for (auto& cluster : resident_)
    for (auto& cta : cluster->ctas)
      if (cta->active)
        for (auto& warp : cta->warps)
          if (!warp.done) active_warps_.push_back(&warp);
}

void Launch::report_deadlock(const char* kind) {
  std::string s = format("%s in kernel %s after %llu warp instructions; waiting:\n", kind, program.kernel_name.c_str(),
                         (unsigned long long)issued);
  int shown = 0;
  for (Warp* warp : active_warps_) {
    s += warp->state();
    if (++shown == 64) {
      s += format("  ... and %zu more warps\n", active_warps_.size() - shown);
      break;
    }
  }
  throw SimError(s);
}

void Launch::begin() {
  const uint32_t ctas_per_cluster = cluster[0] * cluster[1] * cluster[2];
  total_clusters_ = uint64_t(grid[0] / cluster[0]) * (grid[1] / cluster[1]) * (grid[2] / cluster[2]);
  const uint64_t slots = std::min<uint64_t>(total_clusters_, std::max(1u, options.num_sms / ctas_per_cluster));
  uint32_t thread = 0;
  const uint32_t threads = (block[0] * block[1] * block[2] + kWarpSize - 1) / kWarpSize * kWarpSize;
  for (uint64_t i = 0; i < slots; ++i) {
    resident_.push_back(std::make_unique<Cluster>());
    for (uint32_t r = 0; r < ctas_per_cluster; ++r) {
      auto cta = std::make_unique<Cta>();
      cta->smid = (uint32_t)(i * ctas_per_cluster + r);
      cta->first_thread = thread;
      thread += threads;
      resident_.back()->ctas.push_back(std::move(cta));
    }
    start_cluster(*resident_.back());
  }
  rebuild_active();
}

Launch::Step Launch::step() {
  if (active_warps_.empty()) {
    while (!events_.empty()) {
      time = events_.top().time;
      run_due_events();
    }
    return Step::Finished;
  }
  ++time;
  scheduler.advance(active_warps_, issued, issued - last_progress, rng);
  if (!scheduler.holds_copies()) run_due_events();
  const size_t n = active_warps_.size();
  const size_t first = rng() % n;
  // Warps split at the beginning of a turn: short turns let lanes run apart anywhere.
  const bool brief = options.split_warps && rng() % 2;
  const uint32_t quantum = brief ? 1 + rng() % 16 : 16 + rng() % 240;
  bool progressed = false, finished = false;
  for (size_t k = 0; k < n && !progressed; ++k) {
    Warp& warp = *active_warps_[(first + k) % n];
    if (scheduler.holds(warp)) continue;
    const uint64_t before = last_progress;
    uint32_t count = warp.run(quantum);
    progressed = count > 0 || warp.done || last_progress != before;
    if (warp.done) {
      finished = true;
      if (warp.cta->live_warps == 0) retire_block(*warp.cta);
    }
  }
  if (finished) rebuild_active();
  if (!progressed && !finished) {
    if (!events_.empty())
      run_next_event();
    else if (!scheduler.release())
      return Step::Stuck;
  }
  if (issued > last_progress + options.livelock_instructions) {
    if (events_.empty()) return Step::Livelock;
    time = std::max(time, events_.top().time);
  }
  if (options.max_instructions && issued > options.max_instructions) return Step::LimitReached;
  return Step::Progress;
}

namespace {

// Device arithmetic is IEEE with subnormals, whatever the calling thread has chosen (torch.set_flush_denormal).
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    fegetenv(&saved_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { fesetenv(&saved_); }

 private:
  fenv_t saved_;
};

constexpr uint64_t kLatestCompletion = 20'000;  // rounds

bool complete_oldest(const std::vector<Launch*>& launches, const std::vector<Launch::Step>& last) {
  if (launches[0]->predecessor_pending) {
    launches[0]->predecessor_pending = false;
    launches[0]->progress();
    return true;
  }
  for (size_t i = 0; i < launches.size(); ++i) {
    if (last[i] != Launch::Step::Finished || launches[i]->complete) continue;
    launches[i]->complete = true;
    for (auto* l : launches) l->progress();
    return true;
  }
  return false;
}

}  // namespace

void Launch::run_all(const std::vector<Launch*>& launches) {
  const DefaultFloatingPoint environment;
  const auto start = std::chrono::steady_clock::now();
  std::vector<Step> last(launches.size(), Step::Progress);
  std::vector<bool> begun(launches.size());
  uint64_t rounds = 0;
  for (size_t finished = 0; finished < launches.size();) {
    bool waiting = true;  // nobody can go on
    for (size_t i = 0; i < launches.size(); ++i) {
      if (last[i] == Step::Finished) continue;
      Launch& l = *launches[i];
      if (!begun[i]) {
        if (l.prerequisite && !l.prerequisite->released()) continue;
        l.begin();
        begun[i] = true;
      }
      const uint64_t before = l.last_progress;
      last[i] = l.step();
      if (last[i] == Step::LimitReached) l.report_deadlock("instruction limit reached");
      if (last[i] == Step::Finished) {
        ++finished;
        l.counters.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      if (last[i] == Step::Progress || last[i] == Step::Finished) waiting = false;
      if (l.last_progress != before || last[i] == Step::Finished)  // may be what the others spin on
        for (auto* o : launches) o->progress();
    }
    // A launch that others may overlap is complete as late as possible, but they may spin until it is.
    if ((waiting || ++rounds % kLatestCompletion == 0) && complete_oldest(launches, last)) continue;
    if (!waiting) continue;
    for (size_t i = 0; i < launches.size(); ++i)
      if (last[i] == Step::Stuck) launches[i]->report_deadlock("deadlock: no warp can make progress");
    for (size_t i = 0; i < launches.size(); ++i)
      if (last[i] == Step::Livelock) launches[i]->report_deadlock("livelock: warps spin without any visible effect");
  }
}

}  // namespace hunyuan_kernels::simulator
