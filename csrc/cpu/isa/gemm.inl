// Microkernels of the GEMM core:  sums[r][c] = sum_k a[r][k] * b[c][k],  fp32.
//
// Packers turn lines of elements into panels (isa/gemm.h). `floats` panels hold fp32 words and serve every element
// type; `pairs` panels hold two bf16 in a word and serve the instruction sets with bf16 dot products. A new element
// type needs part() for the schemes whose words hold its values exactly, one_step() for lines with another stride,
// panel_word() for few rows, and its line in the tables; nothing else.
//
// multiply() keeps a tile of kGemmRows x kGemmColumns sums in registers and walks both panels in order: per step one
// load for each vector of columns and one broadcast for each row. Few rows are done by dot products: gemm_dot.inl.

#if HK_VECTOR_FLOATS == 16  // 32 registers: 24 sums, 2 of b, 1 of a
constexpr int kGemmRows = 12, kGemmVectors = 2;
#elif HK_VECTOR_FLOATS == 8  // 16 registers: 12 sums, 2 of b, 1 of a
constexpr int kGemmRows = 6, kGemmVectors = 2;
#elif defined(__aarch64__)   // 32 registers: 24 sums, 4 of b, 1 of a
constexpr int kGemmRows = 6, kGemmVectors = 4;
#else                        // 16 registers, no fused multiply-add: 8 sums, 2 of b, products
constexpr int kGemmRows = 4, kGemmVectors = 2;
#endif
constexpr int kGemmColumns = kGemmVectors * kFloats;

#if defined(__AVX512F__)
// Keeps a broadcast in a register: one load for all columns, not one folded into each multiplication.
#define HK_GEMM_KEEP(v) asm("" : "+v"(v))
#else
#define HK_GEMM_KEEP(v)
#endif
// A product stays one: whether the compiler fuses it into the addition behind would depend on the code around.
#if defined(__AVX512F__)
#define HK_GEMM_ROUNDED(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define HK_GEMM_ROUNDED(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define HK_GEMM_ROUNDED(v) asm("" : "+w"(v))
#else
#define HK_GEMM_ROUNDED(v)
#endif

struct FloatPanels {
  static constexpr int k_step = 1;
};
struct PairPanels {
  static constexpr int k_step = 2;
};

// ---- words ---------------------------------------------------------------------------------------------------------

// A word of a line holds 4 / sizeof(Element) elements; `words` is the same word of several lines, or several words of
// one line. part() gives their elements as words of a panel, for step j of the word's kParts steps.
template <typename Panels, typename Element>
constexpr int kParts = 4 / sizeof(Element) / Panels::k_step;

HK_INLINE Words part(FloatPanels, const float*, Words words, int) { return words; }
HK_INLINE Words part(FloatPanels, const bfloat16*, Words words, int j) {
  return j == 0 ? words << 16 : words & 0xffff0000u;
}
HK_INLINE Words part(PairPanels, const bfloat16*, Words words, int) { return words; }
HK_INLINE Words part(FloatPanels, const float8_e4m3fn*, Words words, int j) {
  return expand_e4m3(words << (24 - 8 * j));
}

