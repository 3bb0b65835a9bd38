// The row movements: rows gathered by number, and the combine step, token by token:
//   out = sum_j weight_j * y_j + shared + residual,  and its gradients.
// One pass: every input element is loaded once, sums stay in registers.

// A row begins anywhere: what the hardware prefetches ends with the row before, so the next row is asked for while this
// one is copied. Stores that bypass the caches save the reads of the lines that they fill.
template <bool kPastCaches>
void gather_rows_of(const char* x, int64_t x_stride_bytes, const int32_t* ids, int64_t rows, int64_t row_bytes,
                    char* out) {
  constexpr int64_t kLine = 64, kAhead = 4096;
  const int64_t lines = row_bytes / kLine * kLine;
  for (int64_t r = 0; r < rows; ++r, out += row_bytes) {
    const char* from = x + ids[r] * x_stride_bytes;
    const char* next = r + 1 < rows ? x + ids[r + 1] * x_stride_bytes : from;
    for (int64_t i = 0; i < lines; i += kLine) {
      const int64_t ahead = i + kAhead;
      __builtin_prefetch(ahead < row_bytes ? from + ahead : next + minimum(ahead - row_bytes, i), 0, 2);
      HK_UNROLL for (int64_t j = 0; j < kLine; j += 4 * kFloats) {
        const Words words = load_as<Words>(from + i + j);
        if constexpr (kPastCaches)
          store_past_caches(out + i + j, words);
        else
          store_as(out + i + j, words);
      }
    }
    if (lines < row_bytes) __builtin_memcpy(out + lines, from + lines, row_bytes - lines);
  }
  if constexpr (kPastCaches) finish_stores_past_caches();
}

void gather_rows(const void* x, int64_t x_stride_bytes, const int32_t* ids, int64_t rows, int64_t row_bytes, void* out,
                 bool past_caches) {
  const bool aligned = (reinterpret_cast<uint64_t>(out) | static_cast<uint64_t>(row_bytes)) % 64 == 0;
  const auto* source = static_cast<const char*>(x);
  if (past_caches && aligned)
    gather_rows_of<true>(source, x_stride_bytes, ids, rows, row_bytes, static_cast<char*>(out));
  else
    gather_rows_of<false>(source, x_stride_bytes, ids, rows, row_bytes, static_cast<char*>(out));
}

template <typename Element>
HK_INLINE void combine_lanes(int64_t h, int n, int64_t top_k, const void* const* y, const float* weights,
                             const Element* shared, const Element* residual, Element* out) {
  Floats sum{};
  for (int64_t j = 0; j < top_k; ++j)
    if (y[j]) sum += weights[j] * load_lanes(static_cast<const Element*>(y[j]) + h, n);
  if (shared) sum += load_lanes(shared + h, n);
  if (residual) sum += load_lanes(residual + h, n);
  store_lanes(out + h, sum, n);
}

template <typename Element>
void combine_token_of(int64_t hidden, int64_t top_k, const void* const* y, const float* weights, const void* shared,
                      const void* residual, void* out) {
  const Element* s = static_cast<const Element*>(shared);
  const Element* r = static_cast<const Element*>(residual);
  Element* o = static_cast<Element*>(out);
  int64_t h = 0;
  for (; h + kFloats <= hidden; h += kFloats) combine_lanes(h, kFloats, top_k, y, weights, s, r, o);
  if (h < hidden) combine_lanes(h, static_cast<int>(hidden - h), top_k, y, weights, s, r, o);
}

void combine_token(DType dtype, int64_t hidden, int64_t top_k, const void* const* y, const float* weights,
                   const void* shared, const void* residual, void* out) {
  if (dtype == DType::bfloat16)
    combine_token_of<bfloat16>(hidden, top_k, y, weights, shared, residual, out);
  else
    combine_token_of<float>(hidden, top_k, y, weights, shared, residual, out);
}

template <typename Element>
float combine_row_backward_of(int64_t hidden, float weight, const Element* grad_out, const Element* y,
                              Element* grad_y) {
  Floats dot{};
  int64_t h = 0;
  for (; h + kFloats <= hidden; h += kFloats) {
    Floats g = load(grad_out + h);
    dot += g * load(y + h);
    store(grad_y + h, weight * g);
  }
  if (h < hidden) {
    int n = static_cast<int>(hidden - h);
    Floats g = load_partial(grad_out + h, n);
    dot += g * load_partial(y + h, n);
    store_partial(grad_y + h, weight * g, n);
  }
  float lanes[kFloats], sum = 0.0f;
  store(lanes, dot);
  for (int i = 0; i < kFloats; ++i) sum += lanes[i];
  return sum;
}

float combine_row_backward(DType dtype, int64_t hidden, float weight, const void* grad_out, const void* y,
                           void* grad_y) {
  if (dtype == DType::bfloat16)
    return combine_row_backward_of(hidden, weight, static_cast<const bfloat16*>(grad_out),
                                   static_cast<const bfloat16*>(y), static_cast<bfloat16*>(grad_y));
  return combine_row_backward_of(hidden, weight, static_cast<const float*>(grad_out), static_cast<const float*>(y),
                                 static_cast<float*>(grad_y));
}

constexpr DispatchKernels dispatch_kernels = {gather_rows, combine_token, combine_row_backward};
