// cp.async (per-thread copies), st.async / red.async, and non-tensor bulk copies.
#include <algorithm>

#include "simulator/bulk.h"
#include "simulator/decode.h"
#include "simulator/mbarrier.h"
#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {

void hold_cta(Cta& cta) { ++cta.async_in_flight; }
void release_cta(Cta& cta) { --cta.async_in_flight; }
void hold_incoming(Cta& cta, Warp& warp, const Instr& instr, int lane) {
  hold_cta(cta);
  ++cta.incoming;
  cta.last_incoming = {&warp, &instr, lane};
}
void release_incoming(Cta& cta) {
  --cta.incoming;
  release_cta(cta);
}

std::shared_ptr<PendingCopy> add_pending(std::vector<std::shared_ptr<PendingCopy>>& list, Warp& warp, uint32_t mask,
                                         const uint32_t* groups) {
  auto p = std::make_shared<PendingCopy>();
  p->warp = &warp;
  p->mask = mask;
  memcpy(p->group, groups, sizeof(p->group));
  list.push_back(p);
  return p;
}

bool groups_done(std::vector<std::shared_ptr<PendingCopy>>& list, Warp& warp, uint32_t mask, const uint32_t* groups,
                 uint32_t keep, bool read_only) {
  std::erase_if(list, [](auto& p) { return p->done && !p->source; });
  for (auto& p : list) {
    if (p->warp != &warp || (read_only && p->read_done)) continue;
    for (int lane : Lanes(p->mask & mask)) {
      if (!p->done && p->group[lane] + keep < groups[lane]) return false;
    }
  }
  for (auto& p : list) {  // the waiting thread may now overwrite the sources
    if (p->warp != &warp || !p->source) continue;
    const int lane = first_lane(p->mask);
    if (!((mask >> lane) & 1) || p->group[lane] + keep >= groups[lane]) continue;
    add_async_reader(*p->source, p->offset, p->bytes, -1);
    p->source = nullptr;
  }
  return true;
}

void hold_source(PendingCopy& p, const Instr& instr, Cta& owner, uint32_t offset, uint32_t bytes) {
  p.instr = &instr;
  add_async_reader(owner, offset, bytes, 1);
  p.source = &owner;
  p.offset = offset;
  p.bytes = bytes;
}