// Within 16 bytes, e4m3 of four columns: from [column][k] to [k / 2][column][k % 2], and back.
typedef uint8_t WordBytes __attribute__((vector_size(4 * kFloats)));
template <int... kByte>
HK_INLINE Words e4m3_by_pair(Words words, LaneNumbers<kByte...>) {
  const WordBytes bytes = (WordBytes)words;
  return (Words)__builtin_shufflevector(bytes, bytes,
                                        ((kByte & ~15) + (kByte >> 1 & 3) * 4 + (kByte >> 3 & 1) * 2 + (kByte & 1))...);
}
template <int... kByte>
HK_INLINE Words e4m3_by_column(Words words, LaneNumbers<kByte...>) {
  const WordBytes bytes = (WordBytes)words;
  return (Words)__builtin_shufflevector(bytes, bytes,
                                        ((kByte & ~15) + (kByte >> 1 & 1) * 8 + (kByte >> 2 & 3) * 2 + (kByte & 1))...);
}
#if defined(__AVX512BF16__)
// The upper and lower bytes of the bf16 values of the 128 magnitudes of e4m3.
struct E4m3Tables {
  alignas(64) uint8_t upper[128] = {}, lower[128] = {};
  constexpr E4m3Tables() {
    for (int magnitude = 0; magnitude < 128; ++magnitude) {
      int exponent = magnitude >> 3, mantissa = magnitude & 7;
      if (exponent == 0 && mantissa != 0) {  // subnormal: mantissa * 2^-9
        exponent = 1;
        for (; mantissa < 8; mantissa *= 2) --exponent;
        mantissa -= 8;
      } else if (magnitude == 0) {
        exponent = -120;
      }
      const int bits = magnitude == 127 ? 0x7fc0 : ((exponent + 120) << 7) | (mantissa << 4);
      upper[magnitude] = static_cast<uint8_t>(bits >> 8);
      lower[magnitude] = static_cast<uint8_t>(bits);
    }
  }
};
constexpr E4m3Tables e4m3_tables;

// The 16 bytes of each 128 bits as 16 bf16, exact: the first eight (j = 0) or the last eight. The upper and the lower
// bytes come from two tables, and are interleaved.
HK_INLINE Words e4m3_pairs(Words words, int j) {
  const __m512i index = (__m512i)words;
  const auto look_up = [&](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  };
  const __m512i lower = look_up(e4m3_tables.lower);
  const __m512i upper = _mm512_ternarylogic_epi32(look_up(e4m3_tables.upper), index,
                                                  _mm512_set1_epi32(static_cast<int>(0x80808080u)), 0xf8);
  return (Words)(j == 0 ? _mm512_unpacklo_epi8(lower, upper) : _mm512_unpackhi_epi8(lower, upper));
}
// The bytes 2j and 2j + 1 of each word.
HK_INLINE Words part(PairPanels, const float8_e4m3fn*, Words words, int j) {
  return e4m3_pairs(e4m3_by_pair(words, LaneNumbersFrom<4 * kFloats>::All{}), j);
}
#elif defined(HK_BF16_DOT)
HK_INLINE Words part(PairPanels, const float8_e4m3fn*, Words words, int j) {
  return expand_e4m3(words << (24 - 16 * j)) >> 16 | (expand_e4m3(words << (16 - 16 * j)) & 0xffff0000u);
}
#endif

template <typename Panels, typename Element>
HK_INLINE void expand(Words words, uint32_t* panel, int width) {
  HK_UNROLL for (int j = 0; j < kParts<Panels, Element>; ++j)
      store_as(panel + j * width, part(Panels{}, static_cast<const Element*>(nullptr), words, j));
}

// One step of kFloats lines that lie side by side: their elements k at `first`, k + 1 at `second` (null past the
// depth).
template <typename Element>
HK_INLINE Words one_step(FloatPanels, const Element* first, const Element*) {
  return as_words(load(first));
}
HK_INLINE Words one_step(PairPanels, const bfloat16* first, const bfloat16* second) {
  Words words = widen(load_as<Halves>(first));
  return second ? words | (widen(load_as<Halves>(second)) << 16) : words;
}
HK_INLINE Words one_step(PairPanels, const float8_e4m3fn* first, const float8_e4m3fn* second) {
  const Words words = one_step(FloatPanels{}, first, second) >> 16;
  return second ? words | (one_step(FloatPanels{}, second, second) & 0xffff0000u) : words;
}

// ---- packers -------------------------------------------------------------------------------------------------------

template <int... Lane>
struct Lanes {};
#if HK_VECTOR_FLOATS == 16
using PairLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif HK_VECTOR_FLOATS == 8
using PairLanes = Lanes<0, 1, 2, 3>;
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using PairLanes = Lanes<0, 1>;
using AllLanes = Lanes<0, 1, 2, 3>;
#endif
typedef uint64_t Pairs __attribute__((vector_size(4 * kFloats)));

