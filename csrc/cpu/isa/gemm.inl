// Microkernels of the GEMM core:  sums[r][c] = sum_k a[r][k] * b[c][k],  fp32.
//
// Packers turn lines of elements into panels (isa/gemm.h). `floats` panels hold fp32 words and serve every element
// type; `pairs` panels hold two bf16 in a word and serve the instruction sets with bf16 dot products. A new element
// type needs expand() for the schemes it fits and, for lines with another stride, one_step(); nothing else.
//
// multiply() keeps a tile of kGemmRows x kGemmColumns sums in registers and walks both panels in order: per step one
// load for each vector of columns and one broadcast for each row.

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

struct FloatPanels {
  static constexpr int k_step = 1;
};
struct PairPanels {
  static constexpr int k_step = 2;
};

// ---- words ---------------------------------------------------------------------------------------------------------

// A word of a line holds 4 / sizeof(Element) elements; `words` is the same word of kFloats lines. expand() stores what
// they are in the panel: one vector per step.
HK_INLINE void expand(FloatPanels, const float*, Words words, uint32_t* panel, int) { store_as(panel, words); }
HK_INLINE void expand(FloatPanels, const bfloat16*, Words words, uint32_t* panel, int width) {
  store_as(panel, words << 16);
  store_as(panel + width, words & 0xffff0000u);
}
HK_INLINE void expand(PairPanels, const bfloat16*, Words words, uint32_t* panel, int) { store_as(panel, words); }

// One step of kFloats lines that lie side by side: `first` holds their elements k, `second` (null past the depth) k
// + 1.
template <typename Element>
HK_INLINE Words one_step(FloatPanels, const Element* first, const Element*, int64_t lines) {
  return as_words(lines >= kFloats ? load(first) : load_partial(first, static_cast<int>(lines)));
}
HK_INLINE Words halves_of(const bfloat16* from, int64_t lines) {
  bfloat16 padded[kFloats] = {};
  if (lines < kFloats) from = static_cast<bfloat16*>(__builtin_memcpy(padded, from, lines * sizeof(bfloat16)));
  return __builtin_convertvector(load_as<Halves>(from), Words);
}
HK_INLINE Words one_step(PairPanels, const bfloat16* first, const bfloat16* second, int64_t lines) {
  Words words = halves_of(first, lines);
  return second ? words | (halves_of(second, lines) << 16) : words;
}

// ---- packers -------------------------------------------------------------------------------------------------------

template <int... Lane>
struct Lanes {};
#if HK_VECTOR_FLOATS == 16
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif HK_VECTOR_FLOATS == 8
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Exchanges the lanes of x that have bit `Bit` in their number with those of y that have not.
template <int Bit, int... Lane>
HK_INLINE void exchange(Words& x, Words& y, Lanes<Lane...>) {
  Words low = __builtin_shufflevector(x, y, ((Lane & Bit) ? kFloats + Lane - Bit : Lane)...);
  y = __builtin_shufflevector(x, y, ((Lane & Bit) ? kFloats + Lane : Lane + Bit)...);
  x = low;
}
template <int Bit>
HK_INLINE void transpose_bit(Words* w) {
  HK_UNROLL for (int i = 0; i < kFloats; ++i) if (!(i & Bit)) exchange<Bit>(w[i], w[i + Bit], AllLanes{});
}
// Transposes kFloats x kFloats words: one bit of the index at a time.
HK_INLINE void transpose(Words* w) {
  transpose_bit<1>(w);
  transpose_bit<2>(w);
#if HK_VECTOR_FLOATS >= 8
  transpose_bit<4>(w);
#endif
#if HK_VECTOR_FLOATS >= 16
  transpose_bit<8>(w);
#endif
}

// Lines with k stride 1. Blocks of kFloats lines x kFloats words are transposed in registers. Stores are whole vectors:
// what they write past `count` lines belongs to the next step, which is stored later. For that the vectors of lines run
// backwards.
template <typename Panels, typename Element>
void pack_along_k(const void* lines_, int64_t stride, int64_t, int count, int64_t depth, int width, uint32_t* panel,
                  const void* prefetch_) {
  constexpr int kWord = 4 / sizeof(Element), kBlock = kFloats * kWord;
  const Element* lines = static_cast<const Element*>(lines_);
  const Element* prefetch = static_cast<const Element*>(prefetch_);
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int rest = static_cast<int>(minimum(kBlock, depth - k)), words = (rest + kWord - 1) / kWord;
    for (int group = (count - 1) / kFloats * kFloats; group >= 0; group -= kFloats) {
      const Element* from = lines + group * stride + k;
      uint32_t* to = panel + k / Panels::k_step * width + group;
      const int here = count - group < kFloats ? count - group : kFloats;
      Words w[kFloats];
      if (here == kFloats && rest == kBlock) {
        HK_UNROLL for (int i = 0; i < kFloats; ++i) {
          w[i] = load_as<Words>(from + i * stride);
          if (prefetch) __builtin_prefetch(prefetch + (group + i) * stride + k, 0, 2);
        }
      } else {
        for (int i = 0; i < kFloats; ++i) {
          w[i] = Words{};
          if (i < here) __builtin_memcpy(&w[i], from + i * stride, rest * sizeof(Element));
        }
      }
      transpose(w);
      if (rest == kBlock) {
        HK_UNROLL for (int i = 0; i < kFloats; ++i)
            expand(Panels{}, lines, w[i], to + i * (kWord / Panels::k_step) * width, width);
      } else {
        for (int i = 0; i < words; ++i) expand(Panels{}, lines, w[i], to + i * (kWord / Panels::k_step) * width, width);
      }
    }
  }
}

