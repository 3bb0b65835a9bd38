// Vectors of the instruction set that this file is compiled for, as compiler vector types: arithmetic operators, and
// with -ffp-contract=fast fused multiply-adds where the set has them. Included inside the anonymous namespace of an
// <isa>.cpp that defines HK_VECTOR_FLOATS. Functions are static or in that namespace, never shared between files.

constexpr int kFloats = HK_VECTOR_FLOATS;  // lanes of one vector of fp32
typedef float Floats __attribute__((vector_size(4 * kFloats)));
typedef uint32_t Words __attribute__((vector_size(4 * kFloats)));
typedef int32_t Ints __attribute__((vector_size(4 * kFloats)));
typedef uint16_t Halves __attribute__((vector_size(2 * kFloats)));
typedef uint8_t Bytes __attribute__((vector_size(kFloats)));

#define HK_INLINE static inline __attribute__((always_inline))
#define HK_UNROLL _Pragma("GCC unroll 64")

template <typename Vector>
HK_INLINE Vector load_as(const void* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <typename Vector>
HK_INLINE void store_as(void* to, Vector v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// Stores a vector without bringing its line into the caches, where the set has such stores; `to` is aligned to the
// vector. finish_...: before others may read what was stored.
HK_INLINE void store_past_caches(char* to, Words v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
  store_as(to, v);
#endif
}
HK_INLINE void finish_stores_past_caches() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

HK_INLINE Floats as_floats(Words v) { return (Floats)v; }
HK_INLINE Words as_words(Floats v) { return (Words)v; }
HK_INLINE Floats splat(float value) { return value - Floats{}; }  // x - 0 is x, also for -0: no instruction
HK_INLINE Words splat_bits(uint32_t value) { return Words{} + value; }
// mask lanes are 0 or ~0, as comparisons give them
HK_INLINE Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
HK_INLINE Words select(Ints mask, Words yes, Words no) { return mask ? yes : no; }
// b where the two are equal or one is NaN. The 512-bit instructions by name: g++ 12 makes compares and masks of the
// rest.
#if defined(__AVX512F__)
HK_INLINE Floats max_of(Floats a, Floats b) { return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
HK_INLINE Floats min_of(Floats a, Floats b) { return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#else
HK_INLINE Floats max_of(Floats a, Floats b) { return select(a > b, a, b); }
HK_INLINE Floats min_of(Floats a, Floats b) { return select(a < b, a, b); }
#endif

// Between 16 and 32 bits, between 8 and 32 bits: zero extension and truncation. g++ 12 cuts the 512-bit forms in two,
// and warns of the undefined vector inside the intrinsics without a mask.
#if defined(__AVX512F__)
HK_INLINE Words widen(Halves v) { return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v); }
HK_INLINE Words widen(Bytes v) { return (Words)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)v); }
HK_INLINE Halves narrow_to_halves(Words v) { return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v); }
HK_INLINE Bytes narrow_to_bytes(Words v) { return (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v); }
#else
HK_INLINE Words widen(Halves v) { return __builtin_convertvector(v, Words); }
HK_INLINE Words widen(Bytes v) { return __builtin_convertvector(v, Words); }
HK_INLINE Halves narrow_to_halves(Words v) { return __builtin_convertvector(v, Halves); }
HK_INLINE Bytes narrow_to_bytes(Words v) { return __builtin_convertvector(v, Bytes); }
#endif

HK_INLINE Floats load(const float* from) { return load_as<Floats>(from); }
HK_INLINE void store(float* to, Floats v) { store_as(to, v); }

HK_INLINE Floats load(const bfloat16* from) { return as_floats(widen(load_as<Halves>(from)) << 16); }
// Round to nearest even; NaN becomes 0x7fc0, as to_bfloat16() in common/dtype.h does.
HK_INLINE void store(bfloat16* to, Floats v) {
  Words bits = as_words(v);
  Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = select((bits & 0x7fffffffu) > 0x7f800000u, splat_bits(0x7fc0u), rounded);
  store_as(to, narrow_to_halves(rounded));
}