// x and y become what the steps of a transposition need side by side. Within 128 bits: the words (Vector = Words) or
// the pairs of words (Pairs) of their lower halves interleaved, and those of their upper halves; a single instruction
// each.
template <typename Vector, int... Lane>
HK_INLINE void interleave_halves(Words& x, Words& y, Lanes<Lane...>) {
  constexpr int kHalf = 8 / sizeof(Vector{}[0]), kLanes = sizeof(Vector) / sizeof(Vector{}[0]);
  const Vector a = (Vector)x, b = (Vector)y;
  x = (Words)__builtin_shufflevector(a, b,
                                     (Lane / (2 * kHalf) * 2 * kHalf + Lane % (2 * kHalf) / 2 + Lane % 2 * kLanes)...);
  y = (Words)__builtin_shufflevector(
      a, b, (Lane / (2 * kHalf) * 2 * kHalf + kHalf + Lane % (2 * kHalf) / 2 + Lane % 2 * kLanes)...);
}
// Between 128-bit lanes: the even ones of x and y, and the odd ones.
template <int... Lane>
HK_INLINE void separate_lanes(Words& x, Words& y, Lanes<Lane...>) {
  Words even = __builtin_shufflevector(x, y, (Lane / 4 * 8 + Lane % 4)...);
  y = __builtin_shufflevector(x, y, (Lane / 4 * 8 + 4 + Lane % 4)...);
  x = even;
}
// Transposes kFloats x kFloats words.
HK_INLINE void transpose(Words* w) {
  HK_UNROLL for (int i = 0; i < kFloats; i += 2) interleave_halves<Words>(w[i], w[i + 1], AllLanes{});
  HK_UNROLL for (int i = 0; i < kFloats; i += 4) {
    interleave_halves<Pairs>(w[i], w[i + 2], PairLanes{});
    interleave_halves<Pairs>(w[i + 1], w[i + 3], PairLanes{});
    Words second = w[i + 2];  // in the order of the columns
    w[i + 2] = w[i + 1];
    w[i + 1] = second;
  }
#if HK_VECTOR_FLOATS >= 8
  HK_UNROLL for (int i = 0; i < kFloats; i += 8) HK_UNROLL for (int j = 0; j < 4; ++j)
      separate_lanes(w[i + j], w[i + j + 4], AllLanes{});
#endif
#if HK_VECTOR_FLOATS >= 16
  HK_UNROLL for (int j = 0; j < 8; ++j) separate_lanes(w[j], w[j + 8], AllLanes{});
#endif
}

// Lines with k stride 1. Blocks of kFloats lines x kFloats words are transposed in registers. Stores are whole vectors:
// what they write past `count` lines belongs to the next step, which is stored later. For that the vectors of lines run
// backwards.
template <typename Panels, typename Element>
void pack_along_k(const void* lines_, int64_t stride, int64_t, int count, int64_t depth, int width, uint32_t* panel) {
  constexpr int kWord = 4 / sizeof(Element), kBlock = kFloats * kWord;
  const Element* lines = static_cast<const Element*>(lines_);
  const int64_t word_step = static_cast<int64_t>(kParts<Panels, Element>) * width;
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int rest = static_cast<int>(minimum(kBlock, depth - k));
    for (int group = (count - 1) / kFloats * kFloats; group >= 0; group -= kFloats) {
      const int here = count - group < kFloats ? count - group : kFloats;
      const Element* from = lines + group * stride + k;
      uint32_t* to = panel + k / Panels::k_step * width + group;
      Words w[kFloats];
      if (rest == kBlock) {
        HK_UNROLL for (int i = 0; i < kFloats; ++i) {
          w[i] = load_as<Words>(from);
          from += i + 1 < here ? stride : 0;  // past the last line: that line again
        }
        transpose(w);
        HK_UNROLL for (int i = 0; i < kFloats; ++i, to += word_step) expand<Panels, Element>(w[i], to, width);
      } else {
        for (int i = 0; i < kFloats; ++i, from += stride) {
          w[i] = Words{};
          if (i < here) __builtin_memcpy(&w[i], from, rest * sizeof(Element));
        }
        transpose(w);
        for (int i = 0; i * kWord < rest; ++i, to += word_step) expand<Panels, Element>(w[i], to, width);
      }
    }
  }
}

