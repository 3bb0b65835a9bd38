// Integer and bit-manipulation instructions.
#include <type_traits>

#include "simulator/decode.h"
#include "simulator/lanes.h"

namespace hunyuan_kernels::simulator {
namespace {

template <typename T>
constexpr int bits_of() {
  return int(sizeof(T) * 8);
}
template <typename T>
struct Wider;
template <>
struct Wider<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wider<int16_t> {
  using type = int32_t;
};
template <>
struct Wider<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wider<int32_t> {
  using type = int64_t;
};
template <>
struct Wider<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wider<int64_t> {
  using type = __int128;
};

struct Add {
  template <typename T>
  static T apply(T a, T b) {
    return T(a + b);
  }
};
struct Sub {
  template <typename T>
  static T apply(T a, T b) {
    return T(a - b);
  }
};
struct MulLo {
  template <typename T>
  static T apply(T a, T b) {
    using U = std::make_unsigned_t<T>;
    return T(uint64_t(U(a)) * U(b));
  }
};
struct MulHi {
  template <typename T>
  static T apply(T a, T b) {
    using W = typename Wider<T>::type;
    return T((W(a) * W(b)) >> bits_of<T>());
  }
};
struct Div {
  template <typename T>
  static T apply(T a, T b) {
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1)) return T(std::make_unsigned_t<T>(0) - std::make_unsigned_t<T>(a));
    return T(a / b);
  }
};
struct Rem {
  template <typename T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
  }
};
struct Min {
  template <typename T>
  static T apply(T a, T b) {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  static T apply(T a, T b) {
    return a < b ? b : a;
  }
};
struct And {
  template <typename T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <typename T>
  static T apply(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <typename T>
  static T apply(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <typename T>
  static T apply(T a) {
    return T(~a);
  }
};
struct CNot {
  template <typename T>
  static T apply(T a) {
    return a == 0;
  }
};
struct Neg {
  template <typename T>
  static T apply(T a) {
    return T(0 - a);
  }
};
struct Abs {
  template <typename T>
  static T apply(T a) {
    return a < 0 ? T(0 - a) : a;
  }
};
struct MadLo {
  template <typename T>
  static T apply(T a, T b, T c) {
    return T(MulLo::apply(a, b) + c);
  }
};
struct MadHi {
  template <typename T>
  static T apply(T a, T b, T c) {
    return T(MulHi::apply(a, b) + c);
  }
};
struct Sad {
  template <typename T>
  static T apply(T a, T b, T c) {
    return T(c + (a < b ? b - a : a - b));
  }
};
struct Mul24 {
  template <typename T>
  static T apply(T a, T b) {
    if (std::is_signed_v<T>) return T(uint32_t((int32_t(a) << 8) >> 8) * uint32_t((int32_t(b) << 8) >> 8));
    return T((uint32_t(a) & 0xffffff) * (uint32_t(b) & 0xffffff));
  }
};
template <typename Op>
ExecFn int1(ScalarType t) {
  using T = ScalarType;
  switch (t) {
    case T::U16:
    case T::B16: return lane_parallel<&exec1<uint16_t, Op>>();
    case T::S16: return lane_parallel<&exec1<int16_t, Op>>();
    case T::U32:
    case T::B32: return lane_parallel<&exec1<uint32_t, Op>>();
    case T::S32: return lane_parallel<&exec1<int32_t, Op>>();
    case T::U64:
    case T::B64: return lane_parallel<&exec1<uint64_t, Op>>();
    case T::S64: return lane_parallel<&exec1<int64_t, Op>>();
    default: return nullptr;
  }
}
template <typename Op>
ExecFn int2(ScalarType t) {
  using T = ScalarType;
  switch (t) {
    case T::U16:
    case T::B16: return lane_parallel<&exec2<uint16_t, Op>>();
    case T::S16: return lane_parallel<&exec2<int16_t, Op>>();
    case T::U32:
    case T::B32: return lane_parallel<&exec2<uint32_t, Op>>();
    case T::S32: return lane_parallel<&exec2<int32_t, Op>>();
    case T::U64:
    case T::B64: return lane_parallel<&exec2<uint64_t, Op>>();
    case T::S64: return lane_parallel<&exec2<int64_t, Op>>();
    default: return nullptr;
  }
}
template <typename Op>
ExecFn int3(ScalarType t) {
  using T = ScalarType;
  switch (t) {
    case T::U16: return lane_parallel<&exec3<uint16_t, Op>>();
    case T::S16: return lane_parallel<&exec3<int16_t, Op>>();
    case T::U32:
    case T::B32: return lane_parallel<&exec3<uint32_t, Op>>();
    case T::S32: return lane_parallel<&exec3<int32_t, Op>>();
    case T::U64:
    case T::B64: return lane_parallel<&exec3<uint64_t, Op>>();
    case T::S64: return lane_parallel<&exec3<int64_t, Op>>();
    default: return nullptr;
  }
}

// Two 16-bit halves in one register.
template <typename T, typename Op>
ExecStatus exec_halves(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  for_lanes(mask, [&](int lane) {
    d[2 * lane] = Op::apply(a[2 * lane], b[2 * lane]);
    d[2 * lane + 1] = Op::apply(a[2 * lane + 1], b[2 * lane + 1]);
  });
  return ExecStatus::Next;
}
template <typename Op>
ExecFn int_pair(ScalarType t) {
  if (t == ScalarType::U16x2) return lane_parallel<&exec_halves<uint16_t, Op>>();
  if (t == ScalarType::S16x2) return lane_parallel<&exec_halves<int16_t, Op>>();
  return nullptr;
}

// Predicate (lane mask) logic.
template <int kind>
ExecStatus exec_predicate(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t a = warp.predicate(instr.op[1]), b = kind == 3 ? 0 : warp.predicate(instr.op[2]);
  uint32_t r = kind == 0 ? a & b : kind == 1 ? a | b : kind == 2 ? a ^ b : ~a;
  warp.set_predicate(instr.op[0], mask, r);
  return ExecStatus::Next;
}

template <typename T>
ExecStatus exec_mul_wide(Warp& warp, const Instr& instr, uint32_t mask) {
  using W = typename Wider<T>::type;
  W* d = warp.ptr<W>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  if (instr.op[3].present) {
    const W* c = warp.ptr<W>(instr.op[3]);
    for_lanes(mask, [&](int lane) { d[lane] = W(W(a[lane]) * W(b[lane]) + c[lane]); });
  } else {
    for_lanes(mask, [&](int lane) { d[lane] = W(W(a[lane]) * W(b[lane])); });
  }
  return ExecStatus::Next;
}
template <typename T>
ExecStatus exec_carry(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  const T* c = instr.op[3].present ? warp.ptr<T>(instr.op[3]) : nullptr;
  uint32_t* carry = warp.ptr<uint32_t>(instr.op[4]);
  const int kind = (instr.flags >> 2) & 3;
  for (int lane : Lanes(mask)) {
    unsigned __int128 in = (instr.flags & 1) ? (*carry >> lane) & 1 : 0, r;
    if (kind == 0)
      r = (unsigned __int128)a[lane] + b[lane] + in;
    else if (kind == 1)
      r = (unsigned __int128)a[lane] - b[lane] - in;
    else {
      unsigned __int128 product = (unsigned __int128)a[lane] * b[lane];
      r = (kind == 2 ? T(product) : T(product >> (sizeof(T) * 8)));
      r += (unsigned __int128)c[lane] + in;
    }
    d[lane] = T(r);
    if (instr.flags & 2) {
      uint32_t out = uint32_t(r >> (sizeof(T) * 8)) & 1;
      *carry = (*carry & ~(1u << lane)) | (out << lane);
    }
  }
  return ExecStatus::Next;
}

template <typename Op>
void decode1(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.type = type_part(a);
  instr.cls = InstrClass::IntegerAlu;
  c.operands(a, instr, 1, size_of(instr.type));
  instr.fn = int1<Op>(instr.type);
}

template <typename Op, int predicate_kind>
void decode_logic(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.type = type_part(a);
  if (instr.type == ScalarType::Pred) {
    instr.cls = InstrClass::Predicate;
    instr.op[0] = c.predicate_dest(a.operands[0]);
    instr.op[1] = c.predicate(a.operands[1]);
    if (predicate_kind != 3) instr.op[2] = c.predicate(a.operands[2]);
    instr.fn = lane_parallel<&exec_predicate<predicate_kind>>();
    return;
  }
  instr.cls = InstrClass::IntegerAlu;
  if constexpr (predicate_kind == 3) {
    c.operands(a, instr, 1, size_of(instr.type));
    instr.fn = int1<Op>(instr.type);
  } else {
    c.operands(a, instr, 2, size_of(instr.type));
    instr.fn = int2<Op>(instr.type);
  }
}

void decode_mul_mad(DecodeContext& c, const InstrAst& a, Instr& instr, bool mad) {
  using T = ScalarType;
  instr.cls = InstrClass::IntegerAlu;
  uint32_t bytes = size_of(instr.type);
  int sources = mad ? 3 : 2;
  if ((int)a.operands.size() != sources + 1) c.unsupported("operand count");
  instr.op[0] = c.dest(a.operands[0], a.has("wide") ? bytes * 2 : bytes);
  instr.op[1] = c.source(a.operands[1], bytes);
  instr.op[2] = c.source(a.operands[2], bytes);
  if (a.has("wide")) {
    if (mad) instr.op[3] = c.source(a.operands[3], bytes * 2);
    switch (instr.type) {
      case T::U16: instr.fn = lane_parallel<&exec_mul_wide<uint16_t>>(); break;
      case T::S16: instr.fn = lane_parallel<&exec_mul_wide<int16_t>>(); break;
      case T::U32: instr.fn = lane_parallel<&exec_mul_wide<uint32_t>>(); break;
      case T::S32: instr.fn = lane_parallel<&exec_mul_wide<int32_t>>(); break;
      default: break;
    }
    return;
  }
  if (mad) instr.op[3] = c.source(a.operands[3], bytes);
  bool carry = a.has("cc") || a.parts[0] == "madc";
  if (carry) {
    instr.op[4] = c.carry(a.parts[0] == "madc", a.has("cc"));
    instr.flags = (a.parts[0] == "madc" ? 1 : 0) | (a.has("cc") ? 2 : 0) | ((a.has("hi") ? 3 : 2) << 2);
    instr.fn = bytes == 8 ? &exec_carry<uint64_t> : &exec_carry<uint32_t>;
    if (a.has("hi") && is_signed(instr.type)) c.unsupported("signed madc.hi");
  } else if (a.has("hi")) {
    instr.fn = mad ? int3<MadHi>(instr.type) : int2<MulHi>(instr.type);
  } else {
    instr.fn = mad ? int3<MadLo>(instr.type) : int2<MulLo>(instr.type);
  }
}

}  // namespace

// add, sub, min, max, neg, abs, mul, mad, div are shared with the floating-point decoder,
// which falls back to these for integer types.
bool decode_integer_arithmetic(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.type = type_part(a);
  if (is_float(instr.type)) return false;
  instr.cls = InstrClass::IntegerAlu;
  std::string_view op = a.parts[0];
  if (op == "mul" || op == "mad" || op == "madc") {
    decode_mul_mad(c, a, instr, op != "mul");
    return true;
  }
  uint32_t bytes = size_of(instr.type);
  if (op == "neg" || op == "abs") {
    c.operands(a, instr, 1, bytes);
    instr.fn = op == "neg" ? int1<Neg>(instr.type) : int1<Abs>(instr.type);
    return true;
  }
  c.operands(a, instr, 2, bytes);
  if (op == "addc" || op == "subc" || a.has("cc")) {
    bool sub = op == "sub" || op == "subc";
    instr.op[4] = c.carry(op.back() == 'c', a.has("cc"));
    instr.flags = (op.back() == 'c' ? 1 : 0) | (a.has("cc") ? 2 : 0) | (sub ? 4 : 0);
    instr.fn = bytes == 8 ? &exec_carry<uint64_t> : &exec_carry<uint32_t>;
    return true;
  }
  if (a.has("sat")) {
    struct AddSat {
      static int32_t apply(int32_t x, int32_t y) {
        int64_t v = int64_t(x) + y;
        return (int32_t)std::min<int64_t>(INT32_MAX, std::max<int64_t>(INT32_MIN, v));
      }
    };
    struct SubSat {
      static int32_t apply(int32_t x, int32_t y) {
        int64_t v = int64_t(x) - y;
        return (int32_t)std::min<int64_t>(INT32_MAX, std::max<int64_t>(INT32_MIN, v));
      }
    };
    if (op == "add") instr.fn = lane_parallel<&exec2<int32_t, AddSat>>();
    if (op == "sub") instr.fn = lane_parallel<&exec2<int32_t, SubSat>>();
    return true;
  }
  if (op == "add")
    instr.fn =
        size_of(instr.type) == 4 && int_pair<Add>(instr.type) ? int_pair<Add>(instr.type) : int2<Add>(instr.type);
  else if (op == "sub")
    instr.fn = int2<Sub>(instr.type);
  else if (op == "min")
    instr.fn = int_pair<Min>(instr.type) ? int_pair<Min>(instr.type) : int2<Min>(instr.type);
  else if (op == "max")
    instr.fn = int_pair<Max>(instr.type) ? int_pair<Max>(instr.type) : int2<Max>(instr.type);
  else if (op == "div")
    instr.fn = int2<Div>(instr.type);
  return true;
}

void register_integer_ops(OpTable& t) {
  t["rem"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 2, size_of(instr.type));
    instr.fn = int2<Rem>(instr.type);
  };
  t["and"] = &decode_logic<And, 0>;
  t["or"] = &decode_logic<Or, 1>;
  t["xor"] = &decode_logic<Xor, 2>;
  t["not"] = &decode_logic<Not, 3>;
  t["cnot"] = &decode1<CNot>;
  t["sad"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 3, size_of(instr.type));
    instr.fn = int3<Sad>(instr.type);
  };
  t["mul24"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    if (a.has("hi")) c.unsupported();
    c.operands(a, instr, 2, 4);
    instr.fn = instr.type == ScalarType::S32 ? lane_parallel<&exec2<int32_t, Mul24>>()
                                             : lane_parallel<&exec2<uint32_t, Mul24>>();
  };
}

}  // namespace hunyuan_kernels::simulator
