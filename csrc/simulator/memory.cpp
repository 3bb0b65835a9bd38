#include "simulator/memory.h"

#include <algorithm>
#include <cstdlib>

namespace hunyuan_kernels::simulator {

void SharedMemory::reset(uint32_t bytes, bool races) {
  base = kSharedReserved;
  limit = kSharedReserved + bytes;
  const uint32_t size = (limit + 1023) / 1024 * 1024;
  data.assign(size, 0xcd);
  initialized.assign(size, 0);
  generic_writer.assign(size / kGranule, Writer{});
  has_generic_writes.assign(size / 1024, 0);
  async_readers.assign(size / kTileGranule, 0);
  async_writers.assign(size / kTileGranule, 0);
  mbarrier_mark.assign(size / 8, 0);
  race = std::vector<RaceInfo>(races ? size / kGranule : 0);
  mbarriers.clear();
}

void AllocationTable::add(uint64_t begin, uint64_t bytes, const std::string& name, bool read_only) {
  if (bytes) ranges_.push_back({begin, begin + bytes, read_only, name});
}

void AllocationTable::finish() {
  std::sort(ranges_.begin(), ranges_.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  std::vector<Allocation> merged;
  for (auto& r : ranges_) {
    if (!merged.empty() && r.begin < merged.back().end) {
      merged.back().end = std::max(merged.back().end, r.end);
      merged.back().read_only = merged.back().read_only && r.read_only;
    } else {
      merged.push_back(r);
    }
  }
  ranges_ = std::move(merged);
}

const Allocation* AllocationTable::find(uint64_t address) const {
  auto it = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                             [](uint64_t a, const Allocation& r) { return a < r.begin; });
  if (it == ranges_.begin()) return nullptr;
  --it;
  return address < it->end ? &*it : nullptr;
}

std::string AllocationTable::describe(uint64_t address) const {
  const Allocation* best = nullptr;
  uint64_t distance = ~0ull;
  for (auto& r : ranges_) {
    if (address >= r.begin && address < r.end)
      return format("byte %llu of '%s'", (unsigned long long)(address - r.begin), r.name.c_str());
    uint64_t d = address < r.begin ? r.begin - address : address - r.end;
    if (d < distance) {
      distance = d;
      best = &r;
    }
  }
  if (!best) return "no registered allocation";
  if (address < best->begin)
    return format("%llu bytes before '%s' (%llu bytes)", (unsigned long long)(best->begin - address),
                  best->name.c_str(), (unsigned long long)(best->end - best->begin));
  return format("%llu bytes past the end of '%s' (%llu bytes)", (unsigned long long)(address - best->end),
                best->name.c_str(), (unsigned long long)(best->end - best->begin));
}

namespace {

const Allocation* find_global(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, bool write) {
  const Allocation* a = warp.last_allocation;
  if (!a || address < a->begin || address + bytes > a->end) {
    a = warp.launch->allocations.find(address);
    if (!a || address + bytes > a->end)
      warp.fail(instr, lane,
                format("out-of-bounds global %s of %u bytes at 0x%llx: %s", write ? "store" : "load", bytes,
                       (unsigned long long)address, warp.launch->allocations.describe(address).c_str()));
    warp.last_allocation = a;
  }
  if (write && a->read_only)
    warp.fail(instr, lane,
              format("store to read-only memory '%s' at 0x%llx", a->name.c_str(), (unsigned long long)address));
  return a;
}

void note_global(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write) {
  if (warp.launch->predecessor_pending)
    warp.fail(
        instr, lane,
        format("%s of global address 0x%llx (%s) before griddepcontrol.wait: the launch may overlap the one before "
               "it in the stream, whatever that is",
               write ? "write" : "read", (unsigned long long)address,
               warp.launch->allocations.describe(address).c_str()));
  if (warp.launch->options.check_races) race_global(warp, instr, lane, address, bytes, write);
  if (warp.launch->overlap) overlap_access(warp, instr, lane, address, bytes, write);
}

}  // namespace

uint8_t* global_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, bool write) {
  if (address & (std::min(bytes, 32u) - 1))
    warp.fail(instr, lane,
              format("misaligned global access: address 0x%llx, %u bytes", (unsigned long long)address, bytes));
  find_global(warp, instr, lane, address, bytes, write);
  if (warp.launch->watch_global) note_global(warp, instr, lane, address, bytes, write);
  return reinterpret_cast<uint8_t*>(address);
}

