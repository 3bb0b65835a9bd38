// GEMM with few rows:  sums[r][c] = sum_k scale * a[r][k] * b[c][k],  fp32, lines of b as they lie (k stride 1).
//
// Weights go from memory to registers and are used for all rows at once. A quad is four words (128 bits) of a line.
// kQuads lines of b are read one vector each and exchange quads, two shuffles for each vector of 512 bits: then a
// vector holds the same quad of kQuads columns. A quad of a is broadcast to them, and a sum is four lanes of a
// register, added up at the end. Sums stay in registers over all of k, while a comes from L2 as one stream.
//
// The ways around it, on Zen 4: whole vectors along k need no shuffles, but four times as much of a, and blocks of k to
// have that in L1; weights then come in pieces of 2 KiB (8 rows a quarter slower). One lane for each column takes four
// shuffles (slower for 8 rows, no faster for 16). One row is the exception: with so few products the shuffles would be
// the limit, and its a is small, so its vectors are whole ones of one column.
//
//   a, packed:  [k / unit][quad][part][row][4 words], one row [k / unit][part][kFloats words]
//               unit: the k of a vector of b; part: see kParts

constexpr int kQuads = kFloats / 4;
#if HK_VECTOR_FLOATS == 16  // 32 registers: 16 sums, 8 of b, 1 of a
constexpr int kDotTileRows = 8, kDotColumns = 8;
#elif defined(__aarch64__)  // 32 registers: 24 sums, 4 of b, 1 of a
constexpr int kDotTileRows = 6, kDotColumns = 4;
#else                       // 16 registers: 8 sums, 4 of b, 1 of a
constexpr int kDotTileRows = 4, kDotColumns = 4;
#endif
constexpr int kDotRows = 2 * kDotTileRows;                            // with more, packing panels of b costs less
constexpr int dot_split(int rows) { return rows == 1 ? 1 : kQuads; }  // columns in a vector

// The same quad in all places.
HK_INLINE Words splat_quad(const uint32_t* quad) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_broadcast_i32x4(0xffff, load_as<__m128i>(quad));
#elif defined(__AVX2__)
  return (Words)_mm256_broadcastsi128_si256(load_as<__m128i>(quad));
#else
  return load_as<Words>(quad);
#endif
}
// Element i in all lanes of quad i.
template <int... kLane>
HK_INLINE Floats spread_over_quads(Floats v, LaneNumbers<kLane...>) {
  return __builtin_shufflevector(v, v, (kLane / 4)...);
}
template <int... kLane>
HK_INLINE Floats quad_sums(Floats v, LaneNumbers<kLane...>) {
  v += __builtin_shufflevector(v, v, (kLane ^ 1)...);
  return v + __builtin_shufflevector(v, v, (kLane ^ 2)...);
}
// Quad q of line i becomes quad i of vector q.
HK_INLINE void exchange_quads([[maybe_unused]] Words* w) {
#if HK_VECTOR_FLOATS == 16
  HK_UNROLL for (int i = 0; i < 4; i += 2) separate_lanes(w[i], w[i + 1], AllLanes{});
  HK_UNROLL for (int i = 0; i < 2; ++i) separate_lanes(w[i], w[i + 2], AllLanes{});
#elif HK_VECTOR_FLOATS == 8
  separate_lanes(w[0], w[1], AllLanes{});
#endif
}

// Elements of a vector of b as words of the scheme, for step j of its kParts, and which k of its quad a lane then has.
template <typename Panels, typename Element>
HK_INLINE Words part_dot(Panels panels, const Element* type, Words words, int j) {
  return part(panels, type, words, j);
}
template <typename Panels, typename Element>
constexpr int dot_k(Panels, const Element*, int j, int lane) {
  return lane * (4 / static_cast<int>(sizeof(Element))) + j * Panels::k_step;
}
#if defined(__AVX512BF16__)
HK_INLINE Words part_dot(PairPanels, const float8_e4m3fn*, Words words, int j) { return e4m3_pairs(words, j); }
constexpr int dot_k(PairPanels, const float8_e4m3fn*, int j, int lane) { return (j * 4 + lane) * 2; }
#endif

