// quantize_fp8:  amax = max |x| over the finite x of a region,  scale = amax / 448 (1 when that is below 2^-126),
//                q = e4m3(x / scale), true division, nearest even, saturating, NaN kept with its sign.
//
// Shapes:   x [matrices, rows, columns] bf16 or fp32, columns contiguous, any other strides; q of the same shape,
//           contiguous; one scale per region, any strides.
//
// Regions:  row: a row; block_1x128, block_128x128: that tile, cut off at the edges; tensor: a matrix.
//
// Threads:  blockDim = (threads of a region, regions of a block). The regions of a block lie below each other, so that
//           scales which are stored M-major leave in whole sectors; blockIdx.x runs along a row first; blockIdx.y is
//           the matrix. Thread t takes the 16-byte vectors t, t + threads, ... of its region, row by row, and keeps
//           them in registers: x is read once. Only a row of more than 8 * 512 vectors (32768 bf16, 16384 fp32) is
//           read twice.
//
// tensor:   two launches of one grid; block b takes the pieces b, b + gridDim.x, ... of its matrix. The first writes
//           one maximum per block, the second begins with the maximum of those: no atomics, no memory to clear. It may
//           start before the first has ended (programmatic dependent launch). x is read twice.
//
// Stores:   8 bytes (bf16) or 4 (fp32) per lane and vector, contiguous over a warp.
//
// Variants: <kernel> wants rows that start at multiples of 16 bytes and hold whole vectors. <kernel>_any has no
//           condition; it reads and writes element by element.
#include <type_traits>

#include "arch/launch.cuh"
#include "kernels/quantize_arguments.h"
#include "tile/quantize.cuh"
#include "tile/reduce.cuh"
#include "tile/vector_io.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Words4;
using tile::bfloat16;
using tile::kElementsPerVector;

// kWhole: see Variants. kRows x kColumns: shape of a region, kColumns = 0 for a whole row. kThreads: threads of a
// region, 0 when only the launch knows. kVectors: vectors per thread.
template <typename Element_, bool kWhole_, int kRows_, int kColumns_, int kThreads_, int kVectors_>
struct Geometry {
  using Element = Element_;
  static constexpr bool kWhole = kWhole_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kThreads = kThreads_, kVectors = kVectors_;
  using Column = std::conditional_t<kColumns_ == 0, int64_t, int>;  // a column of a region
  static constexpr int kPerVector = kElementsPerVector<Element>;
  static_assert(kColumns == 0 || kRows * kColumns == kThreads * kVectors * kPerVector);
};
template <typename Element, bool kWhole>
using RowGeometry = Geometry<Element, kWhole, 1, 0, 0, kQuantizeVectors>;
template <typename Element, bool kWhole>
using Block1x128Geometry = Geometry<Element, kWhole, 1, 128, 128 / kElementsPerVector<Element>, 1>;
template <typename Element, bool kWhole>
using Block128x128Geometry =
    Geometry<Element, kWhole, 128, 128, 128 * 128 / kElementsPerVector<Element> / kQuantizeVectors, kQuantizeVectors>;
template <typename Element, bool kWhole>
using TensorGeometry =
    Geometry<Element, kWhole, 1, kQuantizeTensorThreads * kQuantizeVectors * kElementsPerVector<Element>,
             kQuantizeTensorThreads, kQuantizeVectors>;

// A region, and this thread's vectors of one chunk of it. All regions but long rows have one chunk.
template <typename G>
struct Region {
  using Column = typename G::Column;
  const typename G::Element* x;  // first element of the region
  uint8_t* q;
  int64_t x_stride, q_stride;
  Column columns;
  int rows;  // 0: past the last region
  Words4 vector[G::kVectors];

  __device__ Region(const QuantizeArguments& a, int64_t row_region, uint32_t column_region)
      : x_stride(a.row_stride), q_stride(a.columns) {
    const int64_t width = G::kColumns ? G::kColumns : a.columns;
    const int64_t row = row_region * G::kRows, column = column_region * width;
    x = static_cast<const typename G::Element*>(a.x) + blockIdx.y * a.matrix_stride + row * x_stride + column;
    q = a.q + (blockIdx.y * a.rows + row) * q_stride + column;
    rows = row_region < a.row_regions ? static_cast<int>(min(int64_t{G::kRows}, a.rows - row)) : 0;
    columns = static_cast<Column>(min(width, a.columns - column));
  }

  __device__ static int threads() { return G::kThreads ? G::kThreads : blockDim.x; }
  __device__ int64_t chunk_columns() const { return int64_t{G::kVectors} * G::kPerVector * threads(); }
  __device__ int64_t chunks() const {
    if (G::kColumns || rows == 0) return rows != 0;
    return (columns + chunk_columns() - 1) / chunk_columns();
  }

  // f(slot, row, column, elements) for each vector of this thread in a chunk.
  template <typename F>
  __device__ __forceinline__ void for_each_vector(int64_t chunk, F&& f) {
    constexpr int kPerRow = G::kColumns / G::kPerVector;
#pragma unroll
    for (int slot = 0; slot < G::kVectors; ++slot) {
      const int index = slot * threads() + threadIdx.x;
      const int row = G::kRows == 1 ? 0 : index / (kPerRow ? kPerRow : 1);
      const Column column = G::kColumns ? (index - row * kPerRow) * G::kPerVector
                                        : static_cast<Column>(chunk * chunk_columns()) + index * G::kPerVector;
      if (row >= rows || column >= columns) continue;
      f(slot, row, column, static_cast<int>(min(Column{G::kPerVector}, columns - column)));
    }
  }

