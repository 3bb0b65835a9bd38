// Block and cluster barriers, mbarrier, fences, setmaxnreg.
#include "simulator/decode.h"
#include "simulator/mbarrier.h"
#include "simulator/memory.h"
#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {

namespace {

enum BarKind { kSync, kArrive, kRed };
constexpr uint32_t kRelaxedArrive = 32;  // Instr::flags of arrivals on cluster barriers and mbarriers

// imm[0]: kind, imm[1]: 0 popc, 1 and, 2 or; op[0] id, op[1] thread count, op[2] destination, op[3] predicate
ExecStatus exec_bar(Warp& warp, const Instr& instr, uint32_t mask) {
  Fragment& f = warp.frag();
  const int lane = first_lane(mask);
  const uint32_t id = warp.ptr<uint32_t>(instr.op[0])[lane];
  if (id >= 16) warp.fail(instr, lane, format("barrier id %u out of range", id));
  NamedBarrier& b = warp.cta->barriers[id];
  if (!f.arrived) {
    if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
    const uint32_t expected = instr.op[1].present ? warp.ptr<uint32_t>(instr.op[1])[lane] : 0;
    if (expected % kWarpSize)
      warp.fail(instr, lane, format("barrier thread count %u is not a multiple of the warp size", expected));
    if (expected > warp.cta->warps.size() * kWarpSize)
      warp.fail(instr, lane, format("barrier thread count %u exceeds the block", expected));
    if (b.arrived && b.expected != expected)
      warp.fail(instr, lane,
                format("barrier %u: thread count %u differs from the count %u of threads already waiting", id, expected,
                       b.expected));
    b.expected = expected;
    b.arrived += kWarpSize;
    race_release(warp, b.arrivals);
    if (instr.imm[0] == kRed) {
      uint32_t p = warp.predicate(instr.op[3]) & mask;
      b.popc += __builtin_popcount(p);
      b.conjunction &= p == mask;
      b.disjunction |= p != 0;
    }
    warp.launch->progress();
    ++warp.launch->counters.barrier_waits;
    f.token = b.generation;
    warp.cta->check_barrier(b);
    if (instr.imm[0] == kArrive) return ExecStatus::Next;
    f.arrived = true;
  }
  if (b.generation == f.token) return ExecStatus::Blocked;
  if (instr.imm[0] == kRed) {
    if (instr.imm[1] == 0)
      for (int lane : Lanes(mask)) warp.set_value(instr.op[2], lane, b.results[0]);
    else
      warp.set_predicate(instr.op[2], mask, b.results[instr.imm[1]] ? kFullMask : 0u);
  }
  race_acquire(warp, b.completed);
  return ExecStatus::Next;
}

// bar.warp.sync: lanes may wait at different instructions.
ExecStatus exec_warp_sync(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t needed = 0;
  const uint32_t* m = warp.ptr<uint32_t>(instr.op[0]);
  for (int lane : Lanes(mask)) {
    if (!((m[lane] >> lane) & 1))
      warp.fail(instr, lane, format("member mask 0x%08x does not contain the executing lane", m[lane]));
    needed |= m[lane];
  }
  Fragment& f = warp.frag();
  if (f.arrived && f.token == 2) return ExecStatus::Next;  // released by another fragment
  uint32_t present = f.mask;
  for (auto& o : warp.fragments)
    if (&o != &f && warp.program->code[o.pc].fn == &exec_warp_sync && o.blocked && !o.arrived) present |= o.mask;
  if (needed & warp.live_mask & ~present) return ExecStatus::Blocked;
  for (auto& o : warp.fragments)
    if (&o != &f && (o.mask & needed)) {
      o.arrived = true;
      o.token = 2;
      o.blocked = false;
    }
  return ExecStatus::Next;
}

ExecStatus exec_cluster_arrive(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask) && (instr.flags & 1)) return ExecStatus::Blocked;
  Cluster& cluster = *warp.cta->cluster;
  if (warp.cluster_arrived & mask)
    warp.fail(instr, first_lane(warp.cluster_arrived & mask),
              "barrier.cluster.arrive twice without barrier.cluster.wait");
  warp.cluster_arrived |= mask;
  for (int lane : Lanes(mask)) warp.cluster_token[lane] = cluster.generation;
  cluster.arrived_lanes += __builtin_popcount(mask);
  race_release(warp, cluster.arrivals, instr.flags & kRelaxedArrive);
  cluster.check_barrier();
  warp.launch->progress();
  return ExecStatus::Next;
}