void global_range(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write) {
  const Allocation* a = find_global(warp, instr, lane, address, 1, write);
  if (address + bytes > a->end)
    warp.fail(
        instr, lane,
        format("out-of-bounds asynchronous global %s: %llu bytes at 0x%llx run past the end of '%s'",
               write ? "write" : "read", (unsigned long long)bytes, (unsigned long long)address, a->name.c_str()));
  if (warp.launch->watch_global) note_global(warp, instr, lane, address, bytes, write);
}

Cta& shared_owner(Warp& warp, const Instr& instr, int lane, uint64_t address, bool cluster, uint32_t& offset) {
  uint32_t rank = (uint32_t)(address >> kCtaRankShift);
  offset = (uint32_t)(address & ((1u << kCtaRankShift) - 1));
  if (rank == warp.cta->rank) return *warp.cta;
  if (rank >= warp.cta->cluster->ctas.size())
    warp.fail(instr, lane, format("shared address 0x%llx is outside the cluster", (unsigned long long)address));
  if (!cluster)
    warp.fail(instr, lane,
              format("shared::cta access to address 0x%llx of block rank %u", (unsigned long long)address, rank));
  Cta& owner = *warp.cta->cluster->ctas[rank];
  if (!owner.active)
    warp.fail(instr, lane, format("access to shared memory of block rank %u, which has already exited", rank));
  return owner;
}

namespace {

void check_range(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint64_t bytes,
                 const char* what) {
  SharedMemory& s = owner.shared;
  if (offset < s.base || offset + bytes > s.limit)
    warp.fail(instr, lane,
              format("out-of-bounds shared %s: address 0x%x, %llu bytes, valid range [0x%x, 0x%x)", what, offset,
                     (unsigned long long)bytes, s.base, s.limit));
}

std::string thread_name(Launch&, const Cta& owner, uint32_t thread) {
  const Cta* cta = &owner;
  for (auto& c : owner.cluster->ctas)
    if (thread >= c->first_thread && thread < c->first_thread + (uint32_t)c->warps.size() * kWarpSize) cta = c.get();
  uint32_t local = thread - cta->first_thread;
  return format("block rank %u warp %u lane %u", cta->rank, local / 32, local % 32);
}

}  // namespace

uint8_t* shared_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, Access access,
                        bool cluster) {
  const bool write = access == Access::Write || access == Access::Update;
  uint32_t offset;
  Cta& owner = shared_owner(warp, instr, lane, address, cluster, offset);
  SharedMemory& s = owner.shared;
  if (offset & (bytes - 1))
    warp.fail(instr, lane, format("misaligned shared access: address 0x%x, %u bytes", offset, bytes));
  check_range(warp, instr, lane, owner, offset, bytes, write ? "store" : "load");
  const Options& options = warp.launch->options;
  if ((access == Access::Read || access == Access::Update) && options.check_uninitialized_shared)
    if (const void* hole = memchr(&s.initialized[offset], 0, bytes))
      warp.fail(instr, lane,
                format("read of uninitialized shared memory at 0x%x (block rank %u)",
                       (uint32_t)((const uint8_t*)hole - s.initialized.data()), owner.rank));
  const uint32_t tile = offset / SharedMemory::kTileGranule;
  if (options.check_async_hazards && s.async_writers[tile])
    warp.fail(instr, lane,
              format("shared address 0x%x is %s while an asynchronous copy into it is in flight", offset,
                     write ? "written" : "read"));
  if (write && options.check_async_hazards && s.async_readers[tile])
    warp.fail(instr, lane,
              format("shared address 0x%x is overwritten while an unfinished asynchronous operation (wgmma or bulk "
                     "store) may still read it",
                     offset));
  if (options.check_races) {
    race_access(warp, instr, lane, owner, offset, bytes, write);
    race_remote(warp, instr, lane, owner);
  }
  warp.shared_marks = &s.initialized[offset];
  if (write) {
    memset(&s.initialized[offset], 1, bytes);
    if (s.mbarrier_mark[offset / 8]) {
      s.mbarrier_mark[offset / 8] = 0;
      s.mbarriers.erase(offset & ~7u);
    }
    SharedMemory::Writer writer{warp.thread_base + lane + 1, warp.fence_epoch[lane]};
    for (uint32_t g = offset / 4; g <= (offset + bytes - 1) / 4; ++g) s.generic_writer[g] = writer;
    s.has_generic_writes[offset >> 10] = 1;
  }
  return &s.data[offset];
}