namespace {

constexpr uint32_t kAllGroups = 0x7fffffff;

// ---- cp.async ----
// imm[0]: bytes; op[0] source size, op[1] ignore-source predicate
ExecStatus exec_cp_async(Warp& warp, const Instr& instr, uint32_t mask) {
  struct Copy {
    uint32_t offset;
    uint64_t source;
    uint32_t copied;
  };
  const uint32_t bytes = (uint32_t)instr.imm[0];
  auto copies = std::make_shared<std::vector<Copy>>();
  uint64_t addresses[kWarpSize];
  uint32_t n = 0;
  Cta& cta = *warp.cta;
  for (int lane : Lanes(mask)) {
    uint64_t destination = warp.address(instr.addr, lane), source = warp.address(instr.addr2, lane);
    if ((destination & kWindowMask) == kSharedWindow) destination &= ~kWindowMask;
    uint32_t copied = instr.op[0].present ? std::min(bytes, warp.ptr<uint32_t>(instr.op[0])[lane]) : bytes, offset;
    if (instr.op[1].present && (warp.predicate(instr.op[1]) >> lane) & 1) copied = 0;
    Cta& owner = shared_owner(warp, instr, lane, destination, false, offset);
    if (offset % bytes) warp.fail(instr, lane, format("misaligned cp.async destination 0x%x", offset));
    if (offset < owner.shared.base || offset + bytes > owner.shared.limit)
      warp.fail(instr, lane, format("out-of-bounds cp.async destination 0x%x", offset));
    check_async_overwrite(warp, instr, lane, owner, offset, bytes <= 8 ? 0 : bytes);
    if (source % bytes) warp.fail(instr, lane, format("misaligned cp.async source 0x%llx", (unsigned long long)source));
    if (copied) {
      global_range(warp, instr, lane, source, copied, false);
      addresses[n++] = source;
    }
    copies->push_back({offset, source, copied});
  }
  if (n) warp.launch->counters.global_access(false, addresses, n, bytes);
  warp.launch->counters.cp_async_bytes += uint64_t(bytes) * copies->size();
  for (auto& c : *copies) add_async_writer(cta, c.offset, bytes, 1);
  hold_cta(cta);
  auto pending = add_pending(warp.launch->pending_copies, warp, mask, warp.cp_async_group);
  warp.launch->defer([copies, pending, bytes, &cta] {
    for (auto& c : *copies) {
      uint8_t data[16] = {};
      memcpy(data, (const void*)c.source, c.copied);
      add_async_writer(cta, c.offset, bytes, -1);
      async_write(cta, c.offset, data, bytes);  // not tracked as a generic-proxy write
    }
    pending->done = true;
    release_cta(cta);
  });
  return ExecStatus::Next;
}

ExecStatus exec_cp_async_commit(Warp& warp, const Instr&, uint32_t mask) {
  for (int lane : Lanes(mask)) ++warp.cp_async_group[lane];
  return ExecStatus::Next;
}

// imm[0]: groups that may stay pending, -1 waits for everything
ExecStatus exec_cp_async_wait(Warp& warp, const Instr& instr, uint32_t mask) {
  if (instr.imm[0] < 0) {
    uint32_t all[kWarpSize];
    std::fill(std::begin(all), std::end(all), kAllGroups);
    return groups_done(warp.launch->pending_copies, warp, mask, all, 0, false) ? ExecStatus::Next : ExecStatus::Blocked;
  }
  return groups_done(warp.launch->pending_copies, warp, mask, warp.cp_async_group, (uint32_t)instr.imm[0], false)
             ? ExecStatus::Next
             : ExecStatus::Blocked;
}

// cp.async.mbarrier.arrive: arrives once all earlier cp.async of the thread are complete. flags 1: noinc
ExecStatus exec_cp_async_arrive(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    MBarrierRef r = mbarrier_at(warp, instr, lane, warp.address(instr.addr, lane), false);
    if (!(instr.flags & 1)) ++r.barrier->pending;
    std::vector<std::shared_ptr<PendingCopy>> earlier;
    for (auto& p : warp.launch->pending_copies)
      if (p->warp == &warp && !p->done && (p->mask >> lane) & 1) earlier.push_back(p);
    Cta& cta = *warp.cta;
    hold_cta(cta);
    auto arrive = std::make_shared<std::function<void()>>();
    Warp* issuer = &warp;
    const Instr* issued = &instr;
    uint64_t address = warp.address(instr.addr, lane);
    *arrive = [=, &cta] {
      for (auto& p : earlier)
        if (!p->done) {
          issuer->launch->defer(*arrive);
          return;
        }
      mbarrier_arrive(*issuer, *issued, lane, mbarrier_at(*issuer, *issued, lane, address, false), 1);
      release_cta(cta);
    };
    warp.launch->defer(*arrive);
  }
  return ExecStatus::Next;
}

// ---- bulk copies without a tensor map ----
enum : uint32_t { kToGlobal = 1, kFromShared = 2, kMulticast = 4, kReduce = 8 };