ExecStatus exec_cluster_wait(Warp& warp, const Instr& instr, uint32_t mask) {
  if ((warp.cluster_arrived & mask) != mask)
    warp.fail(instr, first_lane(mask & ~warp.cluster_arrived), "barrier.cluster.wait without barrier.cluster.arrive");
  Fragment& f = warp.frag();
  if (!f.arrived) {
    f.arrived = true;
    f.token = 0;
    ++warp.launch->counters.cluster_barrier_waits;
  }
  for (int lane : Lanes(mask))
    if (warp.cta->cluster->generation == warp.cluster_token[lane]) return ExecStatus::Blocked;
  warp.cluster_arrived &= ~mask;
  race_acquire(warp, warp.cta->cluster->completed);
  warp.launch->progress();
  return ExecStatus::Next;
}

// ---- mbarrier ----
ExecStatus exec_mbarrier_init(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    uint64_t address = warp.address(instr.addr, lane);
    uint32_t count = warp.ptr<uint32_t>(instr.op[1])[lane], offset;
    if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
    Cta& owner = shared_owner(warp, instr, lane, address, false, offset);
    if (count == 0 || count > (1u << 20) - 1) warp.fail(instr, lane, format("mbarrier count %u out of range", count));
    auto existing = owner.shared.mbarriers.find(offset);
    if (existing != owner.shared.mbarriers.end()) {
      const MBarrier& b = existing->second;
      if (b.pending != b.expected)
        warp.fail(instr, lane,
                  format("mbarrier 0x%x re-initialized in the middle of phase %llu (pending %lld, tx %lld)", offset,
                         (unsigned long long)b.phase, (long long)b.pending, (long long)b.tx));
      mbarrier_end(warp, instr, lane, {&existing->second, &owner, offset}, "re-initialized");
    }
    Instr store = instr;
    store.space = Space::Shared;
    uint8_t* p = shared_pointer(warp, store, lane, address, 8, Access::Write, false);
    memset(p, 0xbb, 8);
    MBarrier b;
    b.expected = count;
    b.pending = count;
    b.init_warp = &warp;
    b.init_lane = lane;
    b.init_fence = warp.init_fence_epoch[lane];
    b.init_id = warp.clocks.id;
    b.init_clock = warp.clocks.time;
    b.init_line = instr.line;
    race_init(warp);
    b.fence_id = warp.clocks.init_id;
    b.fence_clock = warp.clocks.init_fences + 1;
    owner.shared.mbarriers[offset] = b;
    owner.shared.mbarrier_mark[offset / 8] = 1;
    owner.shared.generic_writer[offset / 4] = {};
    owner.shared.generic_writer[offset / 4 + 1] = {};
  }
  return ExecStatus::Next;
}

ExecStatus exec_mbarrier_inval(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    MBarrierRef r = mbarrier_at(warp, instr, lane, warp.address(instr.addr, lane), false);
    mbarrier_end(warp, instr, lane, r, "invalidated");
    r.owner->shared.mbarrier_mark[r.offset / 8] = 0;
    r.owner->shared.mbarriers.erase(r.offset);
  }
  return ExecStatus::Next;
}

uint64_t phase_token(const MBarrier& b) { return (b.phase << 32) | (uint64_t)b.pending; }

enum : uint32_t { kExpect = 1, kDrop = 2, kNoComplete = 4, kCluster = 8, kParity = 16 };

ExecStatus exec_mbarrier_arrive(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    MBarrierRef r = mbarrier_at(warp, instr, lane, warp.address(instr.addr, lane), instr.flags & kCluster);
    if (instr.op[0].present) warp.set_value(instr.op[0], lane, phase_token(*r.barrier));
    race_remote(warp, instr, lane, *r.owner);
    uint32_t operand = instr.op[1].present ? warp.ptr<uint32_t>(instr.op[1])[lane] : 1;
    int64_t count = (instr.flags & kExpect) ? 1 : operand;
    if (instr.flags & kExpect) mbarrier_expect_tx(warp, instr, lane, r, operand);
    if (instr.flags & kDrop) r.barrier->expected -= (uint32_t)count;
    if ((instr.flags & kNoComplete) && r.barrier->pending == count)
      warp.fail(instr, lane, "mbarrier.arrive.noComplete would complete the phase");
    mbarrier_arrive(warp, instr, lane, r, count, instr.flags & kRelaxedArrive);
  }
  return ExecStatus::Next;
}

// imm[0]: 0 expect_tx, 1 complete_tx
ExecStatus exec_mbarrier_tx(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    MBarrierRef r = mbarrier_at(warp, instr, lane, warp.address(instr.addr, lane), instr.flags & kCluster);
    uint32_t bytes = warp.ptr<uint32_t>(instr.op[1])[lane];
    if (instr.imm[0])
      mbarrier_complete_tx(warp, instr, lane, r, bytes);
    else
      mbarrier_expect_tx(warp, instr, lane, r, bytes);
  }
  return ExecStatus::Next;
}

