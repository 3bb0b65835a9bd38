// mov, selp, setp, set, slct, address conversions and special registers.
#include <cmath>

#include "simulator/decode.h"
#include "simulator/floats.h"
#include "simulator/lanes.h"
#include "simulator/ops_data.h"

namespace hunyuan_kernels::simulator {
namespace {

template <typename T>
ExecStatus exec_move(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  for_lanes(mask, [&](int lane) { d[lane] = a[lane]; });
  return ExecStatus::Next;
}
ExecStatus exec_move128(Warp& warp, const Instr& instr, uint32_t mask) {
  uint64_t* d = warp.ptr<uint64_t>(instr.op[0]);
  const uint64_t* a = warp.ptr<uint64_t>(instr.op[1]);
  for_lanes(mask, [&](int lane) {
    d[2 * lane] = a[2 * lane];
    d[2 * lane + 1] = a[2 * lane + 1];
  });
  return ExecStatus::Next;
}
ExecStatus exec_move_predicate(Warp& warp, const Instr& instr, uint32_t mask) {
  warp.set_predicate(instr.op[0], mask, warp.predicate(instr.op[1]));
  return ExecStatus::Next;
}

// {a, b, ...} -> d, and back. Works bytewise.
ExecStatus exec_pack_vector(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t total = instr.op[0].bytes;
  uint8_t* d = warp.ptr<uint8_t>(instr.op[0]);
  uint32_t at = 0;
  for (auto& e : instr.list) {
    const uint8_t* s = warp.ptr<uint8_t>(e);
    for (int lane : Lanes(mask)) {
      memcpy(d + lane * total + at, s + lane * e.bytes, e.bytes);
    }
    at += e.bytes;
  }
  return ExecStatus::Next;
}
ExecStatus exec_unpack_vector(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t total = instr.op[1].bytes;
  const uint8_t* s = warp.ptr<uint8_t>(instr.op[1]);
  uint8_t temporary[16 * kWarpSize];  // the source may also be a destination
  memcpy(temporary, s, total * kWarpSize);
  uint32_t at = 0, step = total / (uint32_t)instr.list.size();
  for (auto& e : instr.list) {
    if (e.offset != DecodeContext::kSinkOffset) {
      uint8_t* d = warp.ptr<uint8_t>(e);
      for (int lane : Lanes(mask)) {
        memcpy(d + lane * e.bytes, temporary + lane * total + at, step);
      }
    }
    at += step;
  }
  return ExecStatus::Next;
}

// Address of a symbol that depends on the block (shared) or is an offset (param, local).
ExecStatus exec_move_symbol(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    warp.set_value(instr.op[0], lane, warp.address(instr.addr, lane));
  }
  return ExecStatus::Next;
}

ExecStatus exec_move_special(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    warp.set_value(instr.op[0], lane, special_register(warp, (SpecialRegister)instr.imm[0], lane));
  }
  return ExecStatus::Next;
}

template <typename T>
ExecStatus exec_selp(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  const uint32_t p = warp.predicate(instr.op[3]);
  for_lanes(mask, [&](int lane) { d[lane] = (p >> lane) & 1 ? a[lane] : b[lane]; });
  return ExecStatus::Next;
}

