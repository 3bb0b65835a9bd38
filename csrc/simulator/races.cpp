#include "simulator/races.h"

#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

namespace {

constexpr size_t kMaxOtherAccesses = 64;  // per granule

void tick(Warp& warp) { warp.clocks.now.raise(warp.clocks.id, ++warp.clocks.time); }

[[noreturn]] void report(Warp& warp, const Instr& instr, int lane, const std::string& address, bool write,
                         const RecordedAccess& earlier) {
  warp.fail(instr, lane,
            format("data race on %s: this %s is not ordered after the %s at PTX line %u by %s", address.c_str(),
                   write ? "write" : "read", earlier.write ? "write" : "read", earlier.line,
                   warp.launch->warp_names[earlier.warp - 1].c_str()));
}

// Whether accesses are ordered before what a warp does now. Neighbouring bytes have the same accesses, as a rule.
class OrderedBefore {
 public:
  explicit OrderedBefore(const Warp& warp) : warp_(warp) {}
  bool operator()(const RecordedAccess& earlier) {
    if (earlier.warp == known_warp_ && earlier.clock <= known_clock_) return true;
    if (!race_ordered(warp_, earlier.warp - 1, earlier.clock)) return false;
    known_warp_ = earlier.warp;
    known_clock_ = earlier.clock;
    return true;
  }

 private:
  const Warp& warp_;
  uint32_t known_warp_ = 0, known_clock_ = 0;
};

// An access conflicts with all earlier ones of the same bytes when either of them writes and not both are strong.
template <typename Name>
void check(Warp& warp, const Instr& instr, int lane, const RaceInfo& r, const RecordedAccess& now,
           OrderedBefore& ordered, const Name& name) {
  auto compare = [&](const RecordedAccess& earlier) {
    if (earlier.warp && (earlier.mask & now.mask) && (earlier.write || now.write) && !(earlier.strong && now.strong) &&
        !ordered(earlier))
      report(warp, instr, lane, name(), now.write, earlier);
  };
  compare(r.write);
  if (now.write) compare(r.read);
  r.others.for_each(compare);
}

template <typename Name>
void record(Warp& warp, const Instr& instr, int lane, RaceInfo& r, const RecordedAccess& now, OrderedBefore& ordered,
            const Name& name) {
  check(warp, instr, lane, r, now, ordered, name);
  auto covered = [&](const RecordedAccess& earlier) { return !(earlier.mask & ~now.mask); };
  auto same = [&](const RecordedAccess& earlier) { return earlier.warp == now.warp && earlier.strong == now.strong; };
  // A weak write is ordered after what it covers, so later accesses need only be compared with the write.
  if (!r.others.empty())
    r.others.erase_if([&](const RecordedAccess& earlier) {
      return covered(earlier) && ((now.write && !now.strong) || (same(earlier) && earlier.write == now.write));
    });
  RecordedAccess& latest = now.write ? r.write : r.read;
  if (latest.warp && !(covered(latest) && (same(latest) || (now.write && !now.strong)))) r.others.push(latest);
  latest = now;
  if (now.write && !now.strong && covered(r.read)) r.read = {};
}

RecordedAccess access_now(const Warp& warp, const Instr& instr, bool write) {
  RecordedAccess now;
  now.warp = warp.clocks.id + 1;
  now.clock = warp.clocks.time;
  now.line = instr.line;
  now.write = write;
  now.strong = instr.strong;
  return now;
}

std::string shared_name(const Cta& owner, uint64_t offset) {
  return format("shared address 0x%x (block rank %u)", static_cast<uint32_t>(offset), owner.rank);
}

template <typename Find, typename Name>
void record_range(Warp& warp, const Instr& instr, int lane, uint64_t begin, uint64_t bytes, bool write,
                  const Find& find, const Name& name) {
  RecordedAccess now = access_now(warp, instr, write);
  OrderedBefore ordered(warp);
  for (uint64_t g = begin / 4; g <= (begin + bytes - 1) / 4; ++g) {
    now.mask = granule_mask(g, begin, bytes);
    RaceInfo& r = find(g);
    const RecordedAccess& latest = write ? r.write : r.read;
    if (latest.warp == now.warp && latest.clock == now.clock && latest.mask == now.mask &&
        latest.strong == now.strong && (!write || !r.read.warp) && r.others.empty())
      continue;  // nothing has happened since
    record(warp, instr, lane, r, now, ordered, [&] { return name(g * 4); });
  }
}

// What a strong access takes over and hands on; an atomic does both.
void synchronize(Warp& warp, const Instr& instr, StrongLocation& at, bool read, bool write) {
  WarpClocks& c = warp.clocks;
  const bool same_block = at.writer_block == warp.cta;
  if (read) {
    if (instr.acquire) {
      c.now.VectorClock::join(at.device);
      if (same_block) c.now.VectorClock::join(at.block);
    } else {
      (instr.device_scope ? c.observed_device : c.observed_block).join(at.device);
      if (same_block) c.observed_block.join(at.block);
    }
    if (instr.device_scope) c.now.seen.join(at.fenced);
  }
  if (!write) return;
  if (!read) at = {};  // a plain store ends the release sequence; an atomic continues it
  if (!same_block) at.block.clear();
  at.writer_block = warp.cta;
  at.block.join(instr.release ? c.now : c.fenced_block);
  if (instr.device_scope) {
    at.device.join(instr.release ? c.now : c.fenced_device);
    at.fenced.join(c.now.fenced);
  }
  if (instr.release) tick(warp);
}

}  // namespace

