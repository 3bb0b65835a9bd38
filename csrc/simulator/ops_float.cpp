// Floating-point arithmetic; integer forms of the shared opcodes go to the integer decoder.
#include <cfenv>

#include "simulator/decode.h"
#include "simulator/floats.h"
#include "simulator/lanes.h"

namespace hunyuan_kernels::simulator {

bool decode_integer_arithmetic(DecodeContext& c, const InstrAst& a, Instr& instr);

namespace {

enum : uint32_t { kFtz = 1, kSat = 2, kRelu = 4, kNan = 8, kAbs = 16 };

template <typename T>
T quiet_nan();
template <>
float quiet_nan<float>() {
  return bit_cast<float>(0x7fffffffu);
}
template <>
double quiet_nan<double>() {
  return bit_cast<double>(0x7fffffffffffffffull);
}

struct FAdd {
  template <typename T>
  static T apply(T a, T b) {
    return a + b;
  }
};
struct FSub {
  template <typename T>
  static T apply(T a, T b) {
    return a - b;
  }
};
struct FMul {
  template <typename T>
  static T apply(T a, T b) {
    return a * b;
  }
};
struct FDiv {
  template <typename T>
  static T apply(T a, T b) {
    return a / b;
  }
};
struct FMin {
  template <typename T>
  static T apply(T a, T b) {
    if (std::isnan(a)) return std::isnan(b) ? quiet_nan<T>() : b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
  }
};
struct FMax {
  template <typename T>
  static T apply(T a, T b) {
    if (std::isnan(a)) return std::isnan(b) ? quiet_nan<T>() : b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? b : a;
    return a < b ? b : a;
  }
};
struct FMinNan {
  template <typename T>
  static T apply(T a, T b) {
    return std::isnan(a) || std::isnan(b) ? quiet_nan<T>() : FMin::apply(a, b);
  }
};
struct FMaxNan {
  template <typename T>
  static T apply(T a, T b) {
    return std::isnan(a) || std::isnan(b) ? quiet_nan<T>() : FMax::apply(a, b);
  }
};
struct FFma {
  template <typename T>
  static T apply(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct FNeg {
  template <typename T>
  static T apply(T a) {
    return -a;
  }
};
struct FAbs {
  template <typename T>
  static T apply(T a) {
    return std::fabs(a);
  }
};
struct FRcp {
  template <typename T>
  static T apply(T a) {
    return T(1) / a;
  }
};
struct FSqrt {
  template <typename T>
  static T apply(T a) {
    return std::sqrt(a);
  }
};
struct FRsqrt {
  template <typename T>
  static T apply(T a) {
    return T(1.0 / std::sqrt((double)a));
  }
};
struct FSin {
  template <typename T>
  static T apply(T a) {
    return T(std::sin((double)a));
  }
};
struct FCos {
  template <typename T>
  static T apply(T a) {
    return T(std::cos((double)a));
  }
};
struct FEx2 {
  template <typename T>
  static T apply(T a) {
    return std::exp2(a);
  }
};
struct FLg2 {
  template <typename T>
  static T apply(T a) {
    return std::log2(a);
  }
};
struct FTanh {
  template <typename T>
  static T apply(T a) {
    return std::tanh(a);
  }
};
struct CopySign {
  template <typename T>
  static T apply(T a, T b) {
    return std::copysign(b, a);
  }
};

inline float flush(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }

// f32 with .ftz / .sat, applied around the plain operation.
template <typename Op, int sources>
ExecStatus exec_modified(Warp& warp, const Instr& instr, uint32_t mask) {
  float* d = warp.ptr<float>(instr.op[0]);
  const float *a = warp.ptr<float>(instr.op[1]), *b = warp.ptr<float>(instr.op[2]), *c = warp.ptr<float>(instr.op[3]);
  const bool ftz = instr.flags & kFtz, sat = instr.flags & kSat;
  for (int lane : Lanes(mask)) {
    float x = a[lane], y = sources > 1 ? b[lane] : 0, z = sources > 2 ? c[lane] : 0, r;
    if (ftz) {
      x = flush(x);
      y = flush(y);
      z = flush(z);
    }
    if constexpr (sources == 1)
      r = Op::apply(x);
    else if constexpr (sources == 2)
      r = Op::apply(x, y);
    else
      r = Op::apply(x, y, z);
    if (ftz) r = flush(r);
    if (sat) r = !(r > 0) ? 0.0f : r > 1 ? 1.0f : r;  // NaN becomes 0
    d[lane] = r;
  }
  return ExecStatus::Next;
}

// Directed rounding through the host's rounding mode; volatile keeps the arithmetic between the mode changes.
// imm[0]: fenv mode.
template <typename T, typename Op, int sources>
ExecStatus exec_rounded(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]), *c = warp.ptr<T>(instr.op[3]);
  const int saved = fegetround();
  fesetround((int)instr.imm[0]);
  for (int lane : Lanes(mask)) {
    volatile T x = a[lane], y = sources > 1 ? b[lane] : T(0), z = sources > 2 ? c[lane] : T(0);
    volatile T r;
    if constexpr (sources == 1)
      r = Op::apply((T)x);
    else if constexpr (sources == 2)
      r = Op::apply((T)x, (T)y);
    else
      r = Op::apply((T)x, (T)y, (T)z);
    d[lane] = r;
  }
  fesetround(saved);
  return ExecStatus::Next;
}

// Half-precision formats: `parts` values per register, computed in double and rounded once.
template <typename H, int parts, typename Op, int sources>
ExecStatus exec_half(Warp& warp, const Instr& instr, uint32_t mask) {
  H* d = warp.ptr<H>(instr.op[0]);
  const H *a = warp.ptr<H>(instr.op[1]), *b = warp.ptr<H>(instr.op[2]), *c = warp.ptr<H>(instr.op[3]);
  for (int lane : Lanes(mask)) {
    for (int p = 0; p < parts; ++p) {
      int i = lane * parts + p;
      double r;
      if constexpr (sources == 1)
        r = Op::apply(H::load(a[i]));
      else if constexpr (sources == 2)
        r = Op::apply(H::load(a[i]), H::load(b[i]));
      else
        r = Op::apply(H::load(a[i]), H::load(b[i]), H::load(c[i]));
      if (instr.flags & kSat) r = !(r > 0) ? 0.0 : r > 1 ? 1.0 : r;
      if ((instr.flags & kRelu) && !(r > 0)) r = std::isnan(r) ? r : 0.0;
      d[i] = H::store(r);
    }
  }
  return ExecStatus::Next;
}

// neg/abs work on the sign bit alone.
template <typename U, int kind>
ExecStatus exec_sign(Warp& warp, const Instr& instr, uint32_t mask) {
  U* d = warp.ptr<U>(instr.op[0]);
  const U* a = warp.ptr<U>(instr.op[1]);
  const U bits = (U)instr.imm[0];
  for_lanes(mask, [&](int lane) { d[lane] = kind == 0 ? U(a[lane] ^ bits) : U(a[lane] & ~bits); });
  return ExecStatus::Next;
}

template <typename Op, int sources>
ExecFn pick(DecodeContext& c, const InstrAst& a, Instr& instr) {
  using T = ScalarType;
  instr.flags = (a.has("ftz") ? kFtz : 0u) | (a.has("sat") ? kSat : 0u) | (a.has("relu") ? kRelu : 0u);
  int rounding = a.has("rz") ? FE_TOWARDZERO : a.has("rm") ? FE_DOWNWARD : a.has("rp") ? FE_UPWARD : FE_TONEAREST;
  instr.imm[0] = rounding;
  switch (instr.type) {
    case T::F32:
      if (rounding != FE_TONEAREST) {
        if (instr.flags) c.unsupported("directed rounding with .ftz/.sat");
        return &exec_rounded<float, Op, sources>;
      }
      if (instr.flags) return lane_parallel<&exec_modified<Op, sources>>();
      if constexpr (sources == 1)
        return lane_parallel<&exec1<float, Op>>();
      else if constexpr (sources == 2)
        return lane_parallel<&exec2<float, Op>>();
      else
        return lane_parallel<&exec3<float, Op>>();
    case T::F64:
      if (rounding != FE_TONEAREST) return &exec_rounded<double, Op, sources>;
      if constexpr (sources == 1)
        return lane_parallel<&exec1<double, Op>>();
      else if constexpr (sources == 2)
        return lane_parallel<&exec2<double, Op>>();
      else
        return lane_parallel<&exec3<double, Op>>();
    case T::F16: return lane_parallel<&exec_half<Half, 1, Op, sources>>();
    case T::F16x2: return lane_parallel<&exec_half<Half, 2, Op, sources>>();
    case T::BF16: return lane_parallel<&exec_half<Bf16, 1, Op, sources>>();
    case T::BF16x2: return lane_parallel<&exec_half<Bf16, 2, Op, sources>>();
    default: return nullptr;
  }
}

void float_operands(DecodeContext& c, const InstrAst& a, Instr& instr, int sources) {
  if ((int)a.operands.size() != sources + 1) c.unsupported("operand count");
  instr.cls = InstrClass::FloatAlu;
  instr.type = type_part(a);
  instr.op[0] = c.dest(a.operands[0], size_of(instr.type));
  for (int i = 1; i <= 3; ++i)
    instr.op[i] = i <= sources ? c.source(a.operands[i], size_of(instr.type)) : c.constant(0, 8);
}

template <typename Op, int sources>
void decode_float(DecodeContext& c, const InstrAst& a, Instr& instr) {
  float_operands(c, a, instr, sources);
  instr.fn = pick<Op, sources>(c, a, instr);
}

template <typename Op>
void decode_shared2(DecodeContext& c, const InstrAst& a, Instr& instr) {
  if (decode_integer_arithmetic(c, a, instr)) return;
  decode_float<Op, 2>(c, a, instr);
}

template <bool is_min>
void decode_min_max(DecodeContext& c, const InstrAst& a, Instr& instr) {
  if (decode_integer_arithmetic(c, a, instr)) return;
  if (a.operands.size() == 4) c.unsupported("three-input min/max");
  bool nan = a.has("NaN");
  if (a.has("xorsign")) c.unsupported();
  if (is_min)
    nan ? decode_float<FMinNan, 2>(c, a, instr) : decode_float<FMin, 2>(c, a, instr);
  else
    nan ? decode_float<FMaxNan, 2>(c, a, instr) : decode_float<FMax, 2>(c, a, instr);
}

template <int kind>
void decode_sign(DecodeContext& c, const InstrAst& a, Instr& instr) {
  if (decode_integer_arithmetic(c, a, instr)) return;
  float_operands(c, a, instr, 1);
  uint32_t bytes = size_of(instr.type);
  bool pair = instr.type == ScalarType::F16x2 || instr.type == ScalarType::BF16x2;
  instr.imm[0] = bytes == 8 ? (int64_t)(1ull << 63) : pair ? 0x80008000ll : bytes == 4 ? 0x80000000ll : 0x8000ll;
  instr.fn = bytes == 8   ? lane_parallel<&exec_sign<uint64_t, kind>>()
             : bytes == 4 ? lane_parallel<&exec_sign<uint32_t, kind>>()
                          : lane_parallel<&exec_sign<uint16_t, kind>>();
}

void decode_fma(DecodeContext& c, const InstrAst& a, Instr& instr) {
  if (a.parts[0] == "mad" && decode_integer_arithmetic(c, a, instr)) return;
  decode_float<FFma, 3>(c, a, instr);
}

// testp: imm[0] selects the class test.
ExecStatus exec_testp(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t r = 0;
  for (int lane : Lanes(mask)) {
    double v = instr.type == ScalarType::F64 ? warp.ptr<double>(instr.op[1])[lane] : warp.ptr<float>(instr.op[1])[lane];
    int cls = instr.type == ScalarType::F64 ? std::fpclassify(v) : std::fpclassify((float)v);
    bool t = false;
    switch (instr.imm[0]) {
      case 0: t = std::isfinite(v); break;
      case 1: t = std::isinf(v); break;
      case 2: t = !std::isnan(v); break;
      case 3: t = std::isnan(v); break;
      case 4: t = cls == FP_NORMAL; break;
      case 5: t = cls == FP_SUBNORMAL; break;
    }
    if (t) r |= 1u << lane;
  }
  warp.set_predicate(instr.op[0], mask, r);
  return ExecStatus::Next;
}

}  // namespace

void register_float_ops(OpTable& t) {
  t["add"] = &decode_shared2<FAdd>;
  t["sub"] = &decode_shared2<FSub>;
  t["mul"] = &decode_shared2<FMul>;
  t["div"] = &decode_shared2<FDiv>;
  for (const char* op : {"addc", "subc", "madc"})
    t[op] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
      if (!decode_integer_arithmetic(c, a, instr)) c.unsupported();
    };
  t["min"] = &decode_min_max<true>;
  t["max"] = &decode_min_max<false>;
  t["neg"] = &decode_sign<0>;
  t["abs"] = &decode_sign<1>;
  t["fma"] = &decode_fma;
  t["mad"] = &decode_fma;
  t["rcp"] = &decode_float<FRcp, 1>;
  t["sqrt"] = &decode_float<FSqrt, 1>;
  t["rsqrt"] = &decode_float<FRsqrt, 1>;
  t["sin"] = &decode_float<FSin, 1>;
  t["cos"] = &decode_float<FCos, 1>;
  t["ex2"] = &decode_float<FEx2, 1>;
  t["lg2"] = &decode_float<FLg2, 1>;
  t["tanh"] = &decode_float<FTanh, 1>;
  t["copysign"] = &decode_float<CopySign, 2>;
  t["testp"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::FloatAlu;
    instr.type = type_part(a);
    static const char* names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    for (int i = 0; i < 6; ++i)
      if (a.has(names[i])) instr.imm[0] = i;
    instr.op[0] = c.predicate_dest(a.operands[0]);
    instr.op[1] = c.source(a.operands[1], size_of(instr.type));
    instr.fn = &exec_testp;
  };
}

}  // namespace hunyuan_kernels::simulator
