// NF4 weights (common/nf4.h) as the GEMM core multiplies them, expanded in registers, and their quantizer. Included by
// gemm_packed.inl.

// Step j of a word of 8 codes (common/nf4.h).
struct Nf4 {
  uint8_t storage;
};
template <typename Panels>
constexpr int kParts<Panels, Nf4> = 8 / Panels::k_step;

HK_INLINE Words part_nf4(FloatPanels, Words words, int j) {
  const Words codes = words >> (16 * (j % 2) + 4 * (j / 2)) & 15u;
#if defined(__AVX512F__)
  const Words table = widen(load_as<Halves>(kNf4Values)) << 16;
  return (Words)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)codes, (__m512i)table);
#elif defined(__AVX2__)
  const __m256i lower = (__m256i)(widen(load_as<Halves>(kNf4Values)) << 16);
  const __m256i upper = (__m256i)(widen(load_as<Halves>(kNf4Values + 8)) << 16);
  return select((Ints)codes > 7, (Words)_mm256_permutevar8x32_epi32(upper, (__m256i)codes),
                (Words)_mm256_permutevar8x32_epi32(lower, (__m256i)codes));
#else
  Words values;
  for (int i = 0; i < kFloats; ++i) values[i] = uint32_t{kNf4Values[codes[i]]} << 16;
  return values;
#endif
}
#if defined(__AVX512BF16__)
// Lookup without a mask: the table twice, so that the fifth bit of an index does not matter. Codes past the first two
// steps are read again, one byte further: a load costs less than a shift here.
HK_INLINE Words part_nf4(PairPanels, Words words, int j) {
  typedef uint16_t Codes __attribute__((vector_size(64)));
  const __m512i table =
      _mm512_maskz_broadcast_i64x4(0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kNf4Values)));
  const Words codes = j % 2 ? (Words)((Codes)words >> 4) : words;
  return (Words)_mm512_maskz_permutexvar_epi16(0xffffffffu, (__m512i)codes, table);
}
#elif defined(HK_BF16_DOT)
// Codes past the first two steps lie one byte further: in the lower nibbles of `words` as the caller reads them.
HK_INLINE Words part_nf4(PairPanels, Words words, int j) {
  const uint8x16x2_t table = vld1q_u8_x2(reinterpret_cast<const uint8_t*>(kNf4Values));
  const Words codes = words >> (4 * (j % 2)) & 0x000f000fu;
  return (Words)vqtbl2q_u8(table, (uint8x16_t)(codes * 0x0202u + 0x01000100u));  // the bytes 2 code and 2 code + 1
}
#endif

// sum * scale + total, fused where the instruction set has it.
HK_INLINE Floats nf4_add(Floats sum, Floats scale, Floats total) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)sum, (__m512)scale, (__m512)total);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)sum, (__m256)scale, (__m256)total);
#else
  Floats product = sum * scale;
  HK_GEMM_ROUNDED(product);
  return product + total;
#endif
}