bool race_ordered(const Warp& warp, uint32_t other, uint32_t clock) {
  return other == warp.clocks.id || warp.clocks.now.of(other) >= clock;
}

void OtherAccesses::push(const RecordedAccess& access) {
  if (!first_.warp) {
    first_ = access;
    return;
  }
  if (!more_) more_ = std::make_unique<std::vector<RecordedAccess>>();
  if (more_->size() + 1 == kMaxOtherAccesses) more_->erase(more_->begin());
  more_->push_back(access);
}

void VectorClock::raise(uint32_t warp, uint32_t time) {
  auto it = std::lower_bound(times_.begin(), times_.end(), std::make_pair(warp, 0u));
  if (it == times_.end() || it->first != warp) it = times_.insert(it, {warp, 0});
  it->second = std::max(it->second, time);
}

void VectorClock::join(const VectorClock& other) {
  if (other.times_.empty()) return;
  size_t i = 0;
  std::vector<std::pair<uint32_t, uint32_t>> missing;
  for (const auto& [warp, time] : other.times_) {
    while (i < times_.size() && times_[i].first < warp) ++i;
    if (i < times_.size() && times_[i].first == warp)
      times_[i].second = std::max(times_[i].second, time);
    else
      missing.push_back({warp, time});
  }
  if (missing.empty()) return;
  const size_t known = times_.size();
  times_.insert(times_.end(), missing.begin(), missing.end());
  std::inplace_merge(times_.begin(), times_.begin() + known, times_.end());
}

void race_start(Warp& warp) {
  Launch& launch = *warp.launch;
  if (!launch.options.check_races) return;
  const Cta& cta = *warp.cta;
  warp.clocks.id = static_cast<uint32_t>(launch.warp_names.size());
  warp.clocks.now.raise(warp.clocks.id, warp.clocks.time);
  launch.warp_names.push_back(format("block (%u,%u,%u) warp %u", cta.id[0], cta.id[1], cta.id[2], warp.index));
}

void race_release(Warp& warp, History& object, bool relaxed) {
  if (!warp.launch->options.check_races) return;
  if (relaxed) {
    object.VectorClock::join(warp.clocks.fenced_block);
    if (warp.clocks.init_id) object.raise(warp.clocks.init_id, warp.clocks.init_fences);
    return;
  }
  object.join(warp.clocks.now);
  tick(warp);
}

void race_acquire(Warp& warp, const History& object) {
  if (warp.launch->options.check_races) warp.clocks.now.join(object);
}

void race_fence(Warp& warp, bool device_scope, bool sequential) {
  if (!warp.launch->options.check_races) return;
  WarpClocks& c = warp.clocks;
  VectorClock& now = c.now;
  now.join(c.observed_block);
  if (device_scope) now.join(c.observed_device);
  if (device_scope && sequential) {
    now.join(c.now.seen);
    c.now.fenced = now;
  }
  c.fenced_block = c.now;
  if (device_scope) c.fenced_device = c.now;
  tick(warp);
}

void race_init(Warp& warp) {
  Launch& launch = *warp.launch;
  if (!launch.options.check_races || warp.clocks.init_id) return;
  warp.clocks.init_id = static_cast<uint32_t>(launch.warp_names.size());
  launch.warp_names.push_back("");
}

void race_init_fence(Warp& warp) {
  WarpClocks& c = warp.clocks;
  if (c.init_id) c.now.raise(c.init_id, ++c.init_fences);
}

void race_access(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes, bool write) {
  Launch& launch = *warp.launch;
  if (instr.strong)
    synchronize(warp, instr, launch.strong_locations[(uint64_t(owner.first_thread + 1) << 32) | offset],
                !write || instr.cls == InstrClass::Atomic, write);
  record_range(
      warp, instr, lane, offset, bytes, write, [&](uint64_t g) -> RaceInfo& { return owner.shared.race[g]; },
      [&](uint64_t at) { return shared_name(owner, at); });
}