// Lines that lie side by side: line stride 1.
template <typename Panels, typename Element>
void pack_along_lines(const void* lines_, int64_t stride, int64_t available, int count, int64_t depth, int width,
                      uint32_t* panel, const void* prefetch_) {
  const Element* from = static_cast<const Element*>(lines_);
  const Element* prefetch = static_cast<const Element*>(prefetch_);
  for (int64_t k = 0; k < depth; k += Panels::k_step, panel += width) {
    const Element* first = from + k * stride;
    const Element* second = Panels::k_step > 1 && k + 1 < depth ? first + stride : nullptr;
    for (int group = (count - 1) / kFloats * kFloats; group >= 0; group -= kFloats)
      store_as(panel + group, one_step(Panels{}, first + group, second ? second + group : nullptr, available - group));
    if (prefetch)
      for (int step = 0; step < Panels::k_step; ++step) __builtin_prefetch(prefetch + (k + step) * stride, 0, 2);
  }
}

// ---- multiplication ------------------------------------------------------------------------------------------------

HK_INLINE Floats multiply_add(FloatPanels, Floats sum, Words a, Words b) { return sum + as_floats(a) * as_floats(b); }
#if defined(__AVX512BF16__)
HK_INLINE Floats multiply_add(PairPanels, Floats sum, Words a, Words b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

template <typename Panels, int kRows>
void multiply_rows(const uint32_t* a, const uint32_t* b, int64_t steps, float* sums, bool accumulate,
                   const float* row_scales, const float* column_scales) {
  Floats sum[kRows][kGemmVectors] = {};
  for (int64_t step = 0; step < steps; ++step, a += kRows, b += kGemmColumns) {
    Words columns[kGemmVectors];
    HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) columns[j] = load_as<Words>(b + j * kFloats);
    HK_UNROLL for (int i = 0; i < kRows; ++i) {
      Words row = splat_bits(a[i]);
      HK_GEMM_KEEP(row);
      HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) sum[i][j] = multiply_add(Panels{}, sum[i][j], row, columns[j]);
    }
  }
  HK_UNROLL for (int i = 0; i < kRows; ++i) HK_UNROLL for (int j = 0; j < kGemmVectors; ++j) {
    float* to = sums + i * kGemmColumns + j * kFloats;
    Floats value = sum[i][j];
    if (row_scales) value *= row_scales[i] * load(column_scales + j * kFloats);
    store(to, accumulate ? load(to) + value : value);
  }
}

template <typename Panels>
void multiply(const uint32_t* a, const uint32_t* b, int64_t steps, int rows, float* sums, bool accumulate,
              const float* row_scales, const float* column_scales) {
#define HK_CASE(n)                                                                               \
  case n:                                                                                        \
    if constexpr (n <= kGemmRows)                                                                \
      return multiply_rows<Panels, n>(a, b, steps, sums, accumulate, row_scales, column_scales); \
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
    default: return nullptr;
  }
}

constexpr GemmScheme float_scheme = {FloatPanels::k_step, kGemmRows, kGemmColumns, float_packer, multiply<FloatPanels>};

#if defined(__AVX512BF16__)
GemmPack pair_packer(DType dtype, bool along_k) {
  if (dtype != DType::bfloat16) return nullptr;
  return along_k ? pack_along_k<PairPanels, bfloat16> : pack_along_lines<PairPanels, bfloat16>;
}
constexpr GemmScheme pair_scheme = {PairPanels::k_step, kGemmRows, kGemmColumns, pair_packer, multiply<PairPanels>};
#else
constexpr GemmScheme pair_scheme = {};
#endif

constexpr GemmKernels gemm_kernels = {float_scheme, pair_scheme, store_sums, accumulate_sums};
