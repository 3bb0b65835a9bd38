// GEMM with few rows:  lanes[r][c][lane] += sum of a[r][k] * b[c][k] over the k of that lane,  fp32.
//
// Lines of b are read as they lie, a vector of words at a time, and taken apart in registers by part(); rows of a were
// packed in that order. A tile of kRows x kColumns vectors of sums stays in registers for the depth of one call (a k
// block, so that the rows of a stay in L1).

// Columns of a tile for each number of rows: enough sums to keep the multipliers busy, as few loads of a as possible.
#if HK_VECTOR_FLOATS == 16 || defined(__aarch64__)  // 32 registers
constexpr int kDotRows = 8;
constexpr int dot_columns(int rows) { return rows == 1 ? 8 : rows <= 4 ? 4 : 3; }
#else  // 16 registers
constexpr int kDotRows = 4;
constexpr int dot_columns(int rows) { return rows <= 2 ? 4 : rows == 3 ? 3 : 2; }
#endif

// The word of a panel that holds a[k] (and a[k + 1]).
HK_INLINE uint32_t panel_word(FloatPanels, const float* a, int64_t, int64_t) { return float_bits(*a); }
HK_INLINE uint32_t panel_word(FloatPanels, const bfloat16* a, int64_t, int64_t) { return uint32_t{*a} << 16; }
HK_INLINE uint32_t panel_word(PairPanels, const bfloat16* a, int64_t k_stride, int64_t left) {
  return *a | (left > 1 ? uint32_t{a[k_stride]} << 16 : 0u);
}
HK_INLINE uint32_t panel_word(FloatPanels, const float8_e4m3fn* a, int64_t, int64_t) {
  return expand_e4m3(splat_bits(uint32_t{*a} << 24))[0];
}
HK_INLINE uint32_t panel_word(PairPanels, const float8_e4m3fn* a, int64_t k_stride, int64_t left) {
  const uint32_t first = panel_word(FloatPanels{}, a, k_stride, 1) >> 16;
  return left > 1 ? first | (panel_word(FloatPanels{}, a + k_stride, k_stride, 1) & 0xffff0000u) : first;
}

template <typename Panels, typename ElementA, typename ElementB>
void pack_dot_row(const void* row_, int64_t k_stride, int64_t depth, uint32_t* packed) {
  constexpr int kWord = 4 / sizeof(ElementB), kUnit = kFloats * kWord;
  const ElementA* row = static_cast<const ElementA*>(row_);
  for (int64_t unit = 0; unit < depth; unit += kUnit)
    for (int j = 0; j < kParts<Panels, ElementB>; ++j)
      for (int lane = 0; lane < kFloats; ++lane) {
        const int64_t k = unit + lane * kWord + j * Panels::k_step;
        *packed++ = k < depth ? panel_word(Panels{}, row + k * k_stride, k_stride, depth - k) : 0u;
      }
}

template <typename Panels, typename Element, int kRows, int kColumns>
HK_INLINE void dot_step(Floats (&sum)[kRows][kColumns], const uint32_t* a, int64_t a_stride, const Words* words) {
  HK_UNROLL for (int j = 0; j < kParts<Panels, Element>; ++j) {
    Words columns[kColumns];
    HK_UNROLL for (int c = 0; c < kColumns; ++c) columns[c] =
        part(Panels{}, static_cast<const Element*>(nullptr), words[c], j);
    HK_UNROLL for (int r = 0; r < kRows; ++r) {
      Words row = load_as<Words>(a + r * a_stride + j * kFloats);
      HK_UNROLL for (int c = 0; c < kColumns; ++c) sum[r][c] = multiply_add(Panels{}, sum[r][c], row, columns[c]);
    }
  }
}