// addr destination, addr2 source; op[0] size, op[1] mbarrier address (list[0]), op[2] multicast mask
// imm[0]: AtomicOp of a reduction, type: its element type
ExecStatus exec_bulk_copy(Warp& warp, const Instr& instr, uint32_t mask) {
  Launch& launch = *warp.launch;
  for (int lane : Lanes(mask)) {
    uint64_t destination = warp.address(instr.addr, lane), source = warp.address(instr.addr2, lane);
    const uint32_t bytes = warp.ptr<uint32_t>(instr.op[0])[lane];
    if (bytes % 16 || destination % 16 || source % 16)
      warp.fail(instr, lane, format("bulk copy of %u bytes: size and both addresses must be multiples of 16", bytes));
    if (bytes == 0) continue;
    const Instr* issued = &instr;
    Warp* issuer = &warp;
    auto strip = [](uint64_t a) { return (a & kWindowMask) == kSharedWindow ? a & ~kWindowMask : a; };
    if (instr.flags & kToGlobal) {
      uint32_t offset;
      Cta& owner = async_shared_range(warp, instr, lane, strip(source), bytes, offset);
      check_async_read(warp, instr, lane, owner, offset, bytes);
      global_range(warp, instr, lane, destination, bytes, true);
      hold_cta(owner);
      ++launch.counters.tma_stores;
      launch.counters.tma_store_bytes += bytes;
      auto pending = add_pending(launch.pending_bulk, warp, 1u << lane, warp.bulk_group);
      hold_source(*pending, instr, owner, offset, bytes);
      race_bulk_read(warp, instr, lane, owner, offset, bytes);
      auto data = std::make_shared<std::vector<uint8_t>>();
      launch.defer([=, &owner] {
        data->assign(&owner.shared.data[offset], &owner.shared.data[offset] + bytes);
        pending->read_done = true;
        issuer->launch->defer([=] {
          apply_bulk((uint8_t*)destination, data->data(), bytes, *issued, (issued->flags & kReduce) != 0);
          pending->done = true;
        });
        release_cta(owner);
      });
      continue;
    }
    // Destination in shared memory of this block or the cluster.
    uint32_t destination_offset, source_offset = 0;
    Cta& target = async_shared_range(warp, instr, lane, strip(destination), bytes, destination_offset);
    Cta* from = nullptr;
    if (instr.flags & kFromShared) {
      from = &async_shared_range(warp, instr, lane, strip(source), bytes, source_offset);
      check_async_read(warp, instr, lane, *from, source_offset, bytes);
      add_async_reader(*from, source_offset, bytes, 1);
      hold_cta(*from);
    } else {
      global_range(warp, instr, lane, source, bytes, false);
    }
    uint64_t barrier = strip(warp.address({instr.list[0], SymbolBase::None, 0}, lane));
    uint32_t ctas = 1u << target.rank;
    if (instr.flags & kMulticast) ctas = (uint32_t)warp.value(instr.op[2], lane);
    for (int rank : Lanes(ctas)) {
      if ((size_t)rank >= warp.cta->cluster->ctas.size())
        warp.fail(instr, lane, format("multicast to block rank %u outside the cluster", rank));
      Cta& t = *warp.cta->cluster->ctas[rank];
      if (!(instr.flags & kReduce)) check_async_overwrite(warp, instr, lane, t, destination_offset, bytes);
      add_async_writer(t, destination_offset, bytes, 1);
      hold_incoming(t, warp, instr, lane);
    }
    ++launch.counters.tma_loads;
    launch.counters.tma_load_bytes += bytes;
    Cluster* cluster = warp.cta->cluster;
    launch.defer([=] {
      std::vector<uint8_t> data(bytes);
      if (from) {
        memcpy(data.data(), &from->shared.data[source_offset], bytes);
        add_async_reader(*from, source_offset, bytes, -1);
        release_cta(*from);
      } else {
        memcpy(data.data(), (const void*)source, bytes);
      }
      for (int rank : Lanes(ctas)) {
        Cta& t = *cluster->ctas[rank];
        add_async_writer(t, destination_offset, bytes, -1);
        if (issued->flags & kReduce) {
          apply_bulk(&t.shared.data[destination_offset], data.data(), bytes, *issued, true);
        } else {
          async_write(t, destination_offset, data.data(), bytes);
        }
        uint64_t address = (uint64_t(t.rank) << kCtaRankShift) | (barrier & ((1u << kCtaRankShift) - 1));
        mbarrier_complete_tx(
            *issuer, *issued, lane,
            mbarrier_at(*issuer, *issued, lane, (issued->flags & kMulticast) ? address : barrier, true), bytes);
        release_incoming(t);
      }
    });
  }
  return ExecStatus::Next;
}