// imm[0]: 1 try_wait (may suspend), 0 test_wait
ExecStatus exec_mbarrier_wait(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t done = 0;
  for (int lane : Lanes(mask)) {
    MBarrierRef r = mbarrier_at(warp, instr, lane, warp.address(instr.addr, lane), false);
    bool complete;
    if (instr.flags & kParity) {
      uint32_t parity = warp.ptr<uint32_t>(instr.op[1])[lane];
      if (parity > 1) warp.fail(instr, lane, format("mbarrier phase parity %u is neither 0 nor 1", parity));
      complete = (r.barrier->phase & 1) != parity;
    } else {
      uint64_t token = warp.ptr<uint64_t>(instr.op[1])[lane];
      complete = (uint32_t)r.barrier->phase != (uint32_t)(token >> 32);
    }
    if (complete) {
      done |= 1u << lane;
      mbarrier_waited(warp, instr, *r.barrier);
    }
  }
  Fragment& f = warp.frag();
  if (done == 0 && instr.imm[0]) {
    if (!f.arrived) {
      f.arrived = true;
      f.token = 0;
      ++warp.launch->counters.mbarrier_waits;
    }
    return ExecStatus::Blocked;
  }
  warp.set_predicate(instr.op[0], mask, done);
  return done ? ExecStatus::Next : ExecStatus::Yield;
}

ExecStatus exec_pending_count(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    warp.set_value(instr.op[0], lane, (uint32_t)warp.value(instr.op[1], lane));
  }
  return ExecStatus::Next;
}

void decode_mbarrier(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Mbarrier;
  std::string_view op = a.parts[1];
  instr.flags = (a.has("shared::cluster") ? kCluster : 0u) | (a.has("parity") ? kParity : 0u) |
                (a.has("noComplete") ? kNoComplete : 0u) | (a.has("relaxed") ? kRelaxedArrive : 0u);
  auto source_at = [&](size_t i, uint32_t bytes) { return c.source(a.operands[i], bytes); };
  if (op == "init") {
    instr.addr = c.address(a.operands[0]);
    instr.op[1] = source_at(1, 4);
    instr.fn = &exec_mbarrier_init;
  } else if (op == "inval") {
    instr.addr = c.address(a.operands[0]);
    instr.fn = &exec_mbarrier_inval;
  } else if (op == "expect_tx" || op == "complete_tx") {
    instr.addr = c.address(a.operands[0]);
    instr.op[1] = source_at(1, 4);
    instr.imm[0] = op == "complete_tx";
    instr.fn = &exec_mbarrier_tx;
  } else if (op == "arrive" || op == "arrive_drop") {
    size_t at = 0;
    if (a.operands[0].kind != OperandAst::Kind::Address) {
      if (a.operands[0].kind == OperandAst::Kind::Name) instr.op[0] = c.dest(a.operands[0]);
      at = 1;
    }
    instr.addr = c.address(a.operands[at]);
    if (a.operands.size() > at + 1) instr.op[1] = source_at(at + 1, 4);
    if (a.has("expect_tx")) instr.flags |= kExpect;
    if (op == "arrive_drop") instr.flags |= kDrop;
    instr.fn = &exec_mbarrier_arrive;
  } else if (op == "test_wait" || op == "try_wait") {
    instr.imm[0] = op == "try_wait";
    instr.op[0] = c.predicate_dest(a.operands[0]);
    instr.addr = c.address(a.operands[1]);
    instr.op[1] = source_at(2, (instr.flags & kParity) ? 4 : 8);
    instr.fn = &exec_mbarrier_wait;
  } else if (op == "pending_count") {
    instr.op[0] = c.dest(a.operands[0]);
    instr.op[1] = source_at(1, 8);
    instr.fn = &exec_pending_count;
  }
}

// ---- fences ----
constexpr uint32_t kSequential = 1;  // Instr::flags

ExecStatus exec_fence(Warp& warp, const Instr& instr, uint32_t) {
  ++warp.launch->counters.fences;
  race_fence(warp, instr.device_scope, instr.flags & kSequential);
  return ExecStatus::Next;
}
ExecStatus exec_proxy_fence(Warp& warp, const Instr&, uint32_t mask) {
  ++warp.launch->counters.proxy_fences;
  for (int lane : Lanes(mask)) {
    ++warp.fence_epoch[lane];
    ++warp.init_fence_epoch[lane];
  }
  return ExecStatus::Next;
}
ExecStatus exec_init_fence(Warp& warp, const Instr&, uint32_t mask) {
  ++warp.launch->counters.fences;
  for (int lane : Lanes(mask)) ++warp.init_fence_epoch[lane];
  race_init_fence(warp);
  return ExecStatus::Next;
}

