// atom and red, scalar and vector forms.
#include <algorithm>
#include <cmath>

#include "simulator/decode.h"
#include "simulator/floats.h"
#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {

// Combines two values; shared with bulk reductions.
uint64_t reduce_value(AtomicOp op, ScalarType t, uint64_t a, uint64_t b) {
  using T = ScalarType;
  switch (op) {
    case AtomicOp::And: return a & b;
    case AtomicOp::Or: return a | b;
    case AtomicOp::Xor: return a ^ b;
    case AtomicOp::Exch: return b;
    case AtomicOp::Inc: return (uint32_t)a >= (uint32_t)b ? 0 : (uint32_t)a + 1;
    case AtomicOp::Dec: return ((uint32_t)a == 0 || (uint32_t)a > (uint32_t)b) ? (uint32_t)b : (uint32_t)a - 1;
    default: break;
  }
  auto real = [&](double x, double y) {
    if (op == AtomicOp::Add) return x + y;
    if (std::isnan(x)) return y;
    if (std::isnan(y)) return x;
    return op == AtomicOp::Min ? std::min(x, y) : std::max(x, y);
  };
  switch (t) {
    case T::U32:
    case T::B32:
      return op == AtomicOp::Add   ? (uint32_t)(a + b)
             : op == AtomicOp::Min ? std::min((uint32_t)a, (uint32_t)b)
                                   : std::max((uint32_t)a, (uint32_t)b);
    case T::S32:
      return (uint32_t)(op == AtomicOp::Add   ? (int32_t)(a + b)
                        : op == AtomicOp::Min ? std::min((int32_t)a, (int32_t)b)
                                              : std::max((int32_t)a, (int32_t)b));
    case T::U64:
    case T::B64: return op == AtomicOp::Add ? a + b : op == AtomicOp::Min ? std::min(a, b) : std::max(a, b);
    case T::S64:
      return op == AtomicOp::Add ? a + b
                                 : (uint64_t)(op == AtomicOp::Min ? std::min((int64_t)a, (int64_t)b)
                                                                  : std::max((int64_t)a, (int64_t)b));
    case T::F32: {
      float x = bit_cast<float>((uint32_t)a), y = bit_cast<float>((uint32_t)b);
      return bit_cast<uint32_t>(op == AtomicOp::Add ? x + y : (float)real(x, y));
    }
    case T::F64: return bit_cast<uint64_t>(real(bit_cast<double>(a), bit_cast<double>(b)));
    case T::F16: return Half::store(real(Half::load({(uint16_t)a}), Half::load({(uint16_t)b}))).bits;
    case T::BF16: return Bf16::store(real(Bf16::load({(uint16_t)a}), Bf16::load({(uint16_t)b}))).bits;
    case T::F16x2:
    case T::BF16x2: {
      T e = t == T::F16x2 ? T::F16 : T::BF16;
      return reduce_value(op, e, a & 0xffff, b & 0xffff) |
             (reduce_value(op, e, (a >> 16) & 0xffff, (b >> 16) & 0xffff) << 16);
    }
    default: return 0;
  }
}

bool parse_atomic_op(std::string_view text, AtomicOp& op) {
  static const std::pair<const char*, AtomicOp> names[] = {
      {"add", AtomicOp::Add}, {"min", AtomicOp::Min}, {"max", AtomicOp::Max},   {"and", AtomicOp::And},
      {"or", AtomicOp::Or},   {"xor", AtomicOp::Xor}, {"exch", AtomicOp::Exch}, {"cas", AtomicOp::Cas},
      {"inc", AtomicOp::Inc}, {"dec", AtomicOp::Dec}};
  for (auto& [n, o] : names)
    if (text == n) {
      op = o;
      return true;
    }
  return false;
}

