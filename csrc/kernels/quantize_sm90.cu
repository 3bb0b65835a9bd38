// quantize_fp8:  amax = max |x| over the finite x of a region,  scale = amax / 448 (1 when that is below 2^-126),
//                q = e4m3(x / scale), true division, nearest even, saturating, NaN kept with its sign.
//
// Shapes    x [rows, columns] bf16 or fp32, columns contiguous, any row stride; q [rows, columns]; one scale per
// region. Regions   row: a row; block_1x128 and block_128x128: that tile, cut off at the edges; tensor: everything.
// Threads   blockDim = (threads of a region, regions of a block). Thread t takes the 16-byte vectors t, t + threads,
// ...
//           of its region, row by row, and keeps them in registers: x is read once. Only a row of more than
//           8 * 512 vectors (32768 bf16, 16384 fp32) is read twice.
// tensor    two launches; block b takes the pieces b, b + grid, ... of x. The first writes one maximum per block, the
//           second begins with the maximum of those: no atomics, no memory to clear. It may start before the first has
//           ended (programmatic dependent launch). x is read twice.
// Stores    8 bytes (bf16) or 4 (fp32) per lane and vector, contiguous over a warp.
// Variants  <kernel>: every row starts at a multiple of 16 bytes and holds whole vectors. <kernel>_any: no condition;
// reads
//           and writes element by element.
#include "arch/convert.cuh"
#include "arch/launch.cuh"
#include "kernels/quantize_arguments.h"
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
  const typename G::Element* x;  // first element of the region
  uint8_t* q;
  int64_t x_stride, q_stride;
  int64_t columns;
  int rows;  // 0: past the last region
  Words4 vector[G::kVectors];

  __device__ Region(const QuantizeArguments& a, int64_t index) : x_stride(a.row_stride), q_stride(a.columns) {
    const int64_t width = G::kColumns ? G::kColumns : a.columns;
    const int64_t row = G::kColumns ? index / a.regions_per_row * G::kRows : index;
    const int64_t column = G::kColumns ? index % a.regions_per_row * width : 0;
    x = static_cast<const typename G::Element*>(a.x) + row * x_stride + column;
    q = a.q + row * q_stride + column;
    rows = index < a.regions ? static_cast<int>(min(int64_t{G::kRows}, a.rows - row)) : 0;
    columns = min(width, a.columns - column);
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
      const int64_t column =
          G::kColumns ? (index - row * kPerRow) * G::kPerVector : chunk * chunk_columns() + index * G::kPerVector;
      if (row >= rows || column >= columns) continue;
      f(slot, row, column, static_cast<int>(min(int64_t{G::kPerVector}, columns - column)));
    }
  }

  __device__ __forceinline__ void load(int64_t chunk) {
    for_each_vector(chunk, [&](int slot, int row, int64_t column, int count) {
      const auto* from = x + row * x_stride + column;
      vector[slot] = G::kWhole ? arch::load_streaming(from) : tile::load_elements(from, count);
    });
  }

  __device__ __forceinline__ uint32_t bits(int slot, int i) const {
    return tile::element_bits<typename G::Element>(vector[slot], i);
  }

  // Bits of the largest finite magnitude; their order is that of the values.
  __device__ __forceinline__ uint32_t amax(int64_t chunk) {
    uint32_t largest = 0;
    for_each_vector(chunk, [&](int slot, int, int64_t, int) {
#pragma unroll
      for (int i = 0; i < G::kPerVector; ++i) {
        const uint32_t magnitude = bits(slot, i) & 0x7fffffffu;
        if (magnitude < 0x7f800000u) largest = max(largest, magnitude);
      }
    });
    return largest;
  }

  // Four elements to four bytes. The conversion drops the sign of a NaN; it is put back.
  __device__ __forceinline__ uint32_t quantize4(int slot, int first, float scale) const {
    float quotient[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) quotient[i] = __fdiv_rn(__uint_as_float(bits(slot, first + i)), scale);
    const uint32_t bytes = arch::to_e4m3x2(quotient[0], quotient[1]) |
                           static_cast<uint32_t>(arch::to_e4m3x2(quotient[2], quotient[3])) << 16;
    const uint32_t is_nan = ((bytes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    const uint32_t top_bytes = __byte_perm(__byte_perm(bits(slot, first), bits(slot, first + 1), 0x0073),
                                           __byte_perm(bits(slot, first + 2), bits(slot, first + 3), 0x0073), 0x5410);
    return bytes | (is_nan & top_bytes);
  }

  __device__ __forceinline__ void quantize(int64_t chunk, float scale) {
    for_each_vector(chunk, [&](int slot, int row, int64_t column, int count) {
      uint32_t bytes[G::kPerVector / 4];
#pragma unroll
      for (int i = 0; i < G::kPerVector / 4; ++i) bytes[i] = quantize4(slot, 4 * i, scale);
      uint8_t* to = q + row * q_stride + column;
      if constexpr (!G::kWhole) {
#pragma unroll
        for (int i = 0; i < G::kPerVector; ++i)
          if (i < count) to[i] = static_cast<uint8_t>(bytes[i / 4] >> (i % 4 * 8));
      } else if constexpr (G::kPerVector == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(bytes[0], bytes[1]);
      } else {
        *reinterpret_cast<uint32_t*>(to) = bytes[0];
      }
    });
  }
};

__device__ __forceinline__ float scale_of(uint32_t amax_bits) {
  const float scale = __fdiv_rn(__uint_as_float(amax_bits), 448.0f);
  return scale < 0x1p-126f ? 1.0f : scale;
}

// Recipes whose regions lie within a block: row, block_1x128, block_128x128.
template <typename G>
__device__ __forceinline__ void quantize_regions(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  Region<G> region(a, index);
  const int64_t chunks = region.chunks();
  float scale = 1.0f;
  if (a.static_scale) {
    if (chunks) scale = a.static_scale[index];
    if (chunks == 1) region.load(0);
  } else {
    uint32_t largest = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      region.load(chunk);
      largest = max(largest, region.amax(chunk));
    }
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    scale = scale_of(tile::group_max(largest, thread, region.threads(), scratch));
    if (region.rows && threadIdx.x == 0) a.scale[index] = scale;
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunks > 1) region.load(chunk);
    region.quantize(chunk, scale);
  }
}

template <typename G>
__device__ __forceinline__ void tensor_amax(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  uint32_t largest = 0;
  for (int64_t piece = blockIdx.x; piece < a.regions; piece += gridDim.x) {
    Region<G> region(a, piece);
    region.load(0);
    largest = max(largest, region.amax(0));
  }
  largest = tile::group_max(largest, threadIdx.x, G::kThreads, scratch);
  if (threadIdx.x == 0) a.partial_amax[blockIdx.x] = largest;
}

template <typename G>
__device__ __forceinline__ void tensor_quantize(const QuantizeArguments& a) {
  __shared__ uint32_t scratch[32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  float scale;
  if (a.static_scale) {
    scale = *a.static_scale;
  } else {
    uint32_t largest = 0;
    for (int i = threadIdx.x; i < a.num_partials; i += G::kThreads)
      largest = max(largest, arch::load_relaxed(a.partial_amax + i));
    scale = scale_of(tile::group_max(largest, threadIdx.x, G::kThreads, scratch));
    if (blockIdx.x == 0 && threadIdx.x == 0) *a.scale = scale;
  }
  for (int64_t piece = blockIdx.x; piece < a.regions; piece += gridDim.x) {
    Region<G> region(a, piece);
    region.load(0);
    region.quantize(0, scale);
  }
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