// packed_tile() for NF4: the sums of a block are scaled with its absmax, and added to a second set.
// Its own prefetch distance was measured: expanding is so slow that the hardware's prefetchers fall behind.
template <typename Panels, int kRows, int kVectors>
void nf4_tile(const uint32_t* a, const PackedPanels& b, int first, int64_t blocks, float* sums, int width,
              bool accumulate) {
  constexpr int64_t kDistance = kRows <= 4 ? 1024 : 1536;
  const int64_t distance = b.prefetch == kPackedPrefetch ? kDistance : b.prefetch;
  constexpr int kSteps = kParts<Panels, Nf4>, kLines = kNf4Codes / kPackedLine;
  const int64_t end = blocks * kNf4Block;
  const char *vectors[kVectors], *ahead[kVectors];
  HK_UNROLL for (int v = 0; v < kVectors; ++v) vectors[v] = vector_of(b.first, first + v);
  // -0: adding to it keeps the sign of a zero.
  Floats total[kRows][kVectors];
  HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int v = 0; v < kVectors; ++v) total[r][v] =
      accumulate ? load(sums + r * width + v * kFloats) : splat(-0.0f);
  for (int64_t offset = 0; offset < end; offset += kNf4Block) {
    HK_UNROLL for (int v = 0; v < kVectors; v += kPanelVectors) ahead[v] =
        (offset + distance < end ? vectors[v] : vector_of(b.next, first + v) - end) + offset + distance;
    Floats sum[kRows][kVectors] = {};
    HK_UNROLL for (int line = 0; line < kLines; ++line) {
      Words words[kVectors], later[kVectors];
      HK_UNROLL for (int v = 0; v < kVectors; ++v) {
        const char* from = vectors[v] + offset + line * kPackedLine;
        words[v] = load_as<Words>(from);
        later[v] = load_as<Words>(from + 1);
        if (distance && v % kPanelVectors == 0) __builtin_prefetch(ahead[v] + line * kPackedLine, 0, 2);
      }
      HK_UNROLL for (int j = 0; j < kSteps; ++j, a += kRows) {
        Words columns[kVectors];
        HK_UNROLL for (int v = 0; v < kVectors; ++v) columns[v] =
            part_nf4(Panels{}, Panels::k_step == 2 && j >= 2 ? later[v] : words[v], j);
        HK_UNROLL for (int r = 0; r < kRows; ++r) {
          Words row = splat_bits(a[r]);
          if constexpr (kVectors > 1) {
            HK_GEMM_KEEP(row);
          }
          HK_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(Panels{}, sum[r][v], row, columns[v]);
        }
      }
    }
    HK_UNROLL for (int v = 0; v < kVectors; ++v) {
      const char* absmax =
          b.first[(first + v) / kPanelVectors] + offset + kNf4Codes + (first + v) % kPanelVectors * kFloats;
      const Floats scale = load(reinterpret_cast<const float8_e4m3fn*>(absmax));
      HK_UNROLL for (int r = 0; r < kRows; ++r) total[r][v] = nf4_add(sum[r][v], scale, total[r][v]);
    }
  }
  HK_UNROLL for (int r = 0; r < kRows; ++r) HK_UNROLL for (int v = 0; v < kVectors; ++v)
      store(sums + r * width + v * kFloats, total[r][v]);
}

// ---- quantizer -----------------------------------------------------------------------------------------------------

template <typename Element>
bool nf4_quantize(const Element* row, int64_t depth, int column, float* scale, uint8_t* blocks) {
  Words largest = {};
  const auto magnitude = [&](int64_t k) { return as_words(load(row + k)) & 0x7fffffffu; };
  // Magnitudes are ordered as their bits are; NaN and infinity come last.
  const auto max_words = [](Words x, Words y) { return select(x > y, x, y); };
  for (int64_t k = 0; k < depth; k += kFloats) largest = max_words(largest, magnitude(k));
  uint32_t amax_bits = 0;
  for (int i = 0; i < kFloats; ++i) amax_bits = largest[i] > amax_bits ? largest[i] : amax_bits;
  if (amax_bits >= 0x7f800000u) return false;
  const float ratio = float_from_bits(amax_bits) / 448;
  *scale = ratio < 0x1p-126f ? 1.0f : ratio;
  for (int64_t k = 0; k < depth; k += kNf4Depth, blocks += kNf4Block) {
    Words block_largest = {};
    HK_UNROLL for (int i = 0; i < kNf4Depth; i += kFloats) block_largest = max_words(block_largest, magnitude(k + i));
    float8_e4m3fn absmax[kFloats];
    store(absmax, splat(max_lane(as_floats(block_largest)) / *scale));
    blocks[kNf4Codes + column] = absmax[0];
    const float step = load(absmax)[0] * *scale;
    uint32_t codes[kNf4Depth];
    HK_UNROLL for (int i = 0; i < kNf4Depth; i += kFloats) {
      const Floats value = load(row + k + i) / splat(step);
      Ints code = {};
      HK_UNROLL for (int c = 0; c < 15; ++c) {
        const float below = float_from_bits(uint32_t{kNf4Values[c]} << 16);
        const float above = float_from_bits(uint32_t{kNf4Values[c + 1]} << 16);
        code -= value > splat((below + above) / 2);
      }
      store_as(codes + i, step == 0 ? splat_bits(kNf4Zero) : (Words)code);
    }
    for (int line = 0; line < kNf4Codes / kPackedLine; ++line) {
      uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= codes[line * 8 + i] << (16 * (i % 2) + 4 * (i / 2));
      __builtin_memcpy(blocks + line * kPackedLine + column * 4, &word, 4);
    }
  }
  return true;
}

bool nf4_quantize_row(const void* row, DType dtype, int64_t depth, int column, float* scale, uint8_t* panel) {
  return dtype == DType::bfloat16 ? nf4_quantize(static_cast<const bfloat16*>(row), depth, column, scale, panel)
                                  : nf4_quantize(static_cast<const float*>(row), depth, column, scale, panel);
}

constexpr Nf4GemmKernels nf4_gemm_kernels = {nf4_quantize_row};