// Lines that lie side by side: line stride 1. Vectors of lines run backwards, as above.
template <typename Panels, typename Element>
void pack_along_lines(const void* lines, int64_t stride, int64_t available, int count, int64_t depth, int width,
                      uint32_t* panel) {
  const Element* from = static_cast<const Element*>(lines);
  const int last = (count - 1) / kFloats * kFloats;  // the last vector of lines
  const bool whole = available - last >= kFloats;    // all of it may be read
  for (int64_t k = 0; k < depth; k += Panels::k_step, from += Panels::k_step * stride, panel += width) {
    const Element* next = Panels::k_step > 1 && k + 1 < depth ? from + stride : nullptr;
    if (!whole) {
      Element first[kFloats] = {}, second[kFloats] = {};
      for (int i = 0; i < available - last; ++i) {
        first[i] = from[last + i];
        if (next) second[i] = next[last + i];
      }
      store_as(panel + last, one_step(Panels{}, first, second));
    }
    for (int group = whole ? last : last - kFloats; group >= 0; group -= kFloats)
      store_as(panel + group, one_step(Panels{}, from + group, next ? next + group : nullptr));
  }
}

// ---- multiplication ------------------------------------------------------------------------------------------------

HK_INLINE Floats multiply_add(FloatPanels, Floats sum, Words a, Words b) { return sum + as_floats(a) * as_floats(b); }
#if defined(__AVX512BF16__)
HK_INLINE Floats multiply_add(PairPanels, Floats sum, Words a, Words b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#elif defined(HK_BF16_DOT)
HK_INLINE Floats multiply_add(PairPanels, Floats sum, Words a, Words b) {
  return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#endif

template <typename Panels, int kRows>
HK_INLINE void multiply_step(const uint32_t* a, const uint32_t* b, Floats (&sum)[kRows][kGemmVectors]) {
  __builtin_prefetch(a + 512, 0, 3);  // 2 KiB ahead: the hardware stops at pages
  Words columns[kGemmVectors];
  HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) columns[j] = load_as<Words>(b + j * kFloats);
  HK_UNROLL for (int i = 0; i < kRows; ++i) {
    Words row = splat_bits(a[i]);
    HK_GEMM_KEEP(row);
    HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) sum[i][j] = multiply_add(Panels{}, sum[i][j], row, columns[j]);
  }
}

template <typename Panels, int kRows>
void multiply_rows(const uint32_t* a, const uint32_t* b, int64_t steps, float* sums, int width, bool accumulate,
                   const float* row_scales, const float* column_scales, const GemmPrefetch* prefetch) {
  Floats sum[kRows][kGemmVectors] = {};
  int64_t step = 0;
  if (prefetch) {  // one place a step, so that the multipliers never wait for a free miss slot
    const char *line = prefetch->first, *place = line;
    int64_t left = prefetch->runs;
    for (; step < minimum(steps, prefetch->runs * prefetch->lines); ++step, a += kRows, b += kGemmColumns) {
      __builtin_prefetch(place, 0, 2);
      __builtin_prefetch(place + prefetch->second, 0, 2);
      place += prefetch->stride;
      if (--left == 0) place = line += 64, left = prefetch->runs;
      multiply_step<Panels, kRows>(a, b, sum);
    }
  }
  for (; step < steps; ++step, a += kRows, b += kGemmColumns) multiply_step<Panels, kRows>(a, b, sum);
  HK_UNROLL for (int i = 0; i < kRows; ++i) HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) {
    float* to = sums + i * width + j * kFloats;
    Floats value = sum[i][j];
    if (row_scales) {
      value *= row_scales[i] * load(column_scales + j * kFloats);
      HK_GEMM_ROUNDED(value);
    }
    store(to, accumulate ? load(to) + value : value);
  }
}

