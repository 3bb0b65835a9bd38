// Warp collectives: shfl, vote, match, redux, elect, activemask, ldmatrix, stmatrix, movmatrix.
#include "simulator/decode.h"
#include "simulator/definedness.h"
#include "simulator/lanes.h"
#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {
namespace {

// Lanes that the .sync instruction of the current fragment has to wait for.
bool wait_for_members(Warp& warp, const Instr& instr, uint32_t mask, const Operand& members) {
  uint32_t needed = 0;
  const uint32_t* m = warp.ptr<uint32_t>(members);
  for (int lane : Lanes(mask)) {
    if (!((m[lane] >> lane) & 1))
      warp.fail(instr, lane, format("member mask 0x%08x does not contain the executing lane", m[lane]));
    needed |= m[lane];
  }
  return warp.converged(needed);
}

// imm[0]: 0 idx, 1 up, 2 down, 3 bfly
ExecStatus exec_shfl(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!wait_for_members(warp, instr, mask, instr.op[4])) return ExecStatus::Blocked;
  uint32_t source[kWarpSize], predicate = 0;
  memcpy(source, warp.ptr<uint32_t>(instr.op[1]), sizeof(source));
  const uint32_t *b = warp.ptr<uint32_t>(instr.op[2]), *c = warp.ptr<uint32_t>(instr.op[3]);
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for (int lane : Lanes(mask)) {
    const int segment = (c[lane] >> 8) & 31, clamp = c[lane] & 31, offset = b[lane] & 31;
    const int max_lane = (lane & segment) | (clamp & ~segment), min_lane = lane & segment;
    int j;
    bool valid;
    switch (instr.imm[0]) {
      case 0:
        j = min_lane | (offset & ~segment & 31);
        valid = j <= max_lane;
        break;
      case 1:
        j = lane - offset;
        valid = j >= max_lane;
        break;
      case 2:
        j = lane + offset;
        valid = j <= max_lane;
        break;
      default:
        j = lane ^ offset;
        valid = j <= max_lane;
        break;
    }
    if (!valid) j = lane;
    d[lane] = source[j];
    if (valid) predicate |= 1u << lane;
  }
  if (!instr.list.empty()) warp.set_predicate(instr.list[0], mask, predicate);
  return ExecStatus::Next;
}

// imm[0]: 0 all, 1 any, 2 uni, 3 ballot
ExecStatus exec_vote(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!wait_for_members(warp, instr, mask, instr.op[2])) return ExecStatus::Blocked;
  const uint32_t p = warp.predicate(instr.op[1]) & mask;
  const uint32_t* members = warp.ptr<uint32_t>(instr.op[2]);
  uint32_t result = 0;
  for (int lane : Lanes(mask)) {
    uint32_t who = members[lane] & mask, yes = p & who;
    if (instr.imm[0] == 3) warp.ptr<uint32_t>(instr.op[0])[lane] = yes;
    bool r = instr.imm[0] == 0 ? yes == who : instr.imm[0] == 1 ? yes != 0 : (yes == 0 || yes == who);
    if (r) result |= 1u << lane;
  }
  if (instr.imm[0] != 3) warp.set_predicate(instr.op[0], mask, result);
  return ExecStatus::Next;
}

ExecStatus exec_match(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!wait_for_members(warp, instr, mask, instr.op[2])) return ExecStatus::Blocked;
  const uint32_t* members = warp.ptr<uint32_t>(instr.op[2]);
  const bool all = instr.imm[0];
  uint32_t results[kWarpSize] = {}, predicate = 0;
  for (int lane : Lanes(mask)) {
    uint32_t who = members[lane] & mask, equal = 0;
    for (int other : Lanes(who))
      if (warp.value(instr.op[1], other) == warp.value(instr.op[1], lane)) equal |= 1u << other;
    results[lane] = all ? (equal == who ? who : 0) : equal;
    if (equal == who) predicate |= 1u << lane;
  }
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = results[lane]; });
  if (!instr.list.empty()) warp.set_predicate(instr.list[0], mask, predicate);
  return ExecStatus::Next;
}