// A read that lasts until the entry `id` of the clocks has reached `clock`.
static void record_async_read(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes,
                              uint32_t id, uint32_t clock) {
  RecordedAccess now = access_now(warp, instr, false);
  now.warp = id + 1;
  now.clock = clock;
  OrderedBefore ordered(warp);
  for (uint64_t g = offset / 4; g <= (offset + bytes - 1) / 4; ++g) {
    now.mask = granule_mask(g, offset, bytes);
    record(warp, instr, lane, owner.shared.race[g], now, ordered, [&] { return shared_name(owner, g * 4); });
  }
}

void race_wgmma_read(Warp& warp, const Instr& instr, uint32_t offset, uint32_t bytes) {
  Launch& launch = *warp.launch;
  if (!launch.options.check_races) return;
  Cta& cta = *warp.cta;
  uint32_t& id = cta.warps[warp.index / 4 * 4].warpgroup_clock;
  if (!id) {
    id = static_cast<uint32_t>(launch.warp_names.size());
    launch.warp_names.push_back(format("wgmma of block (%u,%u,%u) warps %u to %u, not waited for", cta.id[0], cta.id[1],
                                       cta.id[2], warp.index / 4 * 4, warp.index / 4 * 4 + 3));
  }
  record_async_read(warp, instr, -1, cta, offset, bytes, id, warp.wgmma_open_group + 1);
}

void race_wgmma_wait(Warp& warp, uint32_t groups) {
  const uint32_t id = warp.cta->warps[warp.index / 4 * 4].warpgroup_clock;
  if (id) warp.clocks.now.raise(id, groups);
}

void race_bulk_read(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes) {
  Launch& launch = *warp.launch;
  if (!launch.options.check_races) return;
  std::vector<uint32_t>& ids = warp.clocks.bulk_ids;
  if (ids.empty()) ids.resize(kWarpSize);
  if (!ids[lane]) {
    ids[lane] = static_cast<uint32_t>(launch.warp_names.size());
    launch.warp_names.push_back("a bulk store, not waited for, of " + launch.warp_names[warp.clocks.id] +
                                format(" lane %d", lane));
  }
  record_async_read(warp, instr, lane, owner, offset, bytes, ids[lane], warp.bulk_group[lane] + 1);
}

void race_bulk_wait(Warp& warp, int lane, uint32_t groups) {
  WarpClocks& c = warp.clocks;
  if (!c.bulk_ids.empty() && c.bulk_ids[lane]) c.now.raise(c.bulk_ids[lane], groups);
}

void race_global(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write) {
  Launch& launch = *warp.launch;
  if (instr.strong && instr.cls != InstrClass::Tma)
    synchronize(warp, instr, launch.strong_locations[address], !write || instr.cls == InstrClass::Atomic, write);
  record_range(
      warp, instr, lane, address, bytes, write, [&](uint64_t g) -> RaceInfo& { return launch.global_races.at(g); },
      [&](uint64_t at) {
        return format("global address 0x%llx, %s", static_cast<unsigned long long>(at),
                      launch.allocations.describe(at).c_str());
      });
}

void race_async_write(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes) {
  if (!warp.launch->options.check_races || !bytes) return;
  RecordedAccess now = access_now(warp, instr, true);
  OrderedBefore ordered(warp);
  for (uint32_t g = offset / 4; g <= (offset + bytes - 1) / 4; ++g) {
    now.mask = granule_mask(g, offset, bytes);
    RaceInfo& r = owner.shared.race[g];
    check(warp, instr, lane, r, now, ordered, [&] { return shared_name(owner, uint64_t{g} * 4); });
    // Who reads the tile has waited for the copy, which is checked by the copy's state: forget the write.
    r = {};
  }
}

void race_remote(Warp& warp, const Instr& instr, int lane, Cta& owner) {
  if (!warp.launch->options.check_races || &owner == warp.cta) return;
  owner.remote_accesses[warp.clocks.id] = {&warp, &instr, lane, warp.clocks.time};
}

void race_exit(Cta& cta) {
  if (cta.remote_accesses.empty()) return;
  VectorClock last;
  for (const Warp& warp : cta.warps) last.join(warp.clocks.now);
  for (auto& [other, access] : cta.remote_accesses)
    if (last.of(other) < access.clock)
      access.warp->fail(*access.instr, access.lane,
                        format("access to shared memory of block rank %u, whose exit is not ordered after it: the "
                               "block may have exited",
                               cta.rank));
}

}  // namespace hunyuan_kernels::simulator