  __device__ __forceinline__ void load(int64_t chunk) {
    for_each_vector(chunk, [&](int slot, int row, Column column, int count) {
      const auto* from = x + row * x_stride + column;
      vector[slot] = G::kWhole ? arch::load_streaming(from) : tile::load_elements(from, count);
    });
  }

  // Bits of the largest finite magnitude.
  __device__ __forceinline__ uint32_t amax(int64_t chunk) {
    uint32_t largest = 0;
    for_each_vector(chunk, [&](int slot, int, Column, int) {
      largest = max(largest, tile::amax_bits<typename G::Element>(vector[slot]));
    });
    return largest;
  }

  __device__ __forceinline__ void quantize(int64_t chunk, float scale) {
    for_each_vector(chunk, [&](int slot, int row, Column column, int count) {
      tile::store_quantized<typename G::Element, G::kWhole>(q + row * q_stride + column, vector[slot], scale, count);
    });
  }
};

// Recipes whose regions lie within a block: row, block_1x128, block_128x128.
template <typename G>
__device__ __forceinline__ void quantize_regions(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const uint32_t column_region = blockIdx.x % a.column_regions;
  const int64_t row_region = int64_t{blockIdx.x / a.column_regions} * blockDim.y + threadIdx.y;
  const int64_t scale_at =
      blockIdx.y * a.scale_matrix_stride + row_region * a.scale_row_stride + column_region * a.scale_column_stride;
  Region<G> region(a, row_region, column_region);
  const int64_t chunks = region.chunks();
  float scale = 1.0f;
  if (a.static_scale) {
    if (chunks) scale = a.static_scale[scale_at];
    if (chunks == 1) region.load(0);
  } else {
    uint32_t largest = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      region.load(chunk);
      largest = max(largest, region.amax(chunk));
    }
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    scale = tile::scale_of(tile::group_max(largest, thread, region.threads(), scratch));
    if (region.rows && threadIdx.x == 0) a.scale[scale_at] = scale;
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunks > 1) region.load(chunk);
    region.quantize(chunk, scale);
  }
}

// f(region) for each piece of this block's share of its matrix. The plan keeps the number of pieces below 2^31.
template <typename G, typename F>
__device__ __forceinline__ void for_each_piece(const QuantizeArguments& a, F&& f) {
  const uint32_t pieces = static_cast<uint32_t>(a.row_regions) * a.column_regions;
  for (uint32_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    Region<G> region(a, piece / a.column_regions, piece % a.column_regions);
    region.load(0);
    f(region);
  }
}

template <typename G>
__device__ __forceinline__ void tensor_amax(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  uint32_t largest = 0;
  for_each_piece<G>(a, [&](Region<G>& region) { largest = max(largest, region.amax(0)); });
  largest = tile::group_max(largest, threadIdx.x, G::kThreads, scratch);
  if (threadIdx.x == 0) a.partial_amax[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = largest;
}

template <typename G>
__device__ __forceinline__ void tensor_quantize(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  float scale;
  if (a.static_scale) {
    scale = a.static_scale[blockIdx.y * a.scale_matrix_stride];
  } else {
    uint32_t largest = 0;
    const uint32_t* partials = a.partial_amax + int64_t{blockIdx.y} * gridDim.x;
    for (uint32_t i = threadIdx.x; i < gridDim.x; i += G::kThreads)
      largest = max(largest, arch::load_relaxed(partials + i));
    scale = tile::scale_of(tile::group_max(largest, threadIdx.x, G::kThreads, scratch));
    if (blockIdx.x == 0 && threadIdx.x == 0) a.scale[blockIdx.y * a.scale_matrix_stride] = scale;
  }
  for_each_piece<G>(a, [&](Region<G>& region) { region.quantize(0, scale); });
}

}  // namespace

#define HK_KERNEL(name, threads, body) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ QuantizeArguments a) { body(a); }
#define HK_KERNELS(suffix, Element, whole)                                                                        \
  HK_KERNEL(quantize_row_##suffix, kQuantizeRowMaxThreads, (quantize_regions<RowGeometry<Element, whole>>))       \
  HK_KERNEL(quantize_block_1x128_##suffix, 256, (quantize_regions<Block1x128Geometry<Element, whole>>))           \
  HK_KERNEL(quantize_block_128x128_##suffix, 512, (quantize_regions<Block128x128Geometry<Element, whole>>))       \
  HK_KERNEL(quantize_tensor_amax_##suffix, kQuantizeTensorThreads, (tensor_amax<TensorGeometry<Element, whole>>)) \
  HK_KERNEL(quantize_tensor_##suffix, kQuantizeTensorThreads, (tensor_quantize<TensorGeometry<Element, whole>>))
HK_KERNELS(bfloat16, bfloat16, true)
HK_KERNELS(bfloat16_any, bfloat16, false)
HK_KERNELS(float32, float, true)
HK_KERNELS(float32_any, float, false)
#undef HK_KERNELS
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