template <typename Panels>
void multiply(const uint32_t* a, const uint32_t* b, int64_t steps, int rows, float* sums, int width, bool accumulate,
              const float* row_scales, const float* column_scales, const GemmPrefetch* prefetch) {
#define HK_CASE(n)                                                                                                \
  case n:                                                                                                         \
    if constexpr (n <= kGemmRows)                                                                                 \
      return multiply_rows<Panels, n>(a, b, steps, sums, width, accumulate, row_scales, column_scales, prefetch); \
    break;
  switch (rows) {
    HK_CASE(1)
    HK_CASE(2)
    HK_CASE(3)
    HK_CASE(4)
    HK_CASE(5)
    HK_CASE(6)
    HK_CASE(7)
    HK_CASE(8)
    HK_CASE(9)
    HK_CASE(10)
    HK_CASE(11)
    HK_CASE(12)
  }
#undef HK_CASE
}

#include "cpu/isa/gemm_dot.inl"
#include "cpu/isa/gemm_packed.inl"

// ---- epilogues -----------------------------------------------------------------------------------------------------

template <typename Element>
void store_rows(const float* sums, int width, int64_t rows, int64_t columns, Element* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row, sums += width, out += out_stride) {
    int64_t c = 0;
    for (; c + kFloats <= columns; c += kFloats) store(out + c, load(sums + c));
    if (c < columns) store_partial(out + c, load(sums + c), static_cast<int>(columns - c));
  }
}

void store_sums(const float* sums, int width, int64_t rows, int64_t columns, DType dtype, void* out,
                int64_t out_stride) {
  if (dtype == DType::bfloat16)
    store_rows(sums, width, rows, columns, static_cast<bfloat16*>(out), out_stride);
  else
    store_rows(sums, width, rows, columns, static_cast<float*>(out), out_stride);
}

void accumulate_sums(const float* sums, int width, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row, sums += width, out += out_stride) {
    int64_t c = 0;
    for (; c + kFloats <= columns; c += kFloats) store(out + c, load(out + c) + load(sums + c));
    for (; c < columns; ++c) out[c] += sums[c];
  }
}

// ---- tables --------------------------------------------------------------------------------------------------------

GemmPack float_packer(DType dtype, bool along_k) {
  switch (dtype) {
    case DType::float32: return along_k ? pack_along_k<FloatPanels, float> : pack_along_lines<FloatPanels, float>;
    case DType::bfloat16:
      return along_k ? pack_along_k<FloatPanels, bfloat16> : pack_along_lines<FloatPanels, bfloat16>;
    case DType::float8_e4m3fn:
      return along_k ? pack_along_k<FloatPanels, float8_e4m3fn> : pack_along_lines<FloatPanels, float8_e4m3fn>;
    default: return nullptr;
  }
}

constexpr GemmScheme float_scheme = {FloatPanels::k_step,   kGemmRows, kGemmColumns, float_packer,
                                     multiply<FloatPanels>, kDotRows,  float_dot,    kPackedRows,
                                     float_packed};

#if defined(HK_BF16_DOT)
GemmPack pair_packer(DType dtype, bool along_k) {
  if (dtype == DType::float8_e4m3fn)
    return along_k ? pack_along_k<PairPanels, float8_e4m3fn> : pack_along_lines<PairPanels, float8_e4m3fn>;
  if (dtype != DType::bfloat16) return nullptr;
  return along_k ? pack_along_k<PairPanels, bfloat16> : pack_along_lines<PairPanels, bfloat16>;
}
constexpr GemmScheme pair_scheme = {PairPanels::k_step, kGemmRows, kGemmColumns, pair_packer, multiply<PairPanels>,
                                    kDotRows,           pair_dot,  kPackedRows,  pair_packed};
#else
constexpr GemmScheme pair_scheme = {};
#endif

constexpr GemmKernels gemm_kernels = {float_scheme, pair_scheme, store_sums, accumulate_sums};
