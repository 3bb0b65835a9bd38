#include "simulator/races.h"

#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

namespace {
uint32_t warp_index(const Warp& warp) { return warp.thread_base / kWarpSize; }
uint32_t& own(Warp& warp) {
  const uint32_t i = warp_index(warp);
  if (warp.clock.size() <= i) warp.clock.resize(i + 1);
  if (warp.clock[i] == 0) warp.clock[i] = 1;
  return warp.clock[i];
}
bool before(const Warp& warp, uint32_t other, uint32_t clock) {
  return other < warp.clock.size() && warp.clock[other] >= clock;
}

[[noreturn]] void report(Warp& warp, const Instr& instr, int lane, uint32_t offset, const char* now,
                         const char* earlier, uint32_t line, uint32_t other) {
  warp.fail(instr, lane,
            format("data race on shared address 0x%x: %s is not ordered after the %s at PTX line %u by resident other "
                   "%u (this is resident other %u)",
                   offset, now, earlier, line, other, warp_index(warp)));
}

// All earlier accesses by other warps must happen before a write; the last write before a read.
void check(Warp& warp, const Instr& instr, int lane, const RaceInfo& r, uint32_t offset, uint8_t bytes, bool write) {
  const uint32_t self = warp_index(warp);
  if (r.writer && (r.write_mask & bytes) && r.writer - 1 != self && !before(warp, r.writer - 1, r.write_clock))
    report(warp, instr, lane, offset, write ? "this write" : "this read", "write", r.write_line, r.writer - 1);
  if (!write || !(r.read_mask & bytes)) return;
  if (r.reader && r.reader - 1 != self && !before(warp, r.reader - 1, r.read_clock))
    report(warp, instr, lane, offset, "this write", "read", r.read_line, r.reader - 1);
  if (r.other_readers)
    for (auto& [other, clock] : *r.other_readers)
      if (other != self && !before(warp, other, clock))
        report(warp, instr, lane, offset, "this write", "read", r.read_line, other);
}
}  // namespace

void race_release(Warp& warp, VectorClock& object) {
  if (!warp.launch->options.check_races) return;
  own(warp);
  join_clock(object, warp.clock);
  ++own(warp);
}

void race_acquire(Warp& warp, const VectorClock& object) {
  if (!warp.launch->options.check_races) return;
  own(warp);
  join_clock(warp.clock, object);
}

void race_access(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes, bool write) {
  if (instr.strong) {
    VectorClock& object = warp.launch->strong_clocks[(uint64_t(owner.first_thread) << 32) | offset];
    race_acquire(warp, object);
    if (write) race_release(warp, object);
    return;
  }
  const uint32_t self = warp_index(warp), clock = own(warp);
  for (uint32_t g = offset / 4; g <= (offset + bytes - 1) / 4; ++g) {
    RaceInfo& r = owner.shared.race[g];
    const uint32_t first = std::max(offset, g * 4) - g * 4, last = std::min(offset + bytes, g * 4 + 4) - g * 4;
    const uint8_t mask = uint8_t(((1u << last) - 1) & ~((1u << first) - 1));
    check(warp, instr, lane, r, g * 4, mask, write);
    if (write) {
      delete r.other_readers;
      r = RaceInfo{};
      r.writer = self + 1;
      r.write_mask = mask;
      r.write_clock = clock;
      r.write_line = instr.line;
    } else {
      if (r.reader && r.reader - 1 != self) {
        if (!r.other_readers) r.other_readers = new std::vector<std::pair<uint32_t, uint32_t>>;
        std::erase_if(*r.other_readers, [&](auto& p) { return p.first == r.reader - 1 || p.first == self; });
        r.other_readers->push_back({r.reader - 1, r.read_clock});
      }
      r.reader = self + 1;
      r.read_mask |= mask;
      r.read_clock = clock;
      r.read_line = instr.line;
    }
  }
}

void race_async_write(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes) {
  if (!warp.launch->options.check_races || !bytes) return;
  own(warp);
  for (uint32_t g = offset / 4; g <= (offset + bytes - 1) / 4; ++g) {
    RaceInfo& r = owner.shared.race[g];
    check(warp, instr, lane, r, g * 4, 15, true);
    delete r.other_readers;
    r = RaceInfo{};
  }
}

}  // namespace hunyuan_kernels::simulator