namespace {

// imm[0]: AtomicOp, list: destinations (atom only), list2: operands, op[1]: cas new value
ExecStatus exec_atomic(Warp& warp, const Instr& instr, uint32_t mask) {
  const AtomicOp op = (AtomicOp)instr.imm[0];
  const uint32_t bytes = size_of(instr.type);
  uint64_t addresses[kWarpSize];
  uint32_t n = 0;
  Space actual = instr.space;
  bool changed = false;
  for (int lane : Lanes(mask)) {
    addresses[n] = warp.address(instr.addr, lane);
    uint8_t* p = memory_pointer(warp, instr, lane, addresses[n++], bytes * instr.vec, Access::Update, &actual);
    for (uint32_t v = 0; v < instr.vec; ++v, p += bytes) {
      if (bytes == 16) {
        uint8_t old[16];
        memcpy(old, p, 16);
        const uint8_t* b = warp.ptr<uint8_t>(instr.list2[v]) + lane * 16;
        if (op == AtomicOp::Exch)
          memcpy(p, b, 16);
        else if (memcmp(old, b, 16) == 0)
          memcpy(p, warp.ptr<uint8_t>(instr.op[1]) + lane * 16, 16);
        if (!instr.list.empty()) memcpy(warp.ptr<uint8_t>(instr.list[v]) + lane * 16, old, 16);
        changed = true;
        continue;
      }
      uint64_t old = 0;
      memcpy(&old, p, bytes);
      uint64_t b = warp.value(instr.list2[v], lane), updated;
      if (op == AtomicOp::Cas)
        updated = old == b ? warp.value(instr.op[1], lane) : old;
      else
        updated = reduce_value(op, instr.type, old, b);
      memcpy(p, &updated, bytes);
      changed |= updated != old;
      if (!instr.list.empty()) warp.set_value(instr.list[v], lane, old);
    }
  }
  ++warp.launch->counters.atomic_requests;
  if (actual == Space::Shared || actual == Space::SharedCluster)
    warp.launch->counters.shared_access(Counters::SharedAtomic, addresses, n, bytes);
  if (changed) warp.launch->progress();
  return ExecStatus::Next;
}

void decode_atomic(DecodeContext& c, const InstrAst& a, Instr& instr) {
  const bool atom = a.parts[0] == "atom";
  instr.cls = InstrClass::Atomic;
  instr.type = parse_scalar_type(a.parts.back());
  instr.vec = a.has("v2") ? 2 : a.has("v4") ? 4 : a.has("v8") ? 8 : 1;
  instr.space = Space::Generic;
  decode_ordering(a, instr);
  instr.strong = true;
  AtomicOp op = AtomicOp::Add;
  bool found = false;
  for (auto p : a.parts) {
    if (p == "global") instr.space = Space::Global;
    if (p == "shared" || p == "shared::cta") instr.space = Space::Shared;
    if (p == "shared::cluster") instr.space = Space::SharedCluster;
    found |= parse_atomic_op(p, op);
  }
  if (!found || a.has("async")) c.unsupported();
  instr.imm[0] = (int64_t)op;
  size_t at = atom ? 1 : 0;
  const uint32_t bytes = size_of(instr.type);
  auto collect = [&](const OperandAst& o, std::vector<Operand>& list, bool destination) {
    auto one = [&](const OperandAst& e) { list.push_back(destination ? c.dest(e) : c.any_source(e, bytes)); };
    if (o.kind == OperandAst::Kind::Vector)
      for (auto& e : o.elements) one(e);
    else
      one(o);
  };
  if (atom) collect(a.operands[0], instr.list, true);
  instr.addr = c.address(a.operands[at]);
  collect(a.operands[at + 1], instr.list2, false);
  if (instr.list2.size() != instr.vec || (atom && instr.list.size() != instr.vec)) c.unsupported("vector size");
  for (auto* list : {&instr.list, &instr.list2})
    for (auto& r : *list)
      if ((r.bytes == 16) != (bytes == 16)) c.unsupported("register width");
  if (bytes == 16 && op != AtomicOp::Exch && op != AtomicOp::Cas) c.unsupported();
  if (op == AtomicOp::Cas) instr.op[1] = c.source(a.operands[at + 2], bytes);
  instr.fn = &exec_atomic;
}

}  // namespace

void register_atomic_ops(OpTable& t) {
  t["atom"] = &decode_atomic;
  t["red"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    if (a.has("async")) {
      decode_reduce_async(c, a, instr);
      return;
    }
    decode_atomic(c, a, instr);
  };
}

}  // namespace hunyuan_kernels::simulator
