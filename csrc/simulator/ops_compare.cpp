// setp and set.
#include "simulator/decode.h"
#include "simulator/floats.h"
#include "simulator/lanes.h"

namespace hunyuan_kernels::simulator {
namespace {

struct Eq {
  template <typename T>
  static bool apply(T a, T b) {
    return a == b;
  }
};
struct Ne {
  template <typename T>
  static bool apply(T a, T b) {
    return a < b || a > b;
  }
};  // false on NaN
struct Lt {
  template <typename T>
  static bool apply(T a, T b) {
    return a < b;
  }
};
struct Le {
  template <typename T>
  static bool apply(T a, T b) {
    return a <= b;
  }
};
struct Gt {
  template <typename T>
  static bool apply(T a, T b) {
    return a > b;
  }
};
struct Ge {
  template <typename T>
  static bool apply(T a, T b) {
    return a >= b;
  }
};
template <typename Op>
struct Unordered {
  template <typename T>
  static bool apply(T a, T b) {
    return a != a || b != b || Op::apply(a, b);
  }
};
struct IsNum {
  template <typename T>
  static bool apply(T a, T b) {
    return a == a && b == b;
  }
};
struct IsNan {
  template <typename T>
  static bool apply(T a, T b) {
    return a != a || b != b;
  }
};

using CompareFn = uint32_t (*)(Warp&, const Instr&);
template <typename T, typename Op>
uint32_t compare(Warp& warp, const Instr& instr) {
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  uint32_t r = 0;
  for (int lane = 0; lane < 32; ++lane) r |= uint32_t(Op::apply(a[lane], b[lane])) << lane;
  return r;
}
template <typename H, int parts, int part, typename Op>
uint32_t compare_half(Warp& warp, const Instr& instr) {
  const H *a = warp.ptr<H>(instr.op[1]), *b = warp.ptr<H>(instr.op[2]);
  uint32_t r = 0;
  for (int lane = 0; lane < 32; ++lane)
    r |= uint32_t(Op::apply(H::load(a[lane * parts + part]), H::load(b[lane * parts + part]))) << lane;
  return r;
}

// Results of setp: r to op[0], q to op[4] where there is one. flags: 0 as they are, 1 and, 2 or, 3 xor with op[3].
ExecStatus set_predicates(Warp& warp, const Instr& instr, uint32_t mask, uint32_t r, uint32_t q) {
  if (instr.flags) {
    uint32_t c = warp.predicate(instr.op[3]);
    if (instr.flags == 1) {
      r &= c;
      q &= c;
    } else if (instr.flags == 2) {
      r |= c;
      q |= c;
    } else {
      r ^= c;
      q ^= c;
    }
  }
  warp.set_predicate(instr.op[0], mask, r);
  if (instr.op[4].present) warp.set_predicate(instr.op[4], mask, q);
  return ExecStatus::Next;
}
template <typename T, typename Op>
ExecStatus exec_setp(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t r = compare<T, Op>(warp, instr);
  return set_predicates(warp, instr, mask, r, ~r);
}
template <typename H, int parts, typename Op>
ExecStatus exec_setp_half(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t r = compare_half<H, parts, 0, Op>(warp, instr),
           q = parts == 2 ? compare_half<H, parts, parts - 1, Op>(warp, instr) : ~r;
  return set_predicates(warp, instr, mask, r, q);
}
// set.cmp.dtype.stype: dtype u32/s32 gives all ones, f32 gives 1.0
template <typename T, typename Op>
ExecStatus exec_set(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t r = compare<T, Op>(warp, instr);
  if (instr.flags) {
    uint32_t c = warp.predicate(instr.op[3]);
    r = instr.flags == 1 ? r & c : instr.flags == 2 ? r | c : r ^ c;
  }
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t one = instr.type == ScalarType::F32 ? 0x3f800000u : 0xffffffffu;
  for_lanes(mask, [&](int lane) { d[lane] = (r >> lane) & 1 ? one : 0; });
  return ExecStatus::Next;
}
// set with packed halves: 16-bit results per element.
template <typename H, int parts, typename Op>
ExecStatus exec_set_half(Warp& warp, const Instr& instr, uint32_t mask) {
  const H *a = warp.ptr<H>(instr.op[1]), *b = warp.ptr<H>(instr.op[2]);
  const bool float_result = is_float(instr.type),
             bf16 = instr.type == ScalarType::BF16 || instr.type == ScalarType::BF16x2;
  for (int lane : Lanes(mask)) {
    uint32_t out = 0;
    for (int p = 0; p < parts; ++p) {
      bool r = Op::apply(H::load(a[lane * parts + p]), H::load(b[lane * parts + p]));
      uint32_t one = float_result ? (bf16 ? 0x3f80 : 0x3c00) : (parts == 1 ? 0xffffffffu : 0xffffu);
      if (r) out |= one << (16 * p);
    }
    warp.set_value(instr.op[0], lane, out);
  }
  return ExecStatus::Next;
}

template <typename Op>
ExecFn pick_setp(ScalarType t) {
  using T = ScalarType;
  switch (t) {
    case T::U16:
    case T::B16: return lane_parallel<&exec_setp<uint16_t, Op>>();
    case T::S16: return lane_parallel<&exec_setp<int16_t, Op>>();
    case T::U32:
    case T::B32: return lane_parallel<&exec_setp<uint32_t, Op>>();
    case T::S32: return lane_parallel<&exec_setp<int32_t, Op>>();
    case T::U64:
    case T::B64: return lane_parallel<&exec_setp<uint64_t, Op>>();
    case T::S64: return lane_parallel<&exec_setp<int64_t, Op>>();
    case T::F32: return lane_parallel<&exec_setp<float, Op>>();
    case T::F64: return lane_parallel<&exec_setp<double, Op>>();
    case T::F16: return lane_parallel<&exec_setp_half<Half, 1, Op>>();
    case T::F16x2: return lane_parallel<&exec_setp_half<Half, 2, Op>>();
    case T::BF16: return lane_parallel<&exec_setp_half<Bf16, 1, Op>>();
    case T::BF16x2: return lane_parallel<&exec_setp_half<Bf16, 2, Op>>();
    default: return nullptr;
  }
}
template <typename Op>
ExecFn pick_set(ScalarType t) {
  using T = ScalarType;
  switch (t) {
    case T::U32:
    case T::B32: return lane_parallel<&exec_set<uint32_t, Op>>();
    case T::S32: return lane_parallel<&exec_set<int32_t, Op>>();
    case T::U64:
    case T::B64: return lane_parallel<&exec_set<uint64_t, Op>>();
    case T::S64: return lane_parallel<&exec_set<int64_t, Op>>();
    case T::F32: return lane_parallel<&exec_set<float, Op>>();
    case T::F64: return lane_parallel<&exec_set<double, Op>>();
    case T::F16: return &exec_set_half<Half, 1, Op>;
    case T::F16x2: return &exec_set_half<Half, 2, Op>;
    case T::BF16: return &exec_set_half<Bf16, 1, Op>;
    case T::BF16x2: return &exec_set_half<Bf16, 2, Op>;
    default: return nullptr;
  }
}

ScalarType unsigned_of(ScalarType t) {
  using T = ScalarType;
  return t == T::S16 ? T::U16 : t == T::S32 ? T::U32 : t == T::S64 ? T::U64 : t;
}

ExecFn pick_comparison(std::string_view op, ScalarType t, bool set) {
#define PICK(Op, type) (set ? pick_set<Op>(type) : pick_setp<Op>(type))
  if (op == "eq") return PICK(Eq, t);
  if (op == "ne") return PICK(Ne, t);
  if (op == "lt") return PICK(Lt, t);
  if (op == "le") return PICK(Le, t);
  if (op == "gt") return PICK(Gt, t);
  if (op == "ge") return PICK(Ge, t);
  if (op == "lo") return PICK(Lt, unsigned_of(t));
  if (op == "ls") return PICK(Le, unsigned_of(t));
  if (op == "hi") return PICK(Gt, unsigned_of(t));
  if (op == "hs") return PICK(Ge, unsigned_of(t));
  if (op == "equ") return PICK(Unordered<Eq>, t);
  if (op == "neu") return PICK(Unordered<Ne>, t);
  if (op == "ltu") return PICK(Unordered<Lt>, t);
  if (op == "leu") return PICK(Unordered<Le>, t);
  if (op == "gtu") return PICK(Unordered<Gt>, t);
  if (op == "geu") return PICK(Unordered<Ge>, t);
  if (op == "num") return PICK(IsNum, t);
  if (op == "nan") return PICK(IsNan, t);
#undef PICK
  return nullptr;
}

void decode_setp(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Predicate;
  bool set = a.parts[0] == "set";
  ScalarType source = type_part(a, set ? 1 : 0);
  instr.type = type_part(a, 0);
  if (set) {
    instr.op[0] = c.dest(a.operands[0]);
    const bool halves = size_of(source) == 2 || source == ScalarType::F16x2 || source == ScalarType::BF16x2;
    if (!halves && instr.op[0].bytes != 4 && a.operands[0].kind != OperandAst::Kind::Sink) c.unsupported("destination");
  } else {
    instr.op[0] = c.predicate_dest(a.operands[0]);
  }
  instr.op[4] = c.pair_dest(a.operands[0]);
  instr.op[1] = c.source(a.operands[1], size_of(source));
  instr.op[2] = c.source(a.operands[2], size_of(source));
  if (a.operands.size() == 4) {
    instr.op[3] = c.predicate(a.operands[3]);
    instr.flags = a.has("and") ? 1 : a.has("or") ? 2 : 3;
  }
  instr.fn = pick_comparison(a.parts[1], source, set);
}

}  // namespace

void register_compare_ops(OpTable& t) {
  t["setp"] = &decode_setp;
  t["set"] = &decode_setp;
}

}  // namespace hunyuan_kernels::simulator