ExecStatus exec_other_proxy_fence(Warp& warp, const Instr&, uint32_t) {
  ++warp.launch->counters.fences;
  return ExecStatus::Next;
}

ExecStatus exec_set_max_registers(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  (void)mask;
  int64_t n = instr.imm[0];
  if (n < 24 || n > 256 || n % 8)
    warp.fail(instr, -1, format("setmaxnreg count %lld must be a multiple of 8 in [24, 256]", (long long)n));
  return ExecStatus::Next;
}

void decode_bar(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Barrier;
  if (a.has("warp")) {
    instr.op[0] = c.source(a.operands[0], 4);
    instr.fn = &exec_warp_sync;
    return;
  }
  if (a.has("cluster")) {
    instr.flags = (a.has("aligned") ? 1u : 0u) | (a.has("relaxed") ? kRelaxedArrive : 0u);
    instr.fn = a.has("arrive") ? &exec_cluster_arrive : &exec_cluster_wait;
    return;
  }
  instr.imm[0] = a.has("sync") ? kSync : a.has("arrive") ? kArrive : kRed;
  size_t at = 0;
  if (instr.imm[0] == kRed) {
    instr.imm[1] = a.has("popc") ? 0 : a.has("and") ? 1 : 2;
    instr.op[2] = instr.imm[1] ? c.predicate_dest(a.operands[0]) : c.dest(a.operands[0]);
    instr.op[3] = c.predicate(a.operands.back());
    at = 1;
  }
  size_t end = a.operands.size() - (instr.imm[0] == kRed ? 1 : 0);
  instr.op[0] = c.source(a.operands[at], 4);
  if (at + 1 < end) instr.op[1] = c.source(a.operands[at + 1], 4);
  instr.fn = &exec_bar;
}

}  // namespace

std::string wait_detail(const Warp& warp, const Fragment& f) {
  const Instr& instr = warp.program->code[f.pc];
  const int lane = first_lane(f.mask ? f.mask : 1);
  if (instr.fn == &exec_mbarrier_wait) {
    uint32_t offset = (uint32_t)(warp.address(instr.addr, lane) & ((1u << kCtaRankShift) - 1));
    auto it = warp.cta->shared.mbarriers.find(offset);
    if (it == warp.cta->shared.mbarriers.end()) return "";
    return format(
        "mbarrier 0x%x: phase %llu, pending arrivals %lld of %u, pending tx bytes %lld, waiting for parity %llu",
        offset, (unsigned long long)it->second.phase, (long long)it->second.pending, it->second.expected,
        (long long)it->second.tx, (unsigned long long)warp.value(instr.op[1], lane));
  }
  if (instr.fn == &exec_bar) {
    uint32_t id = warp.ptr<uint32_t>(instr.op[0])[lane];
    if (id >= 16) return "";
    const NamedBarrier& b = warp.cta->barriers[id];
    return format("barrier %u: %u of %u threads arrived", id, b.arrived,
                  b.expected ? b.expected : warp.cta->live_warps * kWarpSize);
  }
  if (instr.ast->opcode == "griddepcontrol.wait")
    return format("completion of the launch of kernel %s",
                  warp.launch->prerequisite ? warp.launch->prerequisite->program.kernel_name.c_str() : "before");
  if (instr.fn == &exec_cluster_wait)
    return format("cluster barrier: %u of %u lanes arrived", warp.cta->cluster->arrived_lanes,
                  warp.cta->cluster->live_lanes);
  return "";
}

void register_barrier_ops(OpTable& t) {
  t["bar"] = &decode_bar;
  t["barrier"] = &decode_bar;
  t["mbarrier"] = &decode_mbarrier;
  t["membar"] = [](DecodeContext&, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Fence;
    instr.device_scope = !a.has("cta");
    instr.flags = kSequential;  // membar is fence.sc
    instr.fn = &exec_fence;
  };
  t["fence"] = [](DecodeContext&, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Fence;
    instr.device_scope = !a.has("cta");
    instr.flags = a.has("sc") ? kSequential : 0u;
    bool proxy_async = a.opcode.find("fence.proxy.async") == 0;
    instr.fn = proxy_async                                      ? &exec_proxy_fence
               : a.has("mbarrier_init")                         ? &exec_init_fence
               : a.has("proxy") && !a.has("tensormap::generic") ? &exec_other_proxy_fence
                                                                : &exec_fence;
  };
  t["setmaxnreg"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Other;
    instr.imm[0] = (int64_t)c.immediate(a.operands[0]);
    instr.fn = &exec_set_max_registers;
  };
}

}  // namespace hunyuan_kernels::simulator
