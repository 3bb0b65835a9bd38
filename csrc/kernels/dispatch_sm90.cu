// The row movements of a mixture-of-experts layer. All are bound by memory: every byte is read and written once, in
// vectors of 16 bytes.
//
//   dispatch          out[r] = x[token_ids[r]],  zeros for r >= rows_used and for tokens out of range
//   dispatch_fp8      the same, quantized in blocks of 1 x 128 (tile/quantize.cuh): q[r], scale[r, block];
//                     scale 1 for zeros. Or under one scale that is given
//   combine           out[t] = sum_j weights[t, j] * y[rows[t, j]] + shared[t] + residual[t]
//   combine_backward  grad_y[r] = weights[t, j] * grad_out[t],  grad_weights[t, j] = <grad_out[t], y[r]>,
//                     with t = token_ids[r] and the j for which rows[t, j] = r; zeros for rows that nobody owns
//
// Shapes:   x [tokens, H], y [S, H], rows and weights [tokens, k]; rows of x, y, shared, residual and grad_out have any
//           stride. dispatch moves bytes; the others take bf16 and fp32 and sum in fp32, in the order written above.
//
// Threads:  blockDim = (threads of a row, rows of a block). A thread takes the vectors t, t + threads, ... of its row,
//           with kRowVectors loads in flight. With k > 1 a token's row is read k times, from L2 after the first.
//           dispatch_fp8: a scale block is as wide as blockDim.x vectors, a thread block holds kRowVectors of them
//           side by side in neighbouring rows. Its scales, stored M-major, leave through shared memory: whole sectors.
//
// Order:    nothing is atomic. A row of y belongs to one assignment, so combine_backward goes by rows: it writes each
//           gradient once, and its dot products are summed by a tree that depends on the number of threads alone.
//
// Bounds:   row and token numbers are data; those out of range are skipped, and nothing is read or written for them.
//
// Variants: <kernel> wants rows that start at multiples of 16 bytes and hold whole vectors; <kernel>_any goes element
//           by element (dispatch: byte by byte).
#include "arch/convert.cuh"
#include "arch/launch.cuh"
#include "kernels/dispatch_arguments.h"
#include "tile/quantize.cuh"
#include "tile/reduce.cuh"
#include "tile/rows.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Words4;
using tile::bfloat16;
using tile::is_within;
using tile::kElementsPerVector;
using tile::once_per_warp;
using tile::Row;

__device__ __forceinline__ Words4 load_unit(const Words4* from) { return arch::load_streaming(from); }
__device__ __forceinline__ uint8_t load_unit(const uint8_t* from) { return *from; }
__device__ __forceinline__ void store_unit(Words4* to, const Words4& v) { arch::store(to, v); }
__device__ __forceinline__ void store_unit(uint8_t* to, uint8_t v) { *to = v; }

template <typename Unit>
__device__ __forceinline__ void dispatch_rows(const DispatchArguments& a) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t row = tile::row_of_thread();
  if (row >= a.rows) return;
  const int32_t token = once_per_warp([&] { return row < *a.rows_used ? a.token_ids[row] : -1; });
  const bool there = is_within(token, a.tokens);
  const auto* from = reinterpret_cast<const Unit*>(static_cast<const char*>(a.x) + (there ? token : 0) * a.x_stride);
  auto* to = reinterpret_cast<Unit*>(static_cast<char*>(a.out) + row * a.row_bytes);
  Unit held[kRowVectors];
  tile::for_each_vector<kRowVectors>(
      a.row_bytes / static_cast<int64_t>(sizeof(Unit)),
      [&](int slot, int64_t index) { held[slot] = there ? load_unit(from + index) : Unit{}; },
      [&](int slot, int64_t index) { store_unit(to + index, held[slot]); });
}

