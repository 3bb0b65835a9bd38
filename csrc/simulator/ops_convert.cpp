// cvt between all integer and floating-point widths.
#include <algorithm>

#include "simulator/decode.h"
#include "simulator/floats.h"
#include "simulator/lanes.h"

namespace hunyuan_kernels::simulator {
namespace {

enum : uint32_t { kSatFinite = 1, kRelu = 2, kSat = 4, kIntegral = 8, kFtz = 16, kRna = 32 };

struct Number {  // a source value as integer or as double
  bool is_float;
  bool is_signed;
  uint64_t bits;
  double real;
};

Number load(Warp& warp, const Operand& o, ScalarType t, int lane) {
  uint64_t v = warp.value(o, lane);
  using T = ScalarType;
  switch (t) {
    case T::U8:
    case T::B8: return {false, false, v & 0xff, 0};
    case T::S8: return {false, true, (uint64_t)(int64_t)(int8_t)v, 0};
    case T::U16:
    case T::B16: return {false, false, v & 0xffff, 0};
    case T::S16: return {false, true, (uint64_t)(int64_t)(int16_t)v, 0};
    case T::U32:
    case T::B32: return {false, false, v & 0xffffffff, 0};
    case T::S32: return {false, true, (uint64_t)(int64_t)(int32_t)v, 0};
    case T::U64:
    case T::B64: return {false, false, v, 0};
    case T::S64: return {false, true, v, 0};
    case T::F16: return {true, true, 0, half_to_float((uint16_t)v)};
    case T::BF16: return {true, true, 0, bf16_to_float((uint16_t)v)};
    case T::TF32:
    case T::F32: return {true, true, 0, bit_cast<float>((uint32_t)v)};
    case T::F64: return {true, true, 0, bit_cast<double>(v)};
    default: return {};
  }
}

double round_integral(double v, Round r) {
  switch (r) {
    case Round::Nearest: return std::nearbyint(v);
    case Round::Zero: return std::trunc(v);
    case Round::Down: return std::floor(v);
    case Round::Up: return std::ceil(v);
  }
  return v;
}

float double_to_float(double v, Round r) {
  float f = (float)v;
  if (r == Round::Nearest || std::isnan(v) || (double)f == v) return f;
  if (r == Round::Down || (r == Round::Zero && v > 0)) {
    if ((double)f > v) f = std::nextafterf(f, -INFINITY);
  }
  if (r == Round::Up || (r == Round::Zero && v < 0)) {
    if ((double)f < v) f = std::nextafterf(f, INFINITY);
  }
  return f;
}

uint64_t encode_integer(double v, ScalarType t) {
  if (std::isnan(v)) return 0;
  int bits = size_of(t) * 8;
  if (is_signed(t)) {
    double lo = -std::ldexp(1.0, bits - 1), hi = std::ldexp(1.0, bits - 1);
    if (v <= lo) return bits == 64 ? 1ull << 63 : (uint64_t)(int64_t)lo;
    if (v >= hi) return (1ull << (bits - 1)) - 1;
    return (uint64_t)(int64_t)v;
  }
  if (v <= 0) return 0;
  if (v >= std::ldexp(1.0, bits)) return bits == 64 ? ~0ull : (1ull << bits) - 1;
  return (uint64_t)v;
}

uint64_t saturate_integer(const Number& n, ScalarType t) {
  int bits = size_of(t) * 8;
  if (is_signed(t)) {
    int64_t hi = (int64_t)((1ull << (bits - 1)) - 1), lo = -hi - 1, v = (int64_t)n.bits;
    if (!n.is_signed && n.bits > (uint64_t)hi) return (uint64_t)hi;
    return (uint64_t)std::min(hi, std::max(lo, v));
  }
  uint64_t hi = bits == 64 ? ~0ull : (1ull << bits) - 1;
  if (n.is_signed && (int64_t)n.bits < 0) return 0;
  return std::min(hi, n.bits);
}

uint64_t encode_real(double v, ScalarType t, Round r, uint32_t flags) {
  using T = ScalarType;
  bool satfinite = flags & kSatFinite;
  if ((flags & kRelu) && v < 0) v = 0;
  switch (t) {
    case T::F16: return encode_float(v, 5, 10, r, satfinite, false);
    case T::BF16: return encode_float(v, 8, 7, r, satfinite, false);
    case T::E4M3: return encode_float(v, 4, 3, r, satfinite, true);
    case T::E5M2: return encode_float(v, 5, 2, r, satfinite, false);
    case T::F32: {
      float f = double_to_float(v, r);
      if ((flags & kFtz) && std::fpclassify(f) == FP_SUBNORMAL) f = std::copysign(0.0f, f);
      return std::isnan(f) ? 0x7fffffffu : bit_cast<uint32_t>(f);
    }
    case T::TF32: {
      if (std::isnan(v)) return 0x7fffffffu;
      uint32_t u = bit_cast<uint32_t>((float)v);
      if (std::isinf(v)) return u;
      if (flags & kRna) return (u + 0x1000) & 0xffffe000u;  // ties away
      if (r == Round::Nearest) return (u + 0xfff + ((u >> 13) & 1)) & 0xffffe000u;
      return u & 0xffffe000u;
    }
    case T::F64: return bit_cast<uint64_t>(v);
    default: return 0;
  }
}

// type: destination, type2: source, imm[0]: rounding
ExecStatus exec_convert(Warp& warp, const Instr& instr, uint32_t mask) {
  const Round r = (Round)instr.imm[0];
  for (int lane : Lanes(mask)) {
    Number n = load(warp, instr.op[1], instr.type2, lane);
    uint64_t out;
    if (is_float(instr.type)) {
      if (!n.is_float) {
        if (instr.type == ScalarType::F32 && r == Round::Nearest) {
          float f = n.is_signed ? (float)(int64_t)n.bits : (float)n.bits;
          warp.set_value(instr.op[0], lane, bit_cast<uint32_t>(f));
          continue;
        }
        n.real = n.is_signed ? (double)(int64_t)n.bits : (double)n.bits;
      } else if (instr.flags & kIntegral) {
        n.real = round_integral(n.real, r);
      }
      if ((instr.flags & kFtz) && instr.type2 == ScalarType::F32 && std::fpclassify((float)n.real) == FP_SUBNORMAL)
        n.real = std::copysign(0.0, n.real);
      if (instr.flags & kSat) n.real = !(n.real > 0) ? 0 : n.real > 1 ? 1 : n.real;
      out = encode_real(n.real, instr.type, r, instr.flags);
    } else if (n.is_float) {
      out = encode_integer(round_integral(n.real, r), instr.type);
    } else {
      out = (instr.flags & kSat) ? saturate_integer(n, instr.type) : n.bits;
    }
    // Narrow results are extended to the register by their own sign.
    switch (instr.type) {
      case ScalarType::U8:
      case ScalarType::B8: out &= 0xff; break;
      case ScalarType::S8: out = (uint64_t)(int64_t)(int8_t)out; break;
      case ScalarType::U16:
      case ScalarType::B16: out &= 0xffff; break;
      case ScalarType::S16: out = (uint64_t)(int64_t)(int16_t)out; break;
      case ScalarType::U32:
      case ScalarType::B32: out &= 0xffffffff; break;
      case ScalarType::S32: out = (uint64_t)(int64_t)(int32_t)out; break;
      default: break;
    }
    warp.set_value(instr.op[0], lane, out);
  }
  return ExecStatus::Next;
}

// Packs two values: d = {hi: a, lo: b}. type: element type, type2: source
ExecStatus exec_pack(Warp& warp, const Instr& instr, uint32_t mask) {
  const Round r = (Round)instr.imm[0];
  const bool byte_elements = size_of(instr.type) == 1;
  const bool fast = (instr.type == ScalarType::BF16 || instr.type == ScalarType::F16) && r == Round::Nearest &&
                    !(instr.flags & kSatFinite);
  for (int lane : Lanes(mask)) {
    float hi, lo;
    if (instr.type2 == ScalarType::F32) {
      hi = warp.ptr<float>(instr.op[1])[lane];
      lo = warp.ptr<float>(instr.op[2])[lane];
    } else {  // packed f16x2 / bf16x2 source
      uint32_t v = warp.ptr<uint32_t>(instr.op[1])[lane];
      bool half = instr.type2 == ScalarType::F16x2;
      hi = half ? half_to_float(uint16_t(v >> 16)) : bf16_to_float(uint16_t(v >> 16));
      lo = half ? half_to_float(uint16_t(v)) : bf16_to_float(uint16_t(v));
    }
    if (fast) {
      if (instr.flags & kRelu) {
        hi = hi < 0 ? 0 : hi;
        lo = lo < 0 ? 0 : lo;
      }
      uint32_t h = instr.type == ScalarType::BF16 ? float_to_bf16(hi) : float_to_half(hi),
               o = instr.type == ScalarType::BF16 ? float_to_bf16(lo) : float_to_half(lo);
      warp.ptr<uint32_t>(instr.op[0])[lane] = (h << 16) | o;
      continue;
    }
    uint64_t h = encode_real(hi, instr.type, r, instr.flags), o = encode_real(lo, instr.type, r, instr.flags);
    warp.set_value(instr.op[0], lane, byte_elements ? (h << 8) | o : (h << 16) | o);
  }
  return ExecStatus::Next;
}

// e4m3x2 / e5m2x2 -> f16x2
ExecStatus exec_unpack_fp8(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    uint16_t v = warp.ptr<uint16_t>(instr.op[1])[lane];
    auto one = [&](uint8_t b) {
      float f = instr.type2 == ScalarType::E4M3x2 ? e4m3_to_float(b) : e5m2_to_float(b);
      if ((instr.flags & kRelu) && f < 0) f = 0;
      return (uint32_t)(std::isnan(f) ? 0x7fff : float_to_half(f));
    };
    warp.ptr<uint32_t>(instr.op[0])[lane] = (one(uint8_t(v >> 8)) << 16) | one(uint8_t(v));
  }
  return ExecStatus::Next;
}

ExecStatus exec_pack_saturated(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t bits = size_of(instr.type) * 8, field = (1u << bits) - 1;
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const int32_t *a = warp.ptr<int32_t>(instr.op[1]), *b = warp.ptr<int32_t>(instr.op[2]);
  const uint32_t* c = instr.op[3].present ? warp.ptr<uint32_t>(instr.op[3]) : nullptr;
  for (int lane : Lanes(mask)) {
    auto saturate = [&](int32_t v) {
      return (uint32_t)saturate_integer({false, true, (uint64_t)(int64_t)v, 0}, instr.type) & field;
    };
    uint32_t low = saturate(b[lane]) | (saturate(a[lane]) << bits);
    d[lane] = bits == 16 ? low : low | (c ? c[lane] << 16 : 0);
  }
  return ExecStatus::Next;
}

template <typename D, typename S>
ExecStatus exec_int_resize(Warp& warp, const Instr& instr, uint32_t mask) {
  D* d = warp.ptr<D>(instr.op[0]);
  const S* s = warp.ptr<S>(instr.op[1]);
  for_lanes(mask, [&](int lane) { d[lane] = (D)s[lane]; });
  return ExecStatus::Next;
}

void decode_convert(DecodeContext& c, const InstrAst& a, Instr& instr) {
  using T = ScalarType;
  instr.cls = InstrClass::Convert;
  if (a.parts[1] == "pack") {  // cvt.pack.sat.{u8,s8,u16,s16}.s32{.b32} d, a, b{, c}
    instr.type = type_part(a, 0);
    instr.op[0] = c.dest(a.operands[0], 4);
    instr.op[1] = c.source(a.operands[1], 4);
    instr.op[2] = c.source(a.operands[2], 4);
    if (a.operands.size() > 3) instr.op[3] = c.source(a.operands[3], 4);
    if (size_of(instr.type) > 2) c.unsupported();
    instr.fn = &exec_pack_saturated;
    return;
  }
  instr.type = type_part(a, 0);
  instr.type2 = type_part(a, 1);
  if (instr.type2 == T::None) c.unsupported();
  Round r = Round::Nearest;
  bool integral = false;
  for (auto p : a.parts) {
    if (p == "rz" || p == "rzi") r = Round::Zero;
    if (p == "rm" || p == "rmi") r = Round::Down;
    if (p == "rp" || p == "rpi") r = Round::Up;
    if (p == "rni" || p == "rzi" || p == "rmi" || p == "rpi") integral = true;
  }
  if (is_float(instr.type2) && !is_float(instr.type) && !integral && !a.has("rn")) r = Round::Zero;
  instr.imm[0] = (int64_t)r;
  instr.flags = (a.has("satfinite") ? kSatFinite : 0u) | (a.has("relu") ? kRelu : 0u) | (a.has("sat") ? kSat : 0u) |
                (integral ? kIntegral : 0u) | (a.has("ftz") ? kFtz : 0u) | (a.has("rna") ? kRna : 0u);
  instr.op[0] = c.dest(a.operands[0]);
  auto element = [](T t) {
    return t == T::F16x2    ? T::F16
           : t == T::BF16x2 ? T::BF16
           : t == T::E4M3x2 ? T::E4M3
           : t == T::E5M2x2 ? T::E5M2
                            : T::None;
  };
  if (instr.type2 == T::E4M3x2 || instr.type2 == T::E5M2x2) {
    if (instr.type != T::F16x2 || instr.op[0].bytes < 4) c.unsupported();
    instr.op[1] = c.source(a.operands[1], 2);
    instr.fn = lane_parallel<&exec_unpack_fp8>();
    return;
  }
  if (element(instr.type) != T::None) {
    if (instr.op[0].bytes < size_of(instr.type)) c.unsupported("destination");
    instr.type = element(instr.type);
    instr.op[1] = c.source(a.operands[1], 4);
    if (instr.type2 == T::F32) instr.op[2] = c.source(a.operands[2], 4);
    instr.fn = lane_parallel<&exec_pack>();
    return;
  }
  instr.op[1] = c.any_source(a.operands[1], size_of(instr.type2));
  instr.fn = lane_parallel<&exec_convert>();
  if (instr.flags == 0 && instr.op[0].bytes == size_of(instr.type) && instr.op[1].bytes == size_of(instr.type2) &&
      !is_float(instr.type) && !is_float(instr.type2)) {
    uint32_t db = size_of(instr.type), sb = size_of(instr.type2);
    bool s = is_signed(instr.type2);
    if (db == 8 && sb == 4)
      instr.fn = s ? lane_parallel<&exec_int_resize<uint64_t, int32_t>>()
                   : lane_parallel<&exec_int_resize<uint64_t, uint32_t>>();
    if (db == 4 && sb == 8) instr.fn = lane_parallel<&exec_int_resize<uint32_t, uint64_t>>();
    if (db == 4 && sb == 2)
      instr.fn = s ? lane_parallel<&exec_int_resize<uint32_t, int16_t>>()
                   : lane_parallel<&exec_int_resize<uint32_t, uint16_t>>();
    if (db == 2 && sb == 4) instr.fn = lane_parallel<&exec_int_resize<uint16_t, uint32_t>>();
  }
  if (instr.flags == 0 && r == Round::Nearest && instr.type == T::F32 && instr.op[0].bytes == 4 &&
      instr.op[1].bytes == 4) {
    if (instr.type2 == T::S32) instr.fn = lane_parallel<&exec_int_resize<float, int32_t>>();
    if (instr.type2 == T::U32) instr.fn = lane_parallel<&exec_int_resize<float, uint32_t>>();
  }
}

}  // namespace

void register_convert_ops(OpTable& t) { t["cvt"] = &decode_convert; }

}  // namespace hunyuan_kernels::simulator