uint8_t* local_pointer(Warp& warp, const Instr& instr, int lane, uint64_t offset, uint32_t bytes) {
  if (offset & (bytes - 1))
    warp.fail(instr, lane,
              format("misaligned local access: offset 0x%llx, %u bytes", (unsigned long long)offset, bytes));
  if (offset + bytes > warp.program->local_bytes)
    warp.fail(instr, lane,
              format("out-of-bounds local access: offset 0x%llx, %u bytes of %u", (unsigned long long)offset, bytes,
                     warp.program->local_bytes));
  return warp.lane_local(lane) + offset;
}

uint8_t* param_pointer(Warp& warp, const Instr& instr, int lane, uint64_t offset, uint32_t bytes) {
  if (offset + bytes > warp.launch->params.size())
    warp.fail(instr, lane,
              format("out-of-bounds parameter access: offset 0x%llx, %u bytes of %zu", (unsigned long long)offset,
                     bytes, warp.launch->params.size()));
  return warp.launch->params.data() + offset;
}

uint8_t* memory_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, Access access,
                        Space* actual) {
  const bool write = access == Access::Write || access == Access::Update;
  warp.shared_marks = nullptr;
  Space space = instr.space;
  if (space == Space::Generic) {
    switch (address & kWindowMask) {
      case kSharedWindow:
        space = Space::SharedCluster;
        address &= ~kWindowMask;
        break;
      case kLocalWindow:
        space = Space::Local;
        address &= ~kWindowMask;
        break;
      case kParamWindow:
        space = Space::Param;
        address &= ~kWindowMask;
        break;
      default: space = Space::Global; break;
    }
  }
  if (actual) *actual = space;
  switch (space) {
    case Space::Shared: return shared_pointer(warp, instr, lane, address, bytes, access, false);
    case Space::SharedCluster: return shared_pointer(warp, instr, lane, address, bytes, access, true);
    case Space::Local: return local_pointer(warp, instr, lane, address, bytes);
    case Space::Param:
      if (write) warp.fail(instr, lane, "store to a kernel parameter");
      return param_pointer(warp, instr, lane, address, bytes);
    default: return global_pointer(warp, instr, lane, address, bytes, write);
  }
}

Cta& async_shared_range(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, uint32_t& offset) {
  Cta& owner = shared_owner(warp, instr, lane, address & 0xffffffffu, true, offset);
  check_range(warp, instr, lane, owner, offset, bytes, "asynchronous access");
  return owner;
}