ExecStatus exec_redux(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!wait_for_members(warp, instr, mask, instr.op[2])) return ExecStatus::Blocked;
  const uint32_t* members = warp.ptr<uint32_t>(instr.op[2]);
  uint32_t results[kWarpSize];
  for (int lane : Lanes(mask)) {
    uint32_t who = members[lane] & mask;
    uint64_t r = warp.value(instr.op[1], first_lane(who));
    for (int other : Lanes(who & (who - 1)))
      r = reduce_value((AtomicOp)instr.imm[0], instr.type, r, warp.value(instr.op[1], other));
    results[lane] = (uint32_t)r;
  }
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = results[lane]; });
  return ExecStatus::Next;
}

ExecStatus exec_active_mask(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = mask; });
  return ExecStatus::Next;
}

ExecStatus exec_elect(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!wait_for_members(warp, instr, mask, instr.op[1])) return ExecStatus::Blocked;
  const uint32_t members = warp.ptr<uint32_t>(instr.op[1])[first_lane(mask)] & mask;
  const int leader = first_lane(members);
  for (int lane : Lanes(mask)) warp.set_value(instr.op[0], lane, leader);
  if (!instr.list.empty()) warp.set_predicate(instr.list[0], mask, 1u << leader);
  return ExecStatus::Next;
}

// imm[0]: number of matrices; flags: 1 trans, 2 store
ExecStatus exec_matrix(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  if (mask != kFullMask) warp.fail(instr, -1, "ldmatrix/stmatrix needs all 32 lanes");
  const bool trans = instr.flags & 1, store = instr.flags & 2;
  const bool check = warp.launch->options.check_uninitialized_shared;
  for (int matrix = 0; matrix < (int)instr.imm[0]; ++matrix) {
    uint8_t *rows[8], *marks[8];
    bool undefined = store && warp.follows_undefined;
    uint64_t addresses[8];
    for (int r = 0; r < 8; ++r) {
      int lane = matrix * 8 + r;
      addresses[r] = warp.address(instr.addr, lane);
      rows[r] = memory_pointer(warp, instr, lane, addresses[r], 16, store ? Access::Write : Access::Follow);
      marks[r] = warp.shared_marks;
      undefined |= !store && check && marks[r] && memchr(marks[r], 0, 16);
    }
    warp.launch->counters.shared_access(store ? Counters::StMatrix : Counters::LdMatrix, addresses, 8, 16);
    uint32_t* reg = warp.ptr<uint32_t>(instr.list[matrix]);
    for (int t = 0; t < 32; ++t) {
      for (int e = 0; e < 2; ++e) {
        uint8_t* element = trans ? rows[(t % 4) * 2 + e] + (t / 4) * 2 : rows[t / 4] + ((t % 4) * 2 + e) * 2;
        uint8_t* half = reinterpret_cast<uint8_t*>(&reg[t]) + 2 * e;
        if (store)
          memcpy(element, half, 2);
        else
          memcpy(half, element, 2);
        if (!undefined) continue;
        const int row = trans ? (t % 4) * 2 + e : t / 4;
        uint8_t* mark = marks[row] ? marks[row] + (element - rows[row]) : nullptr;
        if (store)
          store_undefined(warp, instr, t, instr.list[matrix], 2 * e, 2, mark);
        else if (mark)
          load_undefined(warp, instr, t, instr.list[matrix], 2 * e, 2, mark, addresses[row]);
      }
    }
  }
  return ExecStatus::Next;
}

ExecStatus exec_move_matrix(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  (void)mask;
  uint16_t in[64], *d = warp.ptr<uint16_t>(instr.op[0]);
  memcpy(in, warp.ptr<uint16_t>(instr.op[1]), sizeof(in));  // row-major 8x8: lane t holds row t/4, columns 2(t%4)..
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) d[r * 8 + c] = in[c * 8 + r];
  return ExecStatus::Next;
}

