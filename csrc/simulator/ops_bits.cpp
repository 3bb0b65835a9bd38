// Shifts and bit manipulation.
#include <algorithm>
#include <type_traits>

#include "simulator/decode.h"
#include "simulator/lanes.h"

namespace hunyuan_kernels::simulator {
namespace {

template <typename T>
constexpr int bits_of() {
  return int(sizeof(T) * 8);
}

struct Brev {
  template <typename T>
  static T apply(T a) {
    T r = 0;
    for (int i = 0; i < bits_of<T>(); ++i)
      if ((a >> i) & 1) r |= T(1) << (bits_of<T>() - 1 - i);
    return r;
  }
};

template <typename T, bool left>
ExecStatus exec_shift(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  const uint32_t* b = warp.ptr<uint32_t>(instr.op[2]);
  constexpr uint32_t bits = sizeof(T) * 8;
  for_lanes(mask, [&](int lane) {
    uint32_t n = b[lane];
    if (left)
      d[lane] = n >= bits ? T(0) : T(a[lane] << n);
    else if (std::is_signed_v<T>)
      d[lane] = T(a[lane] >> (n >= bits ? bits - 1 : n));
    else
      d[lane] = n >= bits ? T(0) : T(a[lane] >> n);
  });
  return ExecStatus::Next;
}

// shf.l/.r with .wrap or .clamp: flags bit 0 left, bit 1 clamp.
ExecStatus exec_funnel_shift(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t *a = warp.ptr<uint32_t>(instr.op[1]), *b = warp.ptr<uint32_t>(instr.op[2]),
                 *c = warp.ptr<uint32_t>(instr.op[3]);
  const bool left = instr.flags & 1, clamp = instr.flags & 2;
  for_lanes(mask, [&](int lane) {
    uint32_t n = clamp ? std::min(c[lane], 32u) : c[lane] & 31;
    uint64_t both = (uint64_t(b[lane]) << 32) | a[lane];
    d[lane] = left ? uint32_t((both << n) >> 32) : uint32_t(both >> n);
    if (left && n == 32) d[lane] = a[lane];
  });
  return ExecStatus::Next;
}

template <typename T>
ExecStatus exec_popc(Warp& warp, const Instr& instr, uint32_t mask) {
  const T* a = warp.ptr<T>(instr.op[1]);
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = (uint32_t)__builtin_popcountll(a[lane]); });
  return ExecStatus::Next;
}
template <typename T>
ExecStatus exec_clz(Warp& warp, const Instr& instr, uint32_t mask) {
  const T* a = warp.ptr<T>(instr.op[1]);
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  for_lanes(mask, [&](int lane) {
    d[lane] = a[lane] ? (uint32_t)(__builtin_clzll(a[lane]) - (64 - bits_of<T>())) : bits_of<T>();
  });
  return ExecStatus::Next;
}
// flags: 1 = shiftamt
template <typename T>
ExecStatus exec_bfind(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  for_lanes(mask, [&](int lane) {
    T v = a[lane];
    if (std::is_signed_v<T> && v < 0) v = T(~v);
    uint64_t u = (std::make_unsigned_t<T>)v;
    uint32_t r = u ? 63 - __builtin_clzll(u) : 0xffffffffu;
    if ((instr.flags & 1) && r != 0xffffffffu) r = bits_of<T>() - 1 - r;
    d[lane] = r;
  });
  return ExecStatus::Next;
}
template <typename T>
ExecStatus exec_bfe(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  const uint32_t *b = warp.ptr<uint32_t>(instr.op[2]), *c = warp.ptr<uint32_t>(instr.op[3]);
  constexpr uint32_t bits = sizeof(T) * 8;
  for_lanes(mask, [&](int lane) {
    uint32_t pos = b[lane] & 0xff, len = c[lane] & 0xff;
    if (len == 0) {
      d[lane] = 0;
      return;
    }
    T v = std::is_signed_v<T> ? T(a[lane] >> std::min(pos, bits - 1)) : pos >= bits ? T(0) : T(a[lane] >> pos);
    if (len < bits) {
      uint32_t sh = bits - len;
      bool beyond = std::is_signed_v<T> && pos + len > bits;  // sign bit comes from the top bit of a
      if (!beyond) v = T(T(std::make_unsigned_t<T>(v) << sh) >> sh);
    }
    d[lane] = v;
  });
  return ExecStatus::Next;
}
template <typename T>
ExecStatus exec_bfi(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T *a = warp.ptr<T>(instr.op[1]), *b = warp.ptr<T>(instr.op[2]);
  const uint32_t *c = warp.ptr<uint32_t>(instr.op[3]), *n = warp.ptr<uint32_t>(instr.op[4]);
  constexpr uint32_t bits = sizeof(T) * 8;
  for_lanes(mask, [&](int lane) {
    uint32_t pos = c[lane] & 0xff, len = n[lane] & 0xff;
    if (pos >= bits || len == 0) {
      d[lane] = b[lane];
      return;
    }
    T field = (len >= bits ? ~T(0) : (T(1) << len) - 1) << pos;
    d[lane] = (b[lane] & ~field) | ((a[lane] << pos) & field);
  });
  return ExecStatus::Next;
}