// Rows of a.
template <typename Panels, typename ElementA, typename ElementB>
void pack_dot_rows(const void* const* rows, int64_t k_stride, int count, int64_t depth, uint32_t* packed) {
  constexpr int kUnit = 4 * kFloats / static_cast<int>(sizeof(ElementB)), kPieces = kQuads * kParts<Panels, ElementB>;
  const bool whole = dot_split(count) == 1;
  for (int64_t k = 0; k < depth; k += kUnit, packed += static_cast<int64_t>(kPieces) * 4 * count)
    for (int row = 0; row < count; ++row) {
      const ElementA* from = static_cast<const ElementA*>(rows[row]) + k * k_stride;
      const int here = static_cast<int>(minimum(kUnit, depth - k));
      // float bits of the elements in the order of k
      uint32_t bits[kUnit];
      if (k_stride == 1 && here == kUnit) {
        HK_UNROLL for (int i = 0; i < kUnit; i += kFloats) store_as(bits + i, as_words(load(from + i)));
      } else {
        for (int i = 0; i < kUnit; ++i) {
          ElementA one[kFloats] = {};
          if (i < here) one[0] = from[i * k_stride];
          bits[i] = as_words(load(one))[0];
        }
      }
      for (int piece = 0; piece < kPieces; ++piece) HK_UNROLL for (int lane = 0; lane < 4; ++lane) {
          const int quad = piece / kParts<Panels, ElementB>, part = piece % kParts<Panels, ElementB>;
          const int at = quad * (kUnit / kQuads) + dot_k(Panels{}, static_cast<const ElementB*>(nullptr), part, lane);
          packed[whole ? ((part * count + row) * kQuads + quad) * 4 + lane : (piece * count + row) * 4 + lane] =
              Panels::k_step == 1 ? bits[at] : bits[at] >> 16 | (bits[at + 1] & 0xffff0000u);
        }
    }
}

// `ahead`: elements from each line to one that comes later, for its prefetch; 0: none.
template <typename Panels, typename Element, int kRows>
void dot_tile(const uint32_t* a, const Element* b, int64_t b_stride, int columns, int64_t depth, float* sums, int width,
              const GemmDotScales& scales, int first_column, int64_t ahead) {
  constexpr int kSplit = dot_split(kRows), kColumns = kDotColumns, kGroups = kColumns / kSplit;
  constexpr int kUnit = 4 * kFloats / sizeof(Element), kSteps = kParts<Panels, Element>;
  constexpr int kPart = kRows * (kFloats / kSplit);    // words of a for one part
  constexpr int kTogether = kSplit > 1 ? kGroups : 1;  // groups whose parts are in registers at once
  const Element* lines[kColumns];
  HK_UNROLL for (int c = 0; c < kColumns; ++c) lines[c] = b + (c < columns ? c : columns - 1) * b_stride;
  Floats total[kRows][kGroups] = {};
  const int64_t block = scales.block ? scales.block : depth;
  for (int64_t k = 0, index = 0; k < depth; ++index) {
    const int64_t end = minimum(depth, k + block);
    Floats sum[kRows][kGroups] = {};
    const auto step = [&](Words(&words)[kColumns]) {
      if constexpr (kSplit > 1) HK_UNROLL for (int g = 0; g < kGroups; ++g) exchange_quads(words + g * kSplit);
      HK_UNROLL for (int q = 0; q < kSplit; ++q, a += kPart * kSteps)
          HK_UNROLL for (int first = 0; first < kGroups; first += kTogether)
              HK_UNROLL for (int j = 0; j < kSteps; ++j) {
        Words part[kTogether];
        HK_UNROLL for (int g = 0; g < kTogether; ++g) part[g] =
            part_dot(Panels{}, static_cast<const Element*>(nullptr), words[(first + g) * kSplit + q], j);
        HK_UNROLL for (int r = 0; r < kRows; ++r) {
          const uint32_t* from = a + j * kPart + r * (kFloats / kSplit);
          const Words row = kSplit > 1 ? splat_quad(from) : load_as<Words>(from);
          HK_UNROLL for (int g = 0; g < kTogether; ++g) sum[r][first + g] =
              multiply_add(Panels{}, sum[r][first + g], row, part[g]);
        }
      }
    };
    for (; k + kUnit <= end; k += kUnit) {
      Words words[kColumns];
      HK_UNROLL for (int c = 0; c < kColumns; ++c) words[c] = load_as<Words>(lines[c] + k);
      if (ahead) {
        int64_t k_ahead = k + ahead;
        asm("" : "+r"(k_ahead));  // one index for all lines, not a pointer for each
        HK_UNROLL for (int c = 0; c < kColumns; ++c) __builtin_prefetch(lines[c] + k_ahead, 0, 2);
      }
      step(words);
    }
    if (k < end) {
      Words words[kColumns] = {};
      for (int c = 0; c < kColumns; ++c) __builtin_memcpy(&words[c], lines[c] + k, (end - k) * sizeof(Element));
      step(words);
      k = end;
    }
    if (scales.block) {
      const float* of_rows = scales.rows + index * scales.row_stride;
      HK_UNROLL for (int g = 0; g < kGroups; ++g) {
        const float* of_columns = scales.columns + index * scales.column_stride + first_column + g * kSplit;
        const Floats column =
            kSplit > 1 ? spread_over_quads(load(of_columns), LaneNumbersFrom<kFloats>::All{}) : splat(*of_columns);
        HK_UNROLL for (int r = 0; r < kRows; ++r) {
          sum[r][g] *= of_rows[r] * column;
          HK_GEMM_ROUNDED(sum[r][g]);
        }
      }
    }
    HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int g = 0; g < kGroups; ++g) total[r][g] += sum[r][g];
  }
  HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int g = 0; g < kGroups; ++g) {
    const Floats value = quad_sums(total[r][g], LaneNumbersFrom<kFloats>::All{});
    float* to = sums + r * width + g * kSplit;
    if constexpr (kSplit > 1)
      HK_UNROLL for (int c = 0; c < kSplit; ++c) to[c] = value[4 * c];
    else {
      *to = value[0];
      HK_UNROLL for (int q = 1; q < kQuads; ++q)* to += value[4 * q];
    }
  }
}