ExecStatus exec_bulk_commit(Warp& warp, const Instr&, uint32_t mask) {
  for (int lane : Lanes(mask)) ++warp.bulk_group[lane];
  return ExecStatus::Next;
}
ExecStatus exec_bulk_wait(Warp& warp, const Instr& instr, uint32_t mask) {
  const auto keep = static_cast<uint32_t>(instr.imm[0]);
  if (!groups_done(warp.launch->pending_bulk, warp, mask, warp.bulk_group, keep, instr.flags & 1))
    return ExecStatus::Blocked;
  for (int lane : Lanes(mask))
    if (warp.bulk_group[lane] > keep) race_bulk_wait(warp, lane, warp.bulk_group[lane] - keep);
  return ExecStatus::Next;
}
ExecStatus exec_no_op(Warp&, const Instr&, uint32_t) { return ExecStatus::Next; }

// st.async / red.async: list values, list2[0] mbarrier; imm[0] AtomicOp or -1
ExecStatus exec_store_async(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t element = size_of(instr.type), bytes = element * instr.vec;
  for (int lane : Lanes(mask)) {
    uint32_t offset;
    Cta& owner = async_shared_range(warp, instr, lane, warp.address(instr.addr, lane), bytes, offset);
    if (offset % bytes) warp.fail(instr, lane, format("misaligned shared address 0x%x", offset));
    std::vector<uint8_t> data(bytes);
    for (uint32_t v = 0; v < instr.vec; ++v) {
      uint64_t x = warp.value(instr.list[v], lane);
      memcpy(&data[v * element], &x, element);
    }
    uint64_t barrier = warp.address({instr.list2[0], SymbolBase::None, 0}, lane);
    hold_incoming(owner, warp, instr, lane);
    Warp* issuer = &warp;
    const Instr* issued = &instr;
    warp.launch->defer([=, &owner] {
      if (issued->imm[0] < 0)
        async_write(owner, offset, data.data(), bytes);
      else {
        uint64_t a = 0, b = 0;
        memcpy(&a, &owner.shared.data[offset], bytes);
        memcpy(&b, data.data(), bytes);
        a = reduce_value((AtomicOp)issued->imm[0], issued->type, a, b);
        memcpy(&owner.shared.data[offset], &a, bytes);
      }
      mbarrier_complete_tx(*issuer, *issued, lane, mbarrier_at(*issuer, *issued, lane, barrier, true), bytes);
      release_incoming(owner);
    });
  }
  return ExecStatus::Next;
}

void decode_async_store(DecodeContext& c, const InstrAst& a, Instr& instr, bool reduce) {
  instr.cls = InstrClass::AsyncCopy;
  instr.type = parse_scalar_type(a.parts.back());
  instr.vec = a.has("v2") ? 2 : a.has("v4") ? 4 : 1;
  if (!a.has("shared::cluster")) c.unsupported();
  instr.addr = c.address(a.operands[0]);
  const OperandAst& v = a.operands[1];
  if (v.kind == OperandAst::Kind::Vector)
    for (auto& e : v.elements) instr.list.push_back(c.source(e, size_of(instr.type)));
  else
    instr.list.push_back(c.source(v, size_of(instr.type)));
  AddressMode barrier = c.address(a.operands[2]);
  if (!barrier.base.present || barrier.offset) c.unsupported("mbarrier address must be a register");
  instr.list2.push_back(barrier.base);
  instr.imm[0] = -1;
  AtomicOp op;
  if (reduce)
    for (auto p : a.parts)
      if (parse_atomic_op(p, op)) instr.imm[0] = (int64_t)op;
  instr.fn = &exec_store_async;
}

}  // namespace

// Copies or reduces a run of elements.
void apply_bulk(uint8_t* destination, const uint8_t* data, uint32_t bytes, const Instr& instr, bool reduce) {
  if (!reduce) {
    memcpy(destination, data, bytes);
    return;
  }
  const uint32_t size = size_of(instr.type);
  for (uint32_t i = 0; i < bytes; i += size) {
    uint64_t a = 0, b = 0;
    memcpy(&a, destination + i, size);
    memcpy(&b, data + i, size);
    a = reduce_value((AtomicOp)instr.imm[0], instr.type, a, b);
    memcpy(destination + i, &a, size);
  }
}