template <typename Element, bool kWhole>
__device__ __forceinline__ void dispatch_fp8(const DispatchFp8Arguments& a) {
  using R = Row<Element, kWhole>;
  constexpr int kThreads = kDispatchScaleBlock / R::kPerVector, kRows = kRowBlockThreads / kThreads;
  __shared__ uint32_t scratch[kRowBlockThreads / 32];
  __shared__ float scales[kRowVectors][kRows];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t first_row = int64_t{blockIdx.x / a.spans} * kRows, row = first_row + threadIdx.y;
  const int64_t first_block = int64_t{blockIdx.x % a.spans} * kRowVectors;
  const int64_t vectors = row < a.rows ? R::vectors(a.hidden) : 0;
  const int thread = threadIdx.y * kThreads + threadIdx.x;
  int32_t token = -1;
  if (threadIdx.x == 0 && row < a.rows && row < *a.rows_used) token = a.token_ids[row];
  token = static_cast<int32_t>(arch::lane_value(token, thread % 32 / kThreads * kThreads));
  const bool there = is_within(token, a.tokens);
  const void* from = R::at(a.x, there ? token : 0, a.x_stride);
  const float given = a.given_scale ? *a.given_scale : 1.0f;
  Words4 held[kRowVectors] = {};
#pragma unroll
  for (int slot = 0; slot < kRowVectors; ++slot)
    if (const int64_t index = (first_block + slot) * kThreads + threadIdx.x; there && index < vectors)
      held[slot] = R::load(from, index, a.hidden);
#pragma unroll
  for (int slot = 0; slot < kRowVectors; ++slot) {
    float scale = there ? given : 1.0f;
    if (!a.given_scale) {
      scale = tile::scale_of(tile::group_max(tile::amax_bits<Element>(held[slot]), thread, kThreads, scratch));
      if (threadIdx.x == 0) scales[slot][threadIdx.y] = scale;
    }
    if (const int64_t index = (first_block + slot) * kThreads + threadIdx.x; index < vectors) {
      const int64_t column = index * R::kPerVector;
      tile::store_quantized<Element, kWhole>(a.q + row * a.hidden + column, held[slot], scale,
                                             static_cast<int>(min(int64_t{R::kPerVector}, a.hidden - column)));
    }
  }
  if (a.given_scale) return;
  __syncthreads();
  if (thread >= kRowVectors * kRows) return;
  const int slot = thread / kRows, row_of_block = thread % kRows;
  if (first_row + row_of_block < a.rows && (first_block + slot) * kDispatchScaleBlock < a.hidden)
    a.scale[(first_block + slot) * a.scale_block_stride + first_row + row_of_block] = scales[slot][row_of_block];
}

// sum += weight * v, element by element
template <typename Element>
__device__ __forceinline__ void add(float (&sum)[kElementsPerVector<Element>], float weight, const Words4& v) {
#pragma unroll
  for (int i = 0; i < kElementsPerVector<Element>; ++i)
    sum[i] = fmaf(weight, __uint_as_float(tile::element_bits<Element>(v, i)), sum[i]);
}

template <typename Element, bool kWhole>
__device__ __forceinline__ void combine(const CombineArguments& a) {
  using R = Row<Element, kWhole>;
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t token = tile::row_of_thread();
  if (token >= a.tokens) return;
  const int32_t* rows = a.rows + token * a.top_k;
  const float* weights = a.weights + token * a.top_k;
  const int64_t vectors = R::vectors(a.hidden), step = int64_t{kRowVectors} * blockDim.x;
  for (int64_t round = 0; round < vectors;
       round += step) {  // lanes past the row's end stay: they take part in shuffles
    const int64_t first = round + threadIdx.x;
    float sum[kRowVectors][R::kPerVector] = {};
    // One addend of every vector of this thread: its loads are issued together.
    auto add_row = [&](const void* row, float weight) {
      Words4 held[kRowVectors];
#pragma unroll
      for (int slot = 0; slot < kRowVectors; ++slot)
        if (const int64_t index = first + slot * int64_t{blockDim.x}; index < vectors)
          held[slot] = R::load(row, index, a.hidden);
#pragma unroll
      for (int slot = 0; slot < kRowVectors; ++slot)
        if (const int64_t index = first + slot * int64_t{blockDim.x}; index < vectors)
          add<Element>(sum[slot], weight, held[slot]);
    };
    for (int j = 0; j < a.top_k; ++j) {
      const int32_t row = once_per_warp([&] { return rows[j]; });
      if (!is_within(row, a.rows_of_y)) continue;
      const float weight = __int_as_float(once_per_warp([&] { return __float_as_int(weights[j]); }));
      add_row(R::at(a.y, row, a.y_stride), weight);
    }
    if (a.shared) add_row(R::at(a.shared, token, a.shared_stride), 1.0f);
    if (a.residual) add_row(R::at(a.residual, token, a.residual_stride), 1.0f);
#pragma unroll
    for (int slot = 0; slot < kRowVectors; ++slot)
      if (const int64_t index = first + slot * int64_t{blockDim.x}; index < vectors)
        R::store(R::at(a.out, token, a.hidden), index, a.hidden, sum[slot]);
  }
}

