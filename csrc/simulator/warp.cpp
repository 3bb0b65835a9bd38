// Warp execution: fragments of lanes, reconvergence and the instruction loop.
#include "simulator/definedness.h"
#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {

uint64_t Warp::address(const AddressMode& a, int lane) const {
  uint64_t v = (uint64_t)a.offset;
  if (a.base.present) {
    v += value(a.base, lane);
    if (a.base.bytes == 4) v = (uint32_t)v;  // 32-bit addresses wrap
  }
  if (a.symbol == SymbolBase::Shared) v += uint64_t(cta->rank) << kCtaRankShift;
  return v;
}

std::string Warp::where(const Instr& instr, int lane) const {
  std::string s = format("kernel %s, PTX line %u, block (%u,%u,%u), warp %u", program->kernel_name.c_str(), instr.line,
                         cta->id[0], cta->id[1], cta->id[2], index);
  if (lane >= 0) s += format(", lane %d", lane);
  return s + ": " + (instr.ast ? instr.ast->text() : "");
}

void Warp::fail(const Instr& instr, int lane, const std::string& what) const {
  throw SimError(what + "\n  at " + where(instr, lane));
}

std::string Warp::state() const {
  std::string s;
  for (auto& f : fragments) {
    const Instr& instr = program->code[f.pc];
    s += format("  block (%u,%u,%u) warp %u lanes 0x%08x at PTX line %u: %s", cta->id[0], cta->id[1], cta->id[2], index,
                f.mask, instr.line, instr.ast->text().c_str());
    std::string detail = wait_detail(*this, f);
    if (!detail.empty()) s += "  [" + detail + "]";
    s += "\n";
  }
  return s;
}

void Warp::remove_empty_fragments() {
  for (size_t i = 0; i < fragments.size();) {
    if (fragments[i].mask) {
      ++i;
      continue;
    }
    fragments.erase(fragments.begin() + i);
    if (current > i)
      --current;
    else if (current == i)
      current = 0;
  }
}

void Warp::select_fragment(bool random) {
  // Merge lanes that meet at the same place.
  for (size_t i = 0; i < fragments.size(); ++i) {
    for (size_t j = i + 1; j < fragments.size();) {
      Fragment &a = fragments[i], &b = fragments[j];
      if (a.pc == b.pc && a.arrived == b.arrived && (!a.arrived || a.token == b.token) && a.stack == b.stack) {
        a.mask |= b.mask;
        a.blocked = false;
        fragments.erase(fragments.begin() + j);
      } else {
        ++j;
      }
    }
  }
  int best = -1;
  if (random) {
    size_t start = launch->rng() % fragments.size();
    for (size_t i = 0; i < fragments.size() && best < 0; ++i)
      if (!fragments[(start + i) % fragments.size()].blocked) best = (int)((start + i) % fragments.size());
  } else {
    for (size_t i = 0; i < fragments.size(); ++i) {
      if (fragments[i].blocked) continue;
      if (best < 0 || fragments[i].stack.size() > fragments[best].stack.size() ||
          (fragments[i].stack.size() == fragments[best].stack.size() && fragments[i].pc < fragments[best].pc))
        best = (int)i;
    }
  }
  current = best < 0 ? 0 : (uint32_t)best;
}

void Warp::split_randomly() {
  Fragment& f = fragments[current];
  // Often the first lane alone: the one that most kernels elect to issue copies and arrivals.
  const uint64_t random = launch->rng();
  const uint32_t part = f.mask & (random & 1 ? f.mask & -f.mask : uint32_t(random >> 1) & uint32_t(random >> 32));
  if (f.arrived || part == 0 || part == f.mask) return;
  Fragment ahead = f;
  ahead.mask = part;
  f.mask &= ~part;
  fragments.push_back(std::move(ahead));
  current = (uint32_t)fragments.size() - 1;
}

void Warp::exit_lanes(uint32_t mask) {
  live_mask &= ~mask;
  Fragment& f = fragments[current];
  f.mask &= ~mask;
  for (int lane : Lanes(cluster_arrived & mask))
    if (cluster_token[lane] == cta->cluster->generation) --cta->cluster->arrived_lanes;
  cluster_arrived &= ~mask;
  cta->cluster->live_lanes -= __builtin_popcount(mask);
  launch->progress();
  if (live_mask == 0) {
    done = true;
    finish_wgmma(*this);
    --cta->live_warps;
    for (auto& b : cta->barriers)
      if (b.arrived && b.expected == 0) cta->check_barrier(b);
  }
  cta->cluster->check_barrier();
}

uint32_t Warp::run(uint32_t budget) {
  uint32_t count = 0;
  for (auto& f : fragments) f.blocked = false;
  if (!wgmma_queue.empty() && !launch->scheduler.holds_copies() &&
      (launch->options.eager_async || (launch->rng() & 3) == 0))
    execute_oldest_wgmma(*this);
  int sticky = 0;
  if (fragments.size() > 1) {
    bool random = (launch->rng() & 3) == 0;
    select_fragment(random);
    if (random) sticky = 1 + launch->rng() % 64;
  }
  if (launch->options.split_warps && fragments.size() < 4 && !fragments[current].blocked && launch->rng() % 4 == 0) {
    split_randomly();
    sticky = 16 + launch->rng() % 256;
  }
  const Instr* code = program->code.data();
  Counters& counters = launch->counters;
  while (count < budget) {
    Fragment* f = &fragments[current];
    if (f->blocked) break;  // every fragment is blocked
    const Instr& instr = code[f->pc];
    uint32_t mask = f->mask;
    if (instr.guard >= 0) {
      uint32_t p = *reinterpret_cast<uint32_t*>(regs + instr.guard);
      mask &= instr.guard_negated ? ~p : p;
      if (follows_undefined) check_defined_guard(*this, instr, f->mask);
    }
    if (!f->arrived) {
      ++counters.issued[f->pc];
      counters.lanes[f->pc] += __builtin_popcount(mask);
      ++launch->issued;
      ++count;
    }
    if (mask == 0) {
      ++f->pc;
    } else {
      if (follows_undefined) follow_undefined(*this, instr, mask);
      if (instr.watched && touch_wgmma_registers(*this, instr, mask)) {
        ++fragments[current].pc;
        continue;
      }
      ExecStatus status = instr.fn(*this, instr, mask);
      if (status == ExecStatus::Next || status == ExecStatus::Yield) {
        f = &fragments[current];
        const bool waited = f->arrived;
        f->arrived = false;
        ++f->pc;
        if (waited && launch->options.split_warps && fragments.size() < 4 && launch->rng() % 4 == 0) {
          split_randomly();
          sticky = 16 + launch->rng() % 256;
        }
        if (status == ExecStatus::Yield && fragments.size() == 1) break;
        if (status == ExecStatus::Yield) sticky = 0;
      } else if (status == ExecStatus::Blocked) {
        f = &fragments[current];
        if (!f->arrived) {  // retried as if never issued
          --counters.issued[f->pc];
          counters.lanes[f->pc] -= __builtin_popcount(mask);
          --launch->issued;
          --count;
        }
        f->blocked = true;
        sticky = 0;
        if (fragments.size() == 1) break;
      } else {
        if (done) break;
        remove_empty_fragments();
      }
    }
    if (fragments.size() > 1 && --sticky < 0) select_fragment(false);
  }
  return count;
}

}  // namespace hunyuan_kernels::simulator