void decode_store_async(DecodeContext& c, const InstrAst& a, Instr& instr) { decode_async_store(c, a, instr, false); }
void decode_reduce_async(DecodeContext& c, const InstrAst& a, Instr& instr) { decode_async_store(c, a, instr, true); }

void decode_cp(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::AsyncCopy;
  if (a.parts[1] != "async" && a.parts[1] != "reduce") c.unsupported();
  if (a.has("tensor")) {
    decode_tensor_copy(c, a, instr);
    return;
  }
  const bool reduce = a.parts[1] == "reduce";
  if (a.has("bulk")) {
    instr.cls = InstrClass::Tma;
    if (a.has("prefetch")) {
      instr.fn = &exec_no_op;
      return;
    }
    if (a.has("commit_group")) {
      instr.fn = &exec_bulk_commit;
      return;
    }
    if (a.has("wait_group")) {
      instr.imm[0] = (int64_t)c.immediate(a.operands[0]);
      instr.flags = a.has("read");
      instr.fn = &exec_bulk_wait;
      return;
    }
    if (a.has("cp_mask")) c.unsupported();
    instr.addr = c.address(a.operands[0]);
    instr.addr2 = c.address(a.operands[1]);
    instr.op[0] = c.source(a.operands[2], 4);
    // The first space names the destination.
    size_t global_at = 99, shared_at = 99;
    for (size_t i = 0; i < a.parts.size(); ++i) {
      if (a.parts[i] == "global" && global_at == 99) global_at = i;
      if (a.parts[i].substr(0, 6) == "shared" && shared_at == 99) shared_at = i;
    }
    if (global_at < shared_at)
      instr.flags |= kToGlobal;
    else if (global_at == 99)
      instr.flags |= kFromShared;
    if (a.has("multicast::cluster")) instr.flags |= kMulticast;
    if (reduce) {
      instr.flags |= kReduce;
      instr.strong = true;
      instr.type = parse_scalar_type(a.parts.back());
      AtomicOp op = AtomicOp::Add;
      for (auto p : a.parts) parse_atomic_op(p, op);
      instr.imm[0] = (int64_t)op;
    }
    if (!(instr.flags & kToGlobal)) {
      AddressMode barrier = c.address(a.operands[3]);
      if (!barrier.base.present || barrier.offset) c.unsupported("mbarrier address must be a register");
      instr.list.push_back(barrier.base);
      if (instr.flags & kMulticast) instr.op[2] = c.any_source(a.operands[4], 2);
    }
    instr.fn = &exec_bulk_copy;
    return;
  }
  if (a.has("commit_group")) {
    instr.fn = &exec_cp_async_commit;
    return;
  }
  if (a.has("wait_group")) {
    instr.imm[0] = (int64_t)c.immediate(a.operands[0]);
    instr.fn = &exec_cp_async_wait;
    return;
  }
  if (a.has("wait_all")) {
    instr.imm[0] = -1;
    instr.fn = &exec_cp_async_wait;
    return;
  }
  if (a.has("mbarrier")) {
    instr.flags = a.has("noinc");
    instr.addr = c.address(a.operands[0]);
    instr.fn = &exec_cp_async_arrive;
    return;
  }
  instr.addr = c.address(a.operands[0]);
  instr.addr2 = c.address(a.operands[1]);
  instr.imm[0] = (int64_t)c.immediate(a.operands[2]);
  if (instr.imm[0] != 4 && instr.imm[0] != 8 && instr.imm[0] != 16) c.unsupported("size");
  if (a.operands.size() > 3) {
    const OperandAst& o = a.operands[3];
    bool is_predicate = c.is_predicate(o);
    if (!is_predicate && !a.has("L2::cache_hint"))
      instr.op[0] = c.source(o, 4);
    else if (is_predicate)
      instr.op[1] = c.predicate(o);
  }
  instr.fn = &exec_cp_async;
}

void register_async_copy_ops(OpTable& t) { t["cp"] = &decode_cp; }

}  // namespace hunyuan_kernels::simulator
