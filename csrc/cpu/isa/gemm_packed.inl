// GEMM with weights that were packed once (isa/gemm.h: lines of 64 bytes, panels of 16 columns):
//
//   sums[r][c] (+)= scale * sum_k a[r][k] * b[c][k],  fp32, over the steps in order as multiply() does it.
//
// A tile of kRows x kVectors vectors of sums stays in registers while the vectors' panels are read side by side, one
// stream of memory each. Few rows take many streams: they are bound by memory, and their sums must be many enough to
// hide the latency of a multiplication. e4m3 and other short words come apart in registers, by part_packed().

#if HK_VECTOR_FLOATS == 16 || defined(__aarch64__)  // 32 registers
constexpr int kPackedRows = HK_VECTOR_FLOATS == 16 ? 16 : kGemmRows;
constexpr int packed_vectors(int rows, bool expands) { return rows <= (expands ? 4 : 6) ? 4 : rows <= 12 ? 2 : 1; }
// NF4 keeps two sets of sums.
constexpr int nf4_vectors(int rows) { return rows <= 4 ? 4 : rows <= 8 ? 2 : 1; }
#else  // 16 registers
constexpr int kPackedRows = kGemmRows;
constexpr int packed_vectors(int rows, bool expands) {
  return rows <= (expands ? 1 : 2) ? 4 : rows <= (expands ? 5 : 6) ? 2 : 1;
}
constexpr int nf4_vectors(int rows) { return rows <= 3 ? 2 : 1; }
#endif
constexpr int kPanelVectors = kPackedColumns / kFloats;

// Words of a line as panels of the scheme hold them, for step j of the word's kParts.
template <typename Panels, typename Element>
HK_INLINE Words part_packed(Panels panels, const Element* type, Words words, int j) {
  return part(panels, type, words, j);
}
HK_INLINE Words part_packed(FloatPanels, const float8_e4m3fn* type, Words words, int j) {
  return part(FloatPanels{}, type, e4m3_by_column(words, LaneNumbersFrom<4 * kFloats>::All{}), j);
}
#if defined(__AVX512BF16__)
HK_INLINE Words part_packed(PairPanels, const float8_e4m3fn*, Words words, int j) { return e4m3_pairs(words, j); }
#elif defined(HK_BF16_DOT)
HK_INLINE Words part_packed(PairPanels, const float8_e4m3fn* type, Words words, int j) {
  return part(PairPanels{}, type, e4m3_by_column(words, LaneNumbersFrom<4 * kFloats>::All{}), j);
}
#endif

// Vector v of a line of the panels: kPanelVectors of them in a panel.
HK_INLINE const char* vector_of(const char* const* panels, int v) {
  return panels[v / kPanelVectors] + v % kPanelVectors * 4 * kFloats;
}

template <typename Panels, typename Element, int kRows, int kVectors>
void packed_tile(const uint32_t* a, const PackedPanels& b, int first, int64_t lines, float* sums, int width,
                 bool accumulate, const float* row_scales, const float* column_scales) {
  constexpr int kSteps = kParts<Panels, Element>;
  Floats sum[kRows][kVectors] = {};
  const char *vectors[kVectors], *ahead[kVectors];
  HK_UNROLL for (int v = 0; v < kVectors; ++v) vectors[v] = vector_of(b.first, first + v);
  const auto line = [&](int64_t offset) {
    Words words[kVectors];
    HK_UNROLL for (int v = 0; v < kVectors; ++v) words[v] = load_as<Words>(vectors[v] + offset);
    HK_UNROLL for (int j = 0; j < kSteps; ++j) {
      Words columns[kVectors];
      HK_UNROLL for (int v = 0; v < kVectors; ++v) columns[v] =
          part_packed(Panels{}, static_cast<const Element*>(nullptr), words[v], j);
      HK_UNROLL for (int r = 0; r < kRows; ++r) {
        Words row = splat_bits(a[j * kRows + r]);
        if constexpr (kVectors > 1) {
          HK_GEMM_KEEP(row);
        }
        HK_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(Panels{}, sum[r][v], row, columns[v]);
      }
    }
    a += kSteps * kRows;
  };
  // Measured on Zen 4. Where misses are the limit, one request brings two lines.
  constexpr bool kEverySecond = kRows <= (sizeof(Element) < 2 ? 1 : 4);
  constexpr int64_t kDistance = kEverySecond ? 1024 : kRows <= 12 ? 4096 : 8192;
  const int64_t end = lines * kPackedLine;
  const int64_t distance = minimum(b.prefetch == kPackedPrefetch ? kDistance : b.prefetch, end);
  int64_t offset = 0;
  if (distance) {
    for (int64_t until = end - distance; until <= end; until += distance) {
      HK_UNROLL for (int v = 0; v < kVectors; v += kPanelVectors) ahead[v] =
          (until < end ? vectors[v] : vector_of(b.next, first + v) - end) + distance;
      for (; offset < until; offset += kPackedLine) {
        if (!kEverySecond || offset % (2 * kPackedLine) == 0) {
          HK_UNROLL for (int v = 0; v < kVectors; v += kPanelVectors) __builtin_prefetch(ahead[v] + offset, 0, 2);
        }
        line(offset);
      }
    }
  } else {
    for (; offset < end; offset += kPackedLine) line(offset);
  }
  HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int v = 0; v < kVectors; ++v) {
    float* to = sums + r * width + v * kFloats;
    Floats value = sum[r][v];
    if (row_scales) {
      value *= row_scales[r] * load(column_scales + v * kFloats);
      HK_GEMM_ROUNDED(value);
    }
    store(to, accumulate ? load(to) + value : value);
  }
}