template <typename Element, bool kWhole>
__device__ __forceinline__ void combine_backward(const CombineBackwardArguments& a) {
  using R = Row<Element, kWhole>;
  constexpr int kVectors = kWhole ? kRowVectors : kRowVectors / 2;  // more would spill on sm_80
  __shared__ float scratch[kRowBlockThreads / 32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t row = tile::row_of_thread();
  const int32_t token = once_per_warp([&] { return row < a.rows_of_y ? a.token_ids[row] : -1; });
  const int32_t choice = once_per_warp([&] {  // the one that names this row
    if (is_within(token, a.tokens))
      for (int j = 0; j < a.top_k; ++j)
        if (a.rows[token * int64_t{a.top_k} + j] == row) return j;
    return -1;
  });
  const bool owned = choice >= 0;
  const int64_t assignment = token * int64_t{a.top_k} + choice;
  const float weight = __int_as_float(once_per_warp([&] { return owned ? __float_as_int(a.weights[assignment]) : 0; }));
  const void* grad_out = R::at(a.grad_out, owned ? token : 0, a.grad_out_stride);
  const void* y = R::at(a.y, owned ? row : 0, a.y_stride);
  void* grad_y = R::at(a.grad_y, row, a.hidden);
  float dot = 0.0f;
  Words4 grads[kVectors], values[kVectors];
  tile::for_each_vector<kVectors>(
      row < a.rows_of_y ? R::vectors(a.hidden) : 0,
      [&](int slot, int64_t index) {
        if (!owned) return;
        grads[slot] = R::load(grad_out, index, a.hidden);
        values[slot] = R::load(y, index, a.hidden);
      },
      [&](int slot, int64_t index) {
        float gradient[R::kPerVector] = {};
        if (owned) {
#pragma unroll
          for (int i = 0; i < R::kPerVector; ++i) {
            const float g = __uint_as_float(tile::element_bits<Element>(grads[slot], i));
            gradient[i] = weight * g;
            dot = fmaf(g, __uint_as_float(tile::element_bits<Element>(values[slot], i)), dot);
          }
        }
        R::store(grad_y, index, a.hidden, gradient);
      });
  dot = tile::group_sum(dot, threadIdx.y * blockDim.x + threadIdx.x, blockDim.x, scratch);
  if (owned && threadIdx.x == 0) a.grad_weights[assignment] = dot;
}

}  // namespace

#define HK_KERNEL(name, Arguments, body) \
  extern "C" __global__ void __launch_bounds__(kRowBlockThreads) name(const __grid_constant__ Arguments a) { body(a); }
HK_KERNEL(dispatch_rows, DispatchArguments, dispatch_rows<Words4>)
HK_KERNEL(dispatch_rows_any, DispatchArguments, dispatch_rows<uint8_t>)
#define HK_KERNELS(suffix, Element, whole)                                               \
  HK_KERNEL(dispatch_fp8_##suffix, DispatchFp8Arguments, (dispatch_fp8<Element, whole>)) \
  HK_KERNEL(dispatch_combine_##suffix, CombineArguments, (combine<Element, whole>))      \
  HK_KERNEL(dispatch_combine_backward_##suffix, CombineBackwardArguments, (combine_backward<Element, whole>))
HK_KERNELS(bfloat16, bfloat16, true)
HK_KERNELS(bfloat16_any, bfloat16, false)
HK_KERNELS(float32, float, true)
HK_KERNELS(float32_any, float, false)
#undef HK_KERNELS
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
