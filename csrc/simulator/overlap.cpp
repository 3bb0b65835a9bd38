#include "simulator/overlap.h"

#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {
namespace {

std::string describe(const Launch& launch, const Footprint::Access& a) {
  const uint32_t x = launch.grid[0], y = launch.grid[1];
  return format("kernel %s, PTX line %u, block (%u,%u,%u), warp %u, lane %d: %s", launch.program.kernel_name.c_str(),
                a.instr->line, a.block % x, a.block / x % y, a.block / (x * y), a.warp, a.lane,
                a.instr->ast->text().c_str());
}

[[noreturn]] void report(const Launch& early, const Footprint::Access& access, const Launch& first,
                         const Footprint::Access& other, uint64_t address, bool early_writes, bool first_writes) {
  const Launch* between = early.prerequisite;
  const std::string when =
      between != &first && between->complete && !between->waited
          ? format(
                "while an earlier launch may not be complete (griddepcontrol.wait waits for '%s', which did not wait)",
                between->program.kernel_name.c_str())
          : std::string("before griddepcontrol.wait: the launch overlaps the one before");
  throw SimError(format("%s of global address 0x%llx (%s) %s, which %s it\n  at %s\n  %s by %s",
                        early_writes ? "write" : "read", static_cast<unsigned long long>(address),
                        early.allocations.describe(address).c_str(), when.c_str(), first_writes ? "writes" : "reads",
                        describe(early, access).c_str(), first_writes ? "written" : "read",
                        describe(first, other).c_str()));
}

// Whether an earlier launch is complete to one that has waited. griddepcontrol.wait waits for the launch before; that
// one is not complete before its own predecessor if it waits as well, but may be if it does not.
bool complete_to(const Launch& launch, const Launch& first) {
  for (const Launch* l = launch.prerequisite; l && l->complete; l = l->waited ? l->prerequisite : nullptr)
    if (l == &first) return true;
  return false;
}

}  // namespace

void overlap_access(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write) {
  Launch& launch = *warp.launch;
  Overlap& overlap = *launch.overlap;
  bool pending = !overlap.later.empty();
  for (const Launch* first : overlap.earlier) pending |= !complete_to(launch, *first);
  if (!pending) return;
  const Cta& cta = *warp.cta;
  Footprint::Access now;
  now.instr = &instr;
  now.block = cta.id[0] + launch.grid[0] * (cta.id[1] + launch.grid[1] * cta.id[2]);
  now.warp = static_cast<uint16_t>(warp.index);
  now.lane = static_cast<int16_t>(lane);
  for (uint64_t g = address / 4; g <= (address + bytes - 1) / 4; ++g) {
    now.mask = granule_mask(g, address, bytes);
    auto meets = [&](const Footprint* other, const auto& raise) {
      if (!other) return;
      if (other->write.mask & now.mask) raise(other->write, true);
      if (write && (other->read.mask & now.mask)) raise(other->read, false);
    };
    for (const Launch* first : overlap.earlier)
      if (!complete_to(launch, *first))
        meets(first->overlap->accesses.find(g), [&](const Footprint::Access& other, bool other_writes) {
          report(launch, now, *first, other, g * 4, write, other_writes);
        });
    for (const Launch* early : overlap.later)
      meets(early->overlap->accesses.find(g), [&](const Footprint::Access& other, bool other_writes) {
        report(*early, other, launch, now, g * 4, other_writes, write);
      });
    Footprint& footprint = overlap.accesses.at(g);
    Footprint::Access& latest = write ? footprint.write : footprint.read;
    const uint8_t before = latest.mask;
    latest = now;
    latest.mask |= before;
  }
}

}  // namespace hunyuan_kernels::simulator
