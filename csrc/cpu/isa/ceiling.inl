// What one core reaches at best: multiply-adds that touch no memory, reads and copies that compute nothing.

// As many independent sums as hide a multiply-add's latency (4 cycles, 2 a cycle) and leave registers for the operands.
constexpr int kCeilingChains = kFloats == 16 ? 24 : 12;

template <typename Panels>
float multiply_chains(int64_t steps) {
  Floats sum[kCeilingChains] = {};
  Words a = as_words(splat(1.0f)), b = as_words(splat(0x1p-20f));
  for (int64_t step = 0; step < steps; ++step) {
    HK_UNROLL for (int chain = 0; chain < kCeilingChains; ++chain) {
      sum[chain] = multiply_add(Panels{}, sum[chain], a, b);
      HK_GEMM_ROUNDED(sum[chain]);  // chains that are all the same stay as many
    }
  }
  Floats total{};
  HK_UNROLL for (int chain = 0; chain < kCeilingChains; ++chain) total += sum[chain];
  return total[0];
}

// Four streams side by side, each a quarter of the range, with prefetches as far ahead as the GEMMs' few-rows kernels
// have them: a single stream leaves miss slots free.
uint32_t read_streams(const void* from, int64_t bytes) {
  constexpr int kStreams = 4, kAhead = 1536;
  const int64_t quarter = bytes / kStreams;
  const char* at = static_cast<const char*>(from);
  Words found[kStreams] = {};
  for (int64_t i = 0; i < quarter; i += 64) HK_UNROLL for (int stream = 0; stream < kStreams; ++stream) {
      const char* line = at + stream * quarter + i;
      __builtin_prefetch(line + kAhead, 0, 2);
      HK_UNROLL for (int word = 0; word < 64 / (4 * kFloats); ++word) found[stream] |=
          load_as<Words>(line + word * 4 * kFloats);
    }
  Words all{};
  HK_UNROLL for (int stream = 0; stream < kStreams; ++stream) all |= found[stream];
  uint32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result |= all[i];
  return result;
}

void copy_past_caches(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (int64_t i = 0; i < bytes; i += 4 * kFloats) {
    if (i % 64 == 0) __builtin_prefetch(source + i + 2048, 0, 2);
    store_past_caches(target + i, load_as<Words>(source + i));
  }
  finish_stores_past_caches();
}

constexpr CeilingKernels ceiling_kernels = {
    .multiply_float = multiply_chains<FloatPanels>,
    .multiply_float_flops = 2 * kFloats * kCeilingChains,
#if defined(HK_BF16_DOT)
    .multiply_bfloat16 = multiply_chains<PairPanels>,
    .multiply_bfloat16_flops = 4 * kFloats * kCeilingChains,
#else
    .multiply_bfloat16 = nullptr,
    .multiply_bfloat16_flops = 0,
#endif
    .read = read_streams,
    .copy = copy_past_caches,
};