#include "cpu/isa/nf4_gemm.inl"

// Vectors of a tile, and the tile of vectors `v` and following, by element type.
template <typename Element>
constexpr int tile_vectors(const Element*, int rows) {
  return packed_vectors(rows, sizeof(Element) < 2);
}
constexpr int tile_vectors(const Nf4*, int rows) { return nf4_vectors(rows); }

template <typename Panels, int kRows, int kVectors, typename Element>
HK_INLINE void packed_tile_of(const Element*, const uint32_t* a, const PackedPanels& b, int v, int64_t lines,
                              float* sums, int width, bool accumulate, const float* row_scales,
                              const float* column_scales) {
  packed_tile<Panels, Element, kRows, kVectors>(a, b, v, lines, sums, width, accumulate, row_scales, column_scales);
}
template <typename Panels, int kRows, int kVectors>
HK_INLINE void packed_tile_of(const Nf4*, const uint32_t* a, const PackedPanels& b, int v, int64_t blocks, float* sums,
                              int width, bool accumulate, const float*, const float*) {
  nf4_tile<Panels, kRows, kVectors>(a, b, v, blocks, sums, width, accumulate);
}

template <typename Panels, typename Element, int kRows>
void packed_rows(const uint32_t* a, const PackedPanels& b, int64_t blocks, float* sums, int width, bool accumulate,
                 const float* row_scales, const float* column_scales) {
  constexpr const Element* kType = nullptr;
  constexpr int kVectors = tile_vectors(kType, kRows);
  const int vectors = b.count * kPanelVectors;
  int v = 0;
  for (; v + kVectors <= vectors; v += kVectors)
    packed_tile_of<Panels, kRows, kVectors>(kType, a, b, v, blocks, sums + v * kFloats, width, accumulate, row_scales,
                                            column_scales + v * kFloats);
  for (; v < vectors; ++v)
    packed_tile_of<Panels, kRows, 1>(kType, a, b, v, blocks, sums + v * kFloats, width, accumulate, row_scales,
                                     column_scales + v * kFloats);
}

template <typename Panels, typename Element>
void packed_multiply(const uint32_t* a, int rows, const PackedPanels& b, int64_t blocks, float* sums, int width,
                     bool accumulate, const float* row_scales, const float* column_scales) {
#define HK_CASE(n)                                                                                              \
  case n:                                                                                                       \
    if constexpr (n <= kPackedRows)                                                                             \
      return packed_rows<Panels, Element, n>(a, b, blocks, sums, width, accumulate, row_scales, column_scales); \
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
    HK_CASE(13)
    HK_CASE(14)
    HK_CASE(15)
    HK_CASE(16)
  }
#undef HK_CASE
}

template <typename Panels, typename Element>
void packed_expand(const PackedPanels& b, int64_t blocks, uint32_t* panel) {
  for (int64_t line = 0; line < blocks; ++line, panel += kParts<Panels, Element> * kGemmColumns)
    for (int v = 0; v < b.count * kPanelVectors; ++v) {
      const Words words = load_as<Words>(vector_of(b.first, v) + line * kPackedLine);
      HK_UNROLL for (int j = 0; j < kParts<Panels, Element>; ++j)
          store_as(panel + j * kGemmColumns + v * kFloats,
                   part_packed(Panels{}, static_cast<const Element*>(nullptr), words, j));
    }
}

template <typename Panels, typename Element>
constexpr GemmPacked packed_of() {
  return {4 / sizeof(Element), kPackedLine, packed_multiply<Panels, Element>, packed_expand<Panels, Element>,
          kParts<Panels, Element> > 1 && kGemmColumns >= kPackedColumns ? 2 * kGemmRows : 1 << 30};
}

// Never expanded: the scales of NF4 change within a k block.
template <typename Panels>
constexpr GemmPacked nf4_packed = {kNf4Depth, kNf4Block, packed_multiply<Panels, Nf4>, nullptr, 1 << 30};

GemmPacked float_packed(DType b) {
  switch (b) {
    case DType::float32: return packed_of<FloatPanels, float>();
    case DType::bfloat16: return packed_of<FloatPanels, bfloat16>();
    case DType::float8_e4m3fn: return packed_of<FloatPanels, float8_e4m3fn>();
    case DType::nf4: return nf4_packed<FloatPanels>;
    default: return {};
  }
}
#if defined(HK_BF16_DOT)
GemmPacked pair_packed(DType b) {
  switch (b) {
    case DType::bfloat16: return packed_of<PairPanels, bfloat16>();
    case DType::float8_e4m3fn: return packed_of<PairPanels, float8_e4m3fn>();
    case DType::nf4: return nf4_packed<PairPanels>;
    default: return {};
  }
}
#endif