void pair_destination(DecodeContext& c, const OperandAst& o, Instr& instr) {
  if (Operand pair = c.pair_dest(o); pair.present) instr.list.push_back(pair);
}

}  // namespace

void register_collective_ops(OpTable& t) {
  t["shfl"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    if (!a.has("sync")) c.unsupported();
    instr.cls = InstrClass::WarpCollective;
    instr.flow = DataFlow::Shuffle;
    instr.imm[0] = a.has("idx") ? 0 : a.has("up") ? 1 : a.has("down") ? 2 : 3;
    instr.op[0] = c.dest(a.operands[0], 4);
    pair_destination(c, a.operands[0], instr);
    for (int i = 1; i <= 4; ++i) instr.op[i] = c.source(a.operands[i], 4);
    instr.fn = &exec_shfl;
  };
  t["vote"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    if (!a.has("sync")) c.unsupported();
    instr.cls = InstrClass::WarpCollective;
    instr.imm[0] = a.has("all") ? 0 : a.has("any") ? 1 : a.has("uni") ? 2 : 3;
    instr.op[0] = instr.imm[0] == 3 ? c.dest(a.operands[0], 4) : c.predicate_dest(a.operands[0]);
    instr.op[1] = c.predicate(a.operands[1]);
    instr.op[2] = c.source(a.operands[2], 4);
    instr.fn = &exec_vote;
  };
  t["match"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::WarpCollective;
    instr.imm[0] = a.has("all");
    instr.op[0] = c.dest(a.operands[0], 4);
    pair_destination(c, a.operands[0], instr);
    instr.op[1] = c.source(a.operands[1], size_of(type_part(a)));
    instr.op[2] = c.source(a.operands[2], 4);
    instr.fn = &exec_match;
  };
  t["redux"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::WarpCollective;
    instr.type = type_part(a);
    AtomicOp op = AtomicOp::Add;
    for (auto p : a.parts) parse_atomic_op(p, op);
    instr.imm[0] = (int64_t)op;
    instr.op[0] = c.dest(a.operands[0], 4);
    instr.op[1] = c.source(a.operands[1], 4);
    instr.op[2] = c.source(a.operands[2], 4);
    instr.fn = &exec_redux;
  };
  t["activemask"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::WarpCollective;
    instr.op[0] = c.dest(a.operands[0], 4);
    instr.fn = &exec_active_mask;
  };
  t["elect"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::WarpCollective;
    instr.op[0] = c.dest(a.operands[0]);
    pair_destination(c, a.operands[0], instr);
    instr.op[1] = c.source(a.operands[1], 4);
    instr.fn = &exec_elect;
  };
  auto matrix = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    bool store = a.parts[0] == "stmatrix";
    instr.cls = InstrClass::MatrixLoadStore;
    if (!a.has("m8n8") || !a.has("b16")) c.unsupported();
    instr.imm[0] = a.has("x4") ? 4 : a.has("x2") ? 2 : 1;
    instr.flags = (a.has("trans") ? 1 : 0) | (store ? 2 : 0);
    instr.space = a.has("shared") || a.has("shared::cta") ? Space::Shared : Space::Generic;
    instr.addr = c.address(a.operands[store ? 0 : 1]);
    const OperandAst& v = a.operands[store ? 1 : 0];
    if (v.kind == OperandAst::Kind::Vector)
      for (auto& e : v.elements) instr.list.push_back(store ? c.source(e, 4) : c.dest(e, 4));
    else
      instr.list.push_back(store ? c.source(v, 4) : c.dest(v, 4));
    if ((int64_t)instr.list.size() != instr.imm[0]) c.unsupported("register count");
    instr.fn = &exec_matrix;
  };
  t["ldmatrix"] = matrix;
  t["stmatrix"] = matrix;
  t["movmatrix"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::MatrixLoadStore;
    instr.flow = DataFlow::Copy;
    instr.op[0] = c.dest(a.operands[0], 4);
    instr.op[1] = c.source(a.operands[1], 4);
    instr.fn = &exec_move_matrix;
  };
}

}  // namespace hunyuan_kernels::simulator