template <typename Panels, typename Element, int kRows>
void dot_rows(const uint32_t* a, const Element* b, int64_t b_stride, int columns, int64_t depth, float* sums, int width,
              const GemmDotScales& scales, const Element* next) {
  constexpr int kColumns = kDotColumns;
  for (int c = 0; c < columns; c += kColumns, b += kColumns * b_stride) {
    const bool last = c + kColumns >= columns;
    dot_tile<Panels, Element, kRows>(a, b, b_stride, columns - c, depth, sums + c, width, scales, c,
                                     !last  ? kColumns * b_stride
                                     : next ? next - b
                                            : 0);
  }
}

template <typename Panels, typename Element>
void dot_multiply(const uint32_t* a, int rows, const void* b_, int64_t b_stride, int columns, int64_t depth,
                  float* sums, int width, const GemmDotScales& scales, const void* next_) {
  const Element *b = static_cast<const Element*>(b_), *next = static_cast<const Element*>(next_);
#define HK_CASE(n)                                                                                    \
  case n:                                                                                             \
    if constexpr (n <= kDotTileRows)                                                                  \
      return dot_rows<Panels, Element, n>(a, b, b_stride, columns, depth, sums, width, scales, next); \
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
  }
#undef HK_CASE
}

template <typename Panels, typename ElementA, typename ElementB>
constexpr GemmDot dot_of() {
  return {kFloats * 4 / static_cast<int>(sizeof(ElementB)), kDotTileRows, kDotColumns,
          pack_dot_rows<Panels, ElementA, ElementB>, dot_multiply<Panels, ElementB>};
}

template <typename Panels, typename ElementA>
GemmDot dot_for(DType b) {
  switch (b) {
    case DType::float32:
      if constexpr (Panels::k_step == 1) return dot_of<Panels, ElementA, float>();
      break;
    case DType::bfloat16: return dot_of<Panels, ElementA, bfloat16>();
    case DType::float8_e4m3fn: return dot_of<Panels, ElementA, float8_e4m3fn>();
    default: break;
  }
  return {};
}

GemmDot float_dot(DType a, DType b) {
  switch (a) {
    case DType::float32: return dot_for<FloatPanels, float>(b);
    case DType::bfloat16: return dot_for<FloatPanels, bfloat16>(b);
    case DType::float8_e4m3fn: return dot_for<FloatPanels, float8_e4m3fn>(b);
    default: return {};
  }
}

#if defined(HK_BF16_DOT)
GemmDot pair_dot(DType a, DType b) {
  switch (a) {
    case DType::bfloat16: return dot_for<PairPanels, bfloat16>(b);
    case DType::float8_e4m3fn: return dot_for<PairPanels, float8_e4m3fn>(b);
    default: return {};
  }
}
#endif