template <typename T, typename C>
ExecStatus exec_slct(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  const C* c = warp.ptr<C>(instr.op[3]);
  for_lanes(mask, [&](int lane) { d[lane] = c[lane] >= 0 ? a[lane] : b[lane]; });
  return ExecStatus::Next;
}
void decode_move(DecodeContext& c, const InstrAst& a, Instr& instr) {
  using K = OperandAst::Kind;
  instr.cls = InstrClass::Move;
  instr.flow = DataFlow::Copy;
  instr.type = type_part(a);
  const OperandAst &d = a.operands.at(0), &s = a.operands.at(1);
  if (instr.type == ScalarType::Pred) {
    instr.cls = InstrClass::Predicate;
    instr.op[0] = c.predicate_dest(d);
    instr.op[1] = c.predicate(s);
    instr.fn = lane_parallel<&exec_move_predicate>();
    return;
  }
  uint32_t bytes = size_of(instr.type);
  if (s.kind == K::Vector) {
    instr.op[0] = c.dest(d, bytes);
    const uint32_t count = (uint32_t)s.elements.size();
    if (count == 0 || bytes % count) c.unsupported("vector size");
    for (auto& e : s.elements) instr.list.push_back(c.source(e, bytes / count));
    instr.fn = &exec_pack_vector;
    return;
  }
  if (d.kind == K::Vector) {
    instr.op[1] = c.any_source(s, bytes);
    const uint32_t count = (uint32_t)d.elements.size();
    if (count == 0 || bytes % count || instr.op[1].bytes != bytes) c.unsupported("vector size");
    for (auto& e : d.elements) instr.list.push_back(c.dest(e, bytes / count));
    instr.fn = &exec_unpack_vector;
    return;
  }
  instr.op[0] = c.dest(d);
  if (s.kind == K::Name && !c.is_register(s.name)) {
    instr.flow = DataFlow::Lanewise;
    if (s.name[0] == '%') {
      int special = find_special_register(s.name);
      if (special < 0) c.unsupported("special register " + s.name);
      instr.imm[0] = special;
      instr.fn = &exec_move_special;
      return;
    }
    AddressMode mode;
    mode.offset = s.offset;
    if (!c.symbol_address(s.name, mode)) c.unsupported("unknown symbol " + s.name);
    instr.addr = mode;
    instr.fn = &exec_move_symbol;
    return;
  }
  instr.op[0] = {};
  instr.writes.clear();
  instr.op[0] = c.dest(d, bytes);
  instr.op[1] = c.source(s, bytes);
  switch (bytes) {
    case 1: instr.fn = lane_parallel<&exec_move<uint8_t>>(); break;
    case 2: instr.fn = lane_parallel<&exec_move<uint16_t>>(); break;
    case 4:
      instr.fn = lane_parallel<&exec_move<uint32_t>>();
      instr.flags = kPlainMove32;
      break;
    case 8: instr.fn = lane_parallel<&exec_move<uint64_t>>(); break;
    default: instr.fn = lane_parallel<&exec_move128>(); break;
  }
}

// cvta: imm[0] is added (to generic) or subtracted.
ExecStatus exec_cvta(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    warp.set_value(instr.op[0], lane,
                   (instr.op[1].present ? warp.value(instr.op[1], lane) : warp.address(instr.addr, lane)) +
                       (uint64_t)instr.imm[0]);
  }
  return ExecStatus::Next;
}

void decode_cvta(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Move;
  uint64_t window = 0;
  if (a.has("shared") || a.has("shared::cta") || a.has("shared::cluster")) window = kSharedWindow;
  if (a.has("local")) window = kLocalWindow;
  if (a.has("param") || a.has("param::entry")) window = kParamWindow;
  instr.imm[0] = a.has("to") ? -(int64_t)window : (int64_t)window;
  instr.op[0] = c.dest(a.operands[0]);
  const OperandAst& s = a.operands[1];
  if (c.is_register(s.name))
    instr.op[1] = c.source(s, size_of(type_part(a)));
  else {
    instr.addr.offset = s.offset;
    if (!c.symbol_address(s.name, instr.addr)) c.unsupported("unknown symbol");
  }
  instr.fn = &exec_cvta;
}

ExecStatus exec_is_space(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t r = 0;
  for (int lane : Lanes(mask)) {
    uint64_t address = warp.value(instr.op[1], lane), window = address & kWindowMask;
    bool match = false;
    switch (instr.space) {
      case Space::Shared:
        match = window == kSharedWindow && ((address & 0xffffffffu) >> kCtaRankShift) == warp.cta->rank;
        break;
      case Space::SharedCluster: match = window == kSharedWindow; break;
      case Space::Local: match = window == kLocalWindow; break;
      case Space::Param: match = window == kParamWindow; break;
      case Space::Const: {
        auto* al = warp.launch->allocations.find(address);
        match = al && al->read_only;
        break;
      }
      default: match = window == 0; break;
    }
    if (match) r |= 1u << lane;
  }
  warp.set_predicate(instr.op[0], mask, r);
  return ExecStatus::Next;
}

