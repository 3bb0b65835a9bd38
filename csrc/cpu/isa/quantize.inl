// Quantization to e4m3:  amax = max |x| over finite x,  q = round_e4m3(x / scale).
// Contiguous runs of one scale; the recipes (which runs share a scale) are in cpu/quantize.cpp.

template <typename Element>
float amax_finite_of(const Element* x, int64_t n) {
  Words largest{};
  auto fold = [&](Floats v) {
    Words magnitude = as_words(v) & 0x7fffffffu;
    magnitude = select(magnitude < 0x7f800000u, magnitude, Words{});
    largest = select(magnitude > largest, magnitude, largest);  // order of the bits is the order of the magnitudes
  };
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) fold(load(x + i));
  if (i < n) fold(load_partial(x + i, static_cast<int>(n - i)));
  return max_lane(as_floats(largest));
}

template <typename Element>
void quantize_run(const Element* x, int64_t n, float scale, float8_e4m3fn* out) {
  const Floats divisor = splat(scale);
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) store(out + i, load(x + i) / divisor);
  if (i < n) {
    int rest = static_cast<int>(n - i);
    store_partial(out + i, load_partial(x + i, rest) / divisor, rest);
  }
}

float amax_finite(const void* x, DType dtype, int64_t n) {
  return dtype == DType::bfloat16 ? amax_finite_of(static_cast<const bfloat16*>(x), n)
                                  : amax_finite_of(static_cast<const float*>(x), n);
}

void quantize(const void* x, DType dtype, int64_t n, float scale, float8_e4m3fn* out) {
  if (dtype == DType::bfloat16)
    quantize_run(static_cast<const bfloat16*>(x), n, scale, out);
  else
    quantize_run(static_cast<const float*>(x), n, scale, out);
}

constexpr QuantizeKernels quantize_kernels = {amax_finite, quantize};