void check_async_read(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes) {
  SharedMemory& s = owner.shared;
  const Options& options = warp.launch->options;
  if (options.check_races && lane >= 0) race_access(warp, instr, lane, owner, offset, bytes, false);
  if (options.check_uninitialized_shared) {
    const void* hole = memchr(&s.initialized[offset], 0, bytes);
    if (hole)
      warp.fail(instr, lane,
                format("asynchronous read of uninitialized shared memory at 0x%x",
                       (uint32_t)((const uint8_t*)hole - s.initialized.data())));
  }
  if (options.check_async_hazards)
    for (uint32_t t = offset / 16; t <= (offset + bytes - 1) / 16; ++t)
      if (s.async_writers[t])
        warp.fail(
            instr, lane,
            format("asynchronous read of shared address 0x%x while an asynchronous copy into it is in flight", t * 16));
  if (!options.check_proxy_fence) return;
  for (uint32_t at = offset; at < offset + bytes;) {
    const uint32_t end = std::min(offset + bytes, (at & ~1023u) + 1024);
    if (s.has_generic_writes[at >> 10]) {
      for (uint32_t g = at / 4; g <= (end - 1) / 4; ++g) {
        const auto& writer = s.generic_writer[g];
        if (!writer.thread) continue;
        const uint32_t thread = writer.thread - 1;
        for (auto& cta : owner.cluster->ctas) {
          if (thread < cta->first_thread || thread >= cta->first_thread + cta->warps.size() * kWarpSize) continue;
          const Warp& writing = cta->warps[(thread - cta->first_thread) / kWarpSize];
          if (writing.fence_epoch[thread % kWarpSize] == writer.epoch)
            warp.fail(instr, lane,
                      format("the async proxy reads shared address 0x%x that %s wrote through the generic proxy "
                             "without a following fence.proxy.async",
                             g * 4, thread_name(*warp.launch, owner, thread).c_str()));
        }
      }
    }
    at = end;
  }
}

void add_async_reader(Cta& owner, uint32_t offset, uint32_t bytes, int delta) {
  for (uint32_t t = offset / 16; t <= (offset + bytes - 1) / 16; ++t) owner.shared.async_readers[t] += delta;
}

void add_async_writer(Cta& owner, uint32_t offset, uint32_t bytes, int delta) {
  if (!bytes) return;
  for (uint32_t t = offset / 16; t <= (offset + bytes - 1) / 16; ++t) owner.shared.async_writers[t] += delta;
}

void async_write(Cta& owner, uint32_t offset, const uint8_t* data, uint32_t bytes) {
  SharedMemory& s = owner.shared;
  memcpy(&s.data[offset], data, bytes);
  memset(&s.initialized[offset], 1, bytes);
  for (uint32_t at = offset; at < offset + bytes;) {
    const uint32_t end = std::min(offset + bytes, (at & ~1023u) + 1024);
    if (s.has_generic_writes[at >> 10])
      for (uint32_t g = at / 4; g <= (end - 1) / 4; ++g) s.generic_writer[g] = {};
    at = end;
  }
  for (uint32_t m = offset / 8; m < (offset + bytes + 7) / 8; ++m)
    if (s.mbarrier_mark[m]) {
      s.mbarrier_mark[m] = 0;
      s.mbarriers.erase(m * 8);
    }
}

void check_async_overwrite(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes) {
  if (!bytes) return;
  for (uint32_t t = offset / 16; t <= (offset + bytes - 1) / 16 && warp.launch->options.check_async_hazards; ++t) {
    if (owner.shared.async_readers[t])
      warp.fail(instr, lane,
                format("asynchronous copy overwrites shared address 0x%x (block rank %u) while an unfinished wgmma or "
                       "bulk store may still read it",
                       t * 16, owner.rank));
    if (owner.shared.async_writers[t])
      warp.fail(
          instr, lane,
          format("two asynchronous copies into shared address 0x%x (block rank %u) are in flight", t * 16, owner.rank));
  }
  race_async_write(warp, instr, lane, owner, offset, bytes);
}

void count_access(Warp& warp, Space space, bool store, const uint64_t* addresses, uint32_t count, uint32_t bytes) {
  Counters& c = warp.launch->counters;
  if (space == Space::Global || space == Space::Const)
    c.global_access(store, addresses, count, bytes);
  else if (space == Space::Shared || space == Space::SharedCluster)
    c.shared_access((store ? Counters::Store : Counters::Load) + std::min(4, __builtin_ctz(bytes)), addresses, count,
                    bytes);
}

}  // namespace hunyuan_kernels::simulator