ExecStatus exec_lop3(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t *a = warp.ptr<uint32_t>(instr.op[1]), *b = warp.ptr<uint32_t>(instr.op[2]),
                 *c = warp.ptr<uint32_t>(instr.op[3]);
  const uint32_t lut = (uint32_t)instr.imm[0];
  for_lanes(mask, [&](int lane) {
    uint32_t r = 0, x = a[lane], y = b[lane], z = c[lane];
    if (lut & 0x01) r |= ~x & ~y & ~z;
    if (lut & 0x02) r |= ~x & ~y & z;
    if (lut & 0x04) r |= ~x & y & ~z;
    if (lut & 0x08) r |= ~x & y & z;
    if (lut & 0x10) r |= x & ~y & ~z;
    if (lut & 0x20) r |= x & ~y & z;
    if (lut & 0x40) r |= x & y & ~z;
    if (lut & 0x80) r |= x & y & z;
    d[lane] = r;
  });
  return ExecStatus::Next;
}

ExecStatus exec_prmt(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t *a = warp.ptr<uint32_t>(instr.op[1]), *b = warp.ptr<uint32_t>(instr.op[2]),
                 *c = warp.ptr<uint32_t>(instr.op[3]);
  for_lanes(mask, [&](int lane) {
    uint64_t bytes = (uint64_t(b[lane]) << 32) | a[lane];
    uint32_t sel = c[lane], r = 0;
    static const uint16_t modes[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                         {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                         {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
    if (instr.flags) sel = modes[instr.flags - 1][sel & 3];
    for (int i = 0; i < 4; ++i) {
      uint32_t s = (sel >> (4 * i)) & 0xf;
      uint8_t v = uint8_t(bytes >> (8 * (s & 7)));
      if (s & 8) v = (v & 0x80) ? 0xff : 0;
      r |= uint32_t(v) << (8 * i);
    }
    d[lane] = r;
  });
  return ExecStatus::Next;
}

// bmsk: `b` ones starting at bit `a`. flags 1: wrap
ExecStatus exec_bit_mask(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t *a = warp.ptr<uint32_t>(instr.op[1]), *b = warp.ptr<uint32_t>(instr.op[2]);
  for_lanes(mask, [&](int lane) {
    uint32_t start = instr.flags ? a[lane] & 31 : a[lane], width = instr.flags ? b[lane] & 31 : std::min(b[lane], 32u);
    d[lane] = start > 31 ? 0 : uint32_t(((1ull << width) - 1) << start);
  });
  return ExecStatus::Next;
}

// szext: sign- or zero-extends the low `b` bits of `a`. flags 1: wrap
template <typename T>
ExecStatus exec_extend(Warp& warp, const Instr& instr, uint32_t mask) {
  T* d = warp.ptr<T>(instr.op[0]);
  const T* a = warp.ptr<T>(instr.op[1]);
  const uint32_t* b = warp.ptr<uint32_t>(instr.op[2]);
  for_lanes(mask, [&](int lane) {
    uint32_t width = instr.flags ? b[lane] & 31 : std::min(b[lane], 32u);
    d[lane] = width == 0 ? T(0) : T(T(uint32_t(a[lane]) << (32 - width)) >> (32 - width));
  });
  return ExecStatus::Next;
}

// dp4a / dp2a; flags: bit 0 a signed, bit 1 b signed, bit 2 dp2a, bit 3 dp2a.hi
ExecStatus exec_dot(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t* d = warp.ptr<uint32_t>(instr.op[0]);
  const uint32_t *a = warp.ptr<uint32_t>(instr.op[1]), *b = warp.ptr<uint32_t>(instr.op[2]),
                 *c = warp.ptr<uint32_t>(instr.op[3]);
  for_lanes(mask, [&](int lane) {
    int32_t sum = (int32_t)c[lane];
    auto byte_of = [](uint32_t v, int i, bool s) {
      uint8_t x = uint8_t(v >> (8 * i));
      return s ? (int32_t)(int8_t)x : (int32_t)x;
    };
    if (instr.flags & 4) {
      for (int i = 0; i < 2; ++i) {
        uint16_t half = uint16_t(a[lane] >> (16 * i));
        sum += ((instr.flags & 1) ? (int32_t)(int16_t)half : (int32_t)half) *
               byte_of(b[lane], i + ((instr.flags & 8) ? 2 : 0), instr.flags & 2);
      }
    } else {
      for (int i = 0; i < 4; ++i) sum += byte_of(a[lane], i, instr.flags & 1) * byte_of(b[lane], i, instr.flags & 2);
    }
    d[lane] = (uint32_t)sum;
  });
  return ExecStatus::Next;
}

// Extended precision with the carry flag. flags: bit 0 uses carry-in, bit 1 writes carry-out,
// bits 2-3: 0 add, 1 sub, 2 mad.lo, 3 mad.hi
template <bool left>
void decode_shift(DecodeContext& c, const InstrAst& a, Instr& instr) {
  using T = ScalarType;
  instr.type = type_part(a);
  instr.cls = InstrClass::IntegerAlu;
  instr.op[0] = c.dest(a.operands[0], size_of(instr.type));
  instr.op[1] = c.source(a.operands[1], size_of(instr.type));
  instr.op[2] = c.source(a.operands[2], 4);
  switch (instr.type) {
    case T::B16:
    case T::U16: instr.fn = lane_parallel<&exec_shift<uint16_t, left>>(); break;
    case T::S16: instr.fn = lane_parallel<&exec_shift<int16_t, left>>(); break;
    case T::B32:
    case T::U32: instr.fn = lane_parallel<&exec_shift<uint32_t, left>>(); break;
    case T::S32: instr.fn = lane_parallel<&exec_shift<int32_t, left>>(); break;
    case T::B64:
    case T::U64: instr.fn = lane_parallel<&exec_shift<uint64_t, left>>(); break;
    case T::S64: instr.fn = lane_parallel<&exec_shift<int64_t, left>>(); break;
    default: break;
  }
}

}  // namespace

void register_bit_ops(OpTable& t) {
  t["shl"] = &decode_shift<true>;
  t["shr"] = &decode_shift<false>;
  t["brev"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 1, size_of(instr.type));
    instr.fn =
        size_of(instr.type) == 8 ? lane_parallel<&exec1<uint64_t, Brev>>() : lane_parallel<&exec1<uint32_t, Brev>>();
  };
  t["popc"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 1, size_of(instr.type), 4);
    instr.fn = size_of(instr.type) == 8 ? lane_parallel<&exec_popc<uint64_t>>() : lane_parallel<&exec_popc<uint32_t>>();
  };
  t["clz"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 1, size_of(instr.type), 4);
    instr.fn = size_of(instr.type) == 8 ? lane_parallel<&exec_clz<uint64_t>>() : lane_parallel<&exec_clz<uint32_t>>();
  };
  t["bfind"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    instr.flags = a.has("shiftamt");
    c.operands(a, instr, 1, size_of(instr.type), 4);
    switch (instr.type) {
      case ScalarType::U32: instr.fn = lane_parallel<&exec_bfind<uint32_t>>(); break;
      case ScalarType::S32: instr.fn = lane_parallel<&exec_bfind<int32_t>>(); break;
      case ScalarType::U64: instr.fn = lane_parallel<&exec_bfind<uint64_t>>(); break;
      case ScalarType::S64: instr.fn = lane_parallel<&exec_bfind<int64_t>>(); break;
      default: break;
    }
  };
  t["bfe"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    instr.op[0] = c.dest(a.operands[0], size_of(instr.type));
    instr.op[1] = c.source(a.operands[1], size_of(instr.type));
    instr.op[2] = c.source(a.operands[2], 4);
    instr.op[3] = c.source(a.operands[3], 4);
    switch (instr.type) {
      case ScalarType::U32: instr.fn = lane_parallel<&exec_bfe<uint32_t>>(); break;
      case ScalarType::S32: instr.fn = lane_parallel<&exec_bfe<int32_t>>(); break;
      case ScalarType::U64: instr.fn = lane_parallel<&exec_bfe<uint64_t>>(); break;
      case ScalarType::S64: instr.fn = lane_parallel<&exec_bfe<int64_t>>(); break;
      default: break;
    }
  };
  t["bfi"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.type = type_part(a);
    instr.cls = InstrClass::IntegerAlu;
    uint32_t bytes = size_of(instr.type);
    instr.op[0] = c.dest(a.operands[0], bytes);
    instr.op[1] = c.source(a.operands[1], bytes);
    instr.op[2] = c.source(a.operands[2], bytes);
    instr.op[3] = c.source(a.operands[3], 4);
    instr.op[4] = c.source(a.operands[4], 4);
    instr.fn = bytes == 8 ? lane_parallel<&exec_bfi<uint64_t>>() : lane_parallel<&exec_bfi<uint32_t>>();
  };
  t["lop3"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    if (a.operands.size() != 5) c.unsupported("predicate form");
    instr.cls = InstrClass::IntegerAlu;
    instr.op[0] = c.dest(a.operands[0], 4);
    for (int i = 1; i <= 3; ++i) instr.op[i] = c.source(a.operands[i], 4);
    instr.imm[0] = (int64_t)c.immediate(a.operands[4]);
    instr.fn = lane_parallel<&exec_lop3>();
  };
  t["prmt"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::IntegerAlu;
    static const char* modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (int m = 0; m < 6; ++m)
      if (a.has(modes[m])) instr.flags = m + 1;
    c.operands(a, instr, 3, 4);
    instr.fn = lane_parallel<&exec_prmt>();
  };
  t["shf"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 3, 4);
    instr.flags = (a.has("l") ? 1 : 0) | (a.has("clamp") ? 2 : 0);
    instr.fn = lane_parallel<&exec_funnel_shift>();
  };
  t["bmsk"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::IntegerAlu;
    instr.flags = a.has("wrap");
    c.operands(a, instr, 2, 4);
    instr.fn = lane_parallel<&exec_bit_mask>();
  };
  t["szext"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::IntegerAlu;
    instr.flags = a.has("wrap");
    instr.type = type_part(a);
    c.operands(a, instr, 2, 4);
    instr.fn = instr.type == ScalarType::S32 ? lane_parallel<&exec_extend<int32_t>>()
                                             : lane_parallel<&exec_extend<uint32_t>>();
  };
  auto dot = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::IntegerAlu;
    c.operands(a, instr, 3, 4);
    bool two = a.parts[0] == "dp2a";
    instr.flags = (is_signed(type_part(a, 0)) ? 1 : 0) | (is_signed(type_part(a, 1)) ? 2 : 0) | (two ? 4 : 0) |
                  (a.has("hi") ? 8 : 0);
    instr.fn = lane_parallel<&exec_dot>();
  };
  t["dp4a"] = dot;
  t["dp2a"] = dot;
}

}  // namespace hunyuan_kernels::simulator