// mapa{.shared::cluster}: flags 1 = 32/64-bit shared addresses, 0 = generic
ExecStatus exec_mapa(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    uint64_t address = instr.op[1].present ? warp.value(instr.op[1], lane) : warp.address(instr.addr, lane);
    uint32_t rank = warp.ptr<uint32_t>(instr.op[2])[lane];
    if (rank >= warp.cta->cluster->ctas.size())
      warp.fail(instr, lane, format("mapa to block rank %u outside the cluster", rank));
    uint64_t window = address & kWindowMask;
    uint64_t low = address & ((1u << kCtaRankShift) - 1);
    warp.set_value(instr.op[0], lane, window | (uint64_t(rank) << kCtaRankShift) | low);
  }
  return ExecStatus::Next;
}
ExecStatus exec_get_cta_rank(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    warp.set_value(instr.op[0], lane, (warp.value(instr.op[1], lane) & 0xffffffffu) >> kCtaRankShift);
  }
  return ExecStatus::Next;
}

}  // namespace

void register_data_ops(OpTable& t) {
  t["mov"] = &decode_move;
  t["selp"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Move;
    instr.flow = DataFlow::Select;
    instr.type = type_part(a);
    uint32_t bytes = size_of(instr.type);
    instr.op[0] = c.dest(a.operands[0], bytes);
    instr.op[1] = c.source(a.operands[1], bytes);
    instr.op[2] = c.source(a.operands[2], bytes);
    instr.op[3] = c.predicate(a.operands[3]);
    instr.fn = bytes == 2   ? lane_parallel<&exec_selp<uint16_t>>()
               : bytes == 4 ? lane_parallel<&exec_selp<uint32_t>>()
               : bytes == 8 ? lane_parallel<&exec_selp<uint64_t>>()
                            : nullptr;
  };
  t["slct"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Move;
    uint32_t bytes = size_of(type_part(a, 0));
    bool real = type_part(a, 1) == ScalarType::F32;
    instr.op[0] = c.dest(a.operands[0], bytes);
    instr.op[1] = c.source(a.operands[1], bytes);
    instr.op[2] = c.source(a.operands[2], bytes);
    instr.op[3] = c.source(a.operands[3], 4);
    if (bytes == 4)
      instr.fn = real ? lane_parallel<&exec_slct<uint32_t, float>>() : lane_parallel<&exec_slct<uint32_t, int32_t>>();
    if (bytes == 8)
      instr.fn = real ? lane_parallel<&exec_slct<uint64_t, float>>() : lane_parallel<&exec_slct<uint64_t, int32_t>>();
  };
  t["cvta"] = &decode_cvta;
  t["isspacep"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Predicate;
    instr.space = a.has("shared") || a.has("shared::cta")   ? Space::Shared
                  : a.has("shared::cluster")                ? Space::SharedCluster
                  : a.has("local")                          ? Space::Local
                  : a.has("const")                          ? Space::Const
                  : a.has("param") || a.has("param::entry") ? Space::Param
                                                            : Space::Global;
    instr.op[0] = c.predicate_dest(a.operands[0]);
    instr.op[1] = c.source(a.operands[1], 8);
    instr.fn = &exec_is_space;
  };
  t["mapa"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Move;
    instr.op[0] = c.dest(a.operands[0]);
    if (c.is_register(a.operands[1].name))
      instr.op[1] = c.source(a.operands[1], size_of(type_part(a)));
    else {
      instr.addr.offset = a.operands[1].offset;
      if (!c.symbol_address(a.operands[1].name, instr.addr)) c.unsupported();
    }
    instr.op[2] = c.source(a.operands[2], 4);
    instr.fn = &exec_mapa;
  };
  t["getctarank"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Move;
    instr.op[0] = c.dest(a.operands[0]);
    instr.op[1] = c.source(a.operands[1], size_of(type_part(a)));
    instr.fn = &exec_get_cta_rank;
  };
}

}  // namespace hunyuan_kernels::simulator