template <typename Panels, typename Element, int kRows, int kColumns>
void dot_tile(const uint32_t* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t depth, float* lanes,
              int width, bool accumulate, const float* row_scales, const float* column_scales,
              const Element* prefetch) {
  constexpr int kUnit = kFloats * 4 / sizeof(Element), kPacked = kParts<Panels, Element> * kFloats;
  Floats sum[kRows][kColumns] = {};
  Words words[kColumns];
  int64_t k = 0;
  for (; k + kUnit <= depth; k += kUnit, a += kPacked) {
    HK_UNROLL for (int c = 0; c < kColumns; ++c) words[c] = load_as<Words>(b + c * b_stride + k);
    if (prefetch) HK_UNROLL for (int c = 0; c < kColumns; ++c) __builtin_prefetch(prefetch + c * b_stride + k, 0, 2);
    dot_step<Panels, Element, kRows, kColumns>(sum, a, a_stride, words);
  }
  if (k < depth) {
    for (int c = 0; c < kColumns; ++c) {
      words[c] = Words{};
      __builtin_memcpy(&words[c], b + c * b_stride + k, (depth - k) * sizeof(Element));
    }
    dot_step<Panels, Element, kRows, kColumns>(sum, a, a_stride, words);
  }
  HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int c = 0; c < kColumns; ++c) {
    float* to = lanes + (r * width + c) * kFloats;
    Floats value = sum[r][c];
    if (row_scales) value *= row_scales[r] * column_scales[c];
    store(to, accumulate ? load(to) + value : value);
  }
}

template <typename Panels, typename Element, int kRows>
void dot_rows(const uint32_t* a, int64_t a_stride, const Element* b, int64_t b_stride, int columns, int64_t depth,
              float* lanes, int width, bool accumulate, const float* row_scales, const float* column_scales,
              const Element* next) {
  constexpr int kColumns = dot_columns(kRows);
  int c = 0;
  for (; c + kColumns <= columns; c += kColumns, b += kColumns * b_stride) {
    // The lines that come next: those of the next tile, or after the last one the first ones of the next call.
    const Element* prefetch = c + 2 * kColumns <= columns ? b + kColumns * b_stride : next;
    dot_tile<Panels, Element, kRows, kColumns>(a, a_stride, b, b_stride, depth, lanes + c * kFloats, width, accumulate,
                                               row_scales, column_scales + c, prefetch);
  }
  for (; c < columns; ++c, b += b_stride)
    dot_tile<Panels, Element, kRows, 1>(a, a_stride, b, b_stride, depth, lanes + c * kFloats, width, accumulate,
                                        row_scales, column_scales + c, nullptr);
}

template <typename Panels, typename Element>
void dot_multiply(const uint32_t* a, int64_t a_stride, int rows, const void* b_, int64_t b_stride, int columns,
                  int64_t depth, float* lanes, int width, bool accumulate, const float* row_scales,
                  const float* column_scales, const void* prefetch_) {
  const Element* b = static_cast<const Element*>(b_);
  const Element* prefetch = static_cast<const Element*>(prefetch_);
#define HK_CASE(n)                                                                                            \
  case n:                                                                                                     \
    if constexpr (n <= kDotRows)                                                                              \
      return dot_rows<Panels, Element, n>(a, a_stride, b, b_stride, columns, depth, lanes, width, accumulate, \
                                          row_scales, column_scales, prefetch);                               \
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

void sum_lanes(const float* lanes, int64_t rows, int width, float* sums) {
  for (int64_t block = 0; block < rows * width; block += kFloats, lanes += kFloats * kFloats) {
    Words w[kFloats];
    HK_UNROLL for (int i = 0; i < kFloats; ++i) w[i] = load_as<Words>(lanes + i * kFloats);
    transpose(w);
    HK_UNROLL for (int distance = kFloats / 2; distance > 0; distance /= 2) HK_UNROLL for (int i = 0; i < distance; ++i)
        w[i] = as_words(as_floats(w[i]) + as_floats(w[i + distance]));
    store_as(sums + block, w[0]);
  }
}

template <typename Panels, typename ElementA, typename ElementB>
constexpr GemmDot dot_of() {
  return {kFloats * 4 / static_cast<int>(sizeof(ElementB)), pack_dot_row<Panels, ElementA, ElementB>,
          dot_multiply<Panels, ElementB>};
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
