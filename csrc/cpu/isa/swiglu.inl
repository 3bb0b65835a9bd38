// SwiGLU:  out = silu(gate) * up,  silu(x) = x * sigmoid(x) = x / (1 + e^-x),  in fp32, rounded once.
// Backward, with s = sigmoid(gate):  grad_up = grad * gate * s,  grad_gate = grad * up * s * (1 + gate * (1 - s)).

HK_INLINE Floats swiglu_of(Floats gate, Floats up) { return gate / (1.0f + exp_of(-gate)) * up; }

template <typename Element>
void swiglu_tile_of(const float* gate, const float* up, int width, int64_t rows, int64_t columns, Element* out,
                    int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row, gate += width, up += width, out += out_stride) {
    int64_t c = 0;
    for (; c + kFloats <= columns; c += kFloats) store(out + c, swiglu_of(load(gate + c), load(up + c)));
    if (c < columns) {
      const int rest = static_cast<int>(columns - c);
      store_partial(out + c, swiglu_of(load_partial(gate + c, rest), load_partial(up + c, rest)), rest);
    }
  }
}

void swiglu_tile(const float* gate, const float* up, int width, int64_t rows, int64_t columns, DType dtype, void* out,
                 int64_t out_stride) {
  if (dtype == DType::bfloat16)
    swiglu_tile_of(gate, up, width, rows, columns, static_cast<bfloat16*>(out), out_stride);
  else
    swiglu_tile_of(gate, up, width, rows, columns, static_cast<float*>(out), out_stride);
}

template <typename Element>
void swiglu_forward_run(const Element* gate, const Element* up, int64_t n, Element* out) {
  for (int64_t i = 0; i < n; i += kFloats) {
    const int count = static_cast<int>(minimum(kFloats, n - i));
    store_lanes(out + i, swiglu_of(load_lanes(gate + i, count), load_lanes(up + i, count)), count);
  }
}

void swiglu_forward(const void* gate, const void* up, DType dtype, int64_t n, void* out) {
  if (dtype == DType::bfloat16)
    swiglu_forward_run(static_cast<const bfloat16*>(gate), static_cast<const bfloat16*>(up), n,
                       static_cast<bfloat16*>(out));
  else
    swiglu_forward_run(static_cast<const float*>(gate), static_cast<const float*>(up), n, static_cast<float*>(out));
}

template <typename Element>
void swiglu_backward_run(const Element* grad_out, const Element* gate, const Element* up, int64_t n, Element* grad_gate,
                         Element* grad_up) {
  for (int64_t i = 0; i < n; i += kFloats) {
    const int count = static_cast<int>(minimum(kFloats, n - i));
    Floats grad = load_lanes(grad_out + i, count), g = load_lanes(gate + i, count), u = load_lanes(up + i, count);
    Floats sigmoid = 1.0f / (1.0f + exp_of(-g));
    Floats to_up = grad * g * sigmoid, to_gate = grad * u * sigmoid * (1.0f + g * (1.0f - sigmoid));
    store_lanes(grad_gate + i, to_gate, count), store_lanes(grad_up + i, to_up, count);
  }
}

void swiglu_backward(const void* grad_out, const void* gate, const void* up, DType dtype, int64_t n, void* grad_gate,
                     void* grad_up) {
  if (dtype == DType::bfloat16)
    swiglu_backward_run(static_cast<const bfloat16*>(grad_out), static_cast<const bfloat16*>(gate),
                        static_cast<const bfloat16*>(up), n, static_cast<bfloat16*>(grad_gate),
                        static_cast<bfloat16*>(grad_up));
  else
    swiglu_backward_run(static_cast<const float*>(grad_out), static_cast<const float*>(gate),
                        static_cast<const float*>(up), n, static_cast<float*>(grad_gate), static_cast<float*>(grad_up));
}

constexpr SwigluKernels swiglu_kernels = {swiglu_tile, swiglu_forward, swiglu_backward};
