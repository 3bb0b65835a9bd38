// SwiGLU and its gradient, for results of a GEMM whose epilogue does not hold it.
//
//   swiglu           out = silu(gate) * up,  silu(v) = v * s(v),  s(v) = 1 / (1 + e^-v)
//   swiglu_backward  grad_gate = grad_out * up * s * (1 + gate * (1 - s)),  grad_up = grad_out * gate * s,  s = s(gate)
//
// Shapes:   x and grad_x [S, 2I], a row being I elements of gate, then I of up; out and grad_out [S, I]. bf16 or fp32;
//           computed in fp32, rounded once. Rows of x and grad_out have any stride.
//
// Rows:     those at and past rows_used (the last expert offset, read on the device) are written as zeros and not read.
//
// Threads:  blockDim = (threads of a row, rows of a block), see tile/rows.cuh. A thread takes the vectors t,
//           t + threads, ... of the row's I columns, from gate and from up, with kRowVectors of each in flight (half as
//           many in the gradient, which has three operands).
//
// Dataflow: global memory -> registers -> global memory, 16 bytes at a time; each byte is read and written once.
//
// Variants: <kernel> wants gate and up of every row to start at multiples of 16 bytes and to hold whole vectors;
//           <kernel>_any goes element by element.
#include "arch/launch.cuh"
#include "kernels/swiglu_arguments.h"
#include "tile/rows.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Words4;
using tile::bfloat16;
using tile::Row;

__device__ __forceinline__ float sigmoid(float v) { return __fdiv_rn(1.0f, 1.0f + expf(-v)); }

template <typename Element>
__device__ __forceinline__ float element(const Words4& v, int i) {
  return __uint_as_float(tile::element_bits<Element>(v, i));
}

__device__ __forceinline__ bool is_used(int64_t row, const int32_t* rows_used) {
  return !rows_used || row < tile::once_per_warp([&] { return *rows_used; });
}

template <typename Element, bool kWhole>
__device__ __forceinline__ void swiglu(const SwigluArguments& a) {
  using R = Row<Element, kWhole>;
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t row = tile::row_of_thread();
  if (row >= a.rows) return;
  const bool used = is_used(row, a.rows_used);
  const Element *gates = static_cast<const Element*>(a.x) + row * a.x_stride, *ups = gates + a.columns;
  void* out = R::at(a.out, row, a.columns);
  Words4 gate[kRowVectors] = {}, up[kRowVectors] = {};
  tile::for_each_vector<kRowVectors>(
      R::vectors(a.columns),
      [&](int slot, int64_t index) {
        if (!used) return;
        gate[slot] = R::load(gates, index, a.columns);
        up[slot] = R::load(ups, index, a.columns);
      },
      [&](int slot, int64_t index) {
        float values[R::kPerVector];
#pragma unroll
        for (int i = 0; i < R::kPerVector; ++i) {
          const float g = element<Element>(gate[slot], i);
          values[i] = __fdiv_rn(g, 1.0f + expf(-g)) * element<Element>(up[slot], i);
        }
        R::store(out, index, a.columns, values);
      });
}

template <typename Element, bool kWhole>
__device__ __forceinline__ void swiglu_backward(const SwigluBackwardArguments& a) {
  using R = Row<Element, kWhole>;
  constexpr int kVectors = kRowVectors / 2;
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t row = tile::row_of_thread();
  if (row >= a.rows) return;
  const bool used = is_used(row, a.rows_used);
  const Element *gates = static_cast<const Element*>(a.x) + row * a.x_stride, *ups = gates + a.columns;
  const void* grads = R::at(a.grad_out, row, a.grad_out_stride);
  Element *to_gates = static_cast<Element*>(a.grad_x) + row * 2 * a.columns, *to_ups = to_gates + a.columns;
  Words4 grad[kVectors] = {}, gate[kVectors] = {}, up[kVectors] = {};
  tile::for_each_vector<kVectors>(
      R::vectors(a.columns),
      [&](int slot, int64_t index) {
        if (!used) return;
        grad[slot] = R::load(grads, index, a.columns);
        gate[slot] = R::load(gates, index, a.columns);
        up[slot] = R::load(ups, index, a.columns);
      },
      [&](int slot, int64_t index) {
        float to_gate[R::kPerVector], to_up[R::kPerVector];
#pragma unroll
        for (int i = 0; i < R::kPerVector; ++i) {
          const float d = element<Element>(grad[slot], i), g = element<Element>(gate[slot], i), s = sigmoid(g);
          to_gate[i] = d * element<Element>(up[slot], i) * s * fmaf(g, 1.0f - s, 1.0f);
          to_up[i] = d * g * s;
        }
        R::store(to_gates, index, a.columns, to_gate);
        R::store(to_ups, index, a.columns, to_up);
      });
}

}  // namespace

#define HK_KERNELS(suffix, Element, whole)                                          \
  extern "C" __global__ void __launch_bounds__(kRowBlockThreads)                    \
      swiglu_forward_##suffix(const __grid_constant__ SwigluArguments a) {          \
    swiglu<Element, whole>(a);                                                      \
  }                                                                                 \
  extern "C" __global__ void __launch_bounds__(kRowBlockThreads)                    \
      swiglu_backward_##suffix(const __grid_constant__ SwigluBackwardArguments a) { \
    swiglu_backward<Element, whole>(a);                                             \
  }
HK_KERNELS(bfloat16, bfloat16, true)
HK_KERNELS(bfloat16_any, bfloat16, false)
HK_KERNELS(float32, float, true)
HK_KERNELS(float32_any, float, false)
#undef HK_KERNELS

}  // namespace hunyuan_kernels::kernels