// e4m3 -> fp32, exact for all 256 patterns (NaN for S.1111.111); the byte is the upper one of each word. The
// magnitude's bits shifted into place are the value times 2^-120, also for subnormals.
HK_INLINE Words expand_e4m3(Words upper_bytes) {
  const Words bits = (Words)((Ints)upper_bytes >> 4) & 0x87f00000u;
  const Words value = as_words(as_floats(bits) * 0x1p120f);
  return select((bits & 0x07f00000u) == 0x07f00000u, value | 0x7fc00000u, value);
}
HK_INLINE Floats load(const float8_e4m3fn* from) { return as_floats(expand_e4m3(widen(load_as<Bytes>(from)) << 24)); }
// fp32 -> e4m3: round to nearest even, saturating (infinity too), NaN -> S.1111.111.
HK_INLINE void store(float8_e4m3fn* to, Floats v) {
  Words bits = as_words(v), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
  Ints is_nan = magnitude > 0x7f800000u;
  Words clamped = select(magnitude > 0x43e00000u, splat_bits(0x43e00000u), magnitude);  // 448
  Words normal = ((clamped + 0x7ffffu + ((clamped >> 20) & 1u)) >> 20) - (120u << 3);
  // Below 2^-6 the spacing is 2^-9, which is that of fp32 around 2^14: the addition rounds.
  Words subnormal = as_words(as_floats(clamped) + 0x1p14f) - 0x46800000u;
  Words q = select(clamped < 0x3c800000u, subnormal, normal);
  q = select(is_nan, splat_bits(0x7fu), q) | sign;
  store_as(to, narrow_to_bytes(q));
}

// The first n < kFloats elements; the rest read as zero and are not stored.
template <typename Element>
HK_INLINE Floats load_partial(const Element* from, int n) {
  Element padded[kFloats] = {};
  __builtin_memcpy(padded, from, n * sizeof(Element));
  return load(padded);
}
template <typename Element>
HK_INLINE void store_partial(Element* to, Floats v, int n) {
  Element padded[kFloats];
  store(padded, v);
  __builtin_memcpy(to, padded, n * sizeof(Element));
}

// load or load_partial: n lanes count, the others are zero.
template <typename Element>
HK_INLINE Floats load_lanes(const Element* from, int n) {
  return n == kFloats ? load(from) : load_partial(from, n);
}
template <typename Element>
HK_INLINE void store_lanes(Element* to, Floats v, int n) {
  if (n == kFloats)
    store(to, v);
  else
    store_partial(to, v, n);
}

// e^x within 2 units in the last place (of the smallest normal number below 2^-126); overflows to infinity, NaN stays.
HK_INLINE Floats exp_of(Floats x) {
  Floats clamped = max_of(min_of(x, splat(89.0f)), splat(-104.0f));
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer
  Floats shifted = clamped * 1.44269504f + 0x1.8p23f;
  Floats n = shifted - 0x1.8p23f;
  Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.0f / 5040);  // Taylor: the next term is below 2^-27
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  const Floats result = (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // 2^n in two factors, of which the first is exact: n reaches from -150 to 128
  Ints exponent = (Ints)as_words(shifted) - 0x4b400000, half = exponent >> 1;
  Floats scale = as_floats((Words)((half + 127) << 23)), rest = as_floats((Words)((exponent - half + 127) << 23));
  const Floats result = p * scale * rest;
#endif
  return select(x == x, result, x);
}

HK_INLINE float max_lane(Floats v) {
  float lanes[kFloats];
  store(lanes, v);
  float result = lanes[0];
  for (int i = 1; i < kFloats; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

// The numbers of the lanes as template arguments: LaneNumbers<0, 1, ..., kFloats - 1>.
template <int... kLane>
struct LaneNumbers {};
template <int kCount, int... kLane>
struct LaneNumbersFrom : LaneNumbersFrom<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct LaneNumbersFrom<0, kLane...> {
  using All = LaneNumbers<kLane...>;
};

// In every run of 2 * kDistance lanes, the upper half of a changes places with the lower half of b.
template <int kDistance, int... kLane>
HK_INLINE void exchange(Floats& a, Floats& b, LaneNumbers<kLane...>) {
  const Floats first = a, second = b;
  a = __builtin_shufflevector(first, second, (kLane & kDistance ? kFloats + kLane - kDistance : kLane)...);
  b = __builtin_shufflevector(first, second, (kLane & kDistance ? kFloats + kLane : kLane + kDistance)...);
}
// rows[i][j] becomes rows[j][i], by quadrants of ever smaller squares.
template <int kDistance = kFloats / 2>
HK_INLINE void transpose(Floats (&rows)[kFloats]) {
  HK_UNROLL
  for (int i = 0; i < kFloats; ++i)
    if (!(i & kDistance)) exchange<kDistance>(rows[i], rows[i + kDistance], LaneNumbersFrom<kFloats>::All{});
  if constexpr (kDistance > 1) transpose<kDistance / 2>(rows);
}
