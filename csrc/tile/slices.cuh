// From wgmma's registers to global memory, slice by slice: a warpgroup writes 64 rows of 128 bytes (128 e4m3, 64 bf16
// or 32 fp32 columns) to one of two buffers in shared memory, swizzled so that no banks collide, and sends it off by
// TMA or, where only some of the rows may be written, by 16-byte stores of its threads. A store drains while the next
// slice is written.
#pragma once
#include "arch/barrier.cuh"
#include "arch/convert.cuh"
#include "arch/tensor_copy.cuh"
#include "arch/warp.cuh"
#include "tile/operand.cuh"

namespace hunyuan_kernels::tile {

constexpr int kSliceBuffers = 2;
constexpr int kSliceRows = 64;

template <typename Element>
constexpr int kSliceColumns = kSwizzledRowBytes / sizeof(Element);

// Rows of a result: row r begins at data + r * parts * row_columns elements and has `parts` parts of row_columns each,
// at multiples of 16 bytes. The map: [row_columns, parts, rows], boxes of 128 bytes x 1 x 64.
struct SliceTarget {
  const void* map;
  char* data;
  int32_t row_columns, parts, part;  // the part that is written
};

class Slices {
 public:
  // `buffers`: kSliceBuffers * kBoxBytes of shared memory at a multiple of 1024, of this warpgroup alone, as is the
  // named barrier. `thread`: 0 to 127.
  __device__ Slices(uint32_t buffers, uint32_t named_barrier, int thread)
      : buffer_(buffers), other_(buffers + kBoxBytes), named_barrier_(named_barrier), thread_(thread) {}

  // value(j, i): what this thread holds of columns 8 * j ... of the slice, in the order of arch/wgmma.cuh. send(buffer)
  // may issue one TMA store by thread 0, or read the buffer by all threads.
  template <typename Element, typename Value, typename Send>
  __device__ __forceinline__ void store(Value&& value, Send&& send) {
    if (thread_ == 0) arch::wait_for_store_reads<kSliceBuffers - 1>();
    arch::synchronize(named_barrier_, 128);  // nobody reads the buffer
    write<Element>(value);
    arch::fence_async_shared();
    arch::synchronize(named_barrier_, 128);
    send(buffer_);
    if (thread_ == 0) arch::commit_stores();  // also when there is none: groups count slices
    const uint32_t used = buffer_;
    buffer_ = other_;
    other_ = used;
  }

  // The first `rows` rows of a slice, `bytes` bytes of each (a multiple of 16), to rows that lie `stride` bytes apart.
  __device__ __forceinline__ void copy_rows(uint32_t buffer, char* to, int64_t stride, int rows, int bytes) const {
    const int chunk = thread_ % 8;
    for (int row = thread_ / 8; row < rows; row += 16) {
      const arch::Words4 words = arch::load_shared(swizzled(buffer, row, chunk));  // whole rows: no banks collide
      if (16 * chunk < bytes) *reinterpret_cast<arch::Words4*>(to + row * stride + 16 * chunk) = words;
    }
  }

  // kColumns columns from `column` on, slice by slice, up to the `columns` that there are. value(j, i): of columns 8 *
  // j
  // ... of all of them. send(buffer, the slice's first column), as in store().
  template <typename Element, int kColumns, typename Value, typename Send>
  __device__ __forceinline__ void store_columns(int32_t column, int32_t columns, Value&& value, Send&& send) {
    constexpr int kWidth = kSliceColumns<Element>;
#pragma unroll
    for (int slice = 0; slice < kColumns / kWidth; ++slice) {
      const int32_t first = column + slice * kWidth;
      if (first >= columns) break;
      store<Element>([&](int j, int i) { return value(slice * kWidth / 8 + j, i); },
                     [&](uint32_t buffer) { send(buffer, first); });
    }
  }

  // The same to the rows `row` ... of a target: by TMA when all 64 are written, else the first `rows` by the threads.
  template <typename Element, int kColumns, typename Value>
  __device__ __forceinline__ void store_rows(const SliceTarget& to, int32_t column, int32_t columns, int32_t row,
                                             int32_t rows, Value&& value) {
    store_columns<Element, kColumns>(column, columns, value, [&](uint32_t buffer, int32_t first) {
      if (rows == kSliceRows) {
        if (thread_ == 0) arch::store_box(to.map, buffer, first, to.part, row);
        return;
      }
      constexpr int64_t kSize = sizeof(Element);
      const int64_t stride = to.parts * int64_t{to.row_columns} * kSize;
      copy_rows(buffer, to.data + row * stride + (to.part * int64_t{to.row_columns} + first) * kSize, stride, rows,
                min(to.row_columns - first, kSliceColumns<Element>) * static_cast<int>(kSize));
    });
  }

  // Before the block ends.
  __device__ __forceinline__ void finish() const {
    if (thread_ == 0) arch::wait_for_stores();
  }

 private:
  template <typename Element, typename Value>
  __device__ __forceinline__ void write(Value&& value) const {
    const int lane = thread_ % 32, first_row = thread_ / 32 * 16;
    if constexpr (sizeof(Element) == 1) {
      // Of 16 neighbouring columns (a chunk of a row) a lane holds two of the first 8 and two of the second 8. Lanes 2q
      // and 2q + 1 exchange a pair: the even one has columns 4q ... of the first 8 then, the odd one of the second 8.
      const bool odd = lane % 2 != 0;
      const uint32_t bytes = odd ? 0x3276 : 0x5410;  // of (held, received)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int chunk = 0; chunk < 8; ++chunk) {
          const int j = 2 * chunk, i = 2 * half;
          const uint32_t held = arch::to_e4m3x2(value(j, i), value(j, i + 1)) |
                                uint32_t{arch::to_e4m3x2(value(j + 1, i), value(j + 1, i + 1))} << 16;
          const uint32_t received = arch::exchange(held, 1);
          const int row = first_row + lane / 4 + 8 * half;
          arch::store_shared(swizzled(buffer_, row, chunk) + lane % 2 * 8 + lane % 4 / 2 * 4,
                             __byte_perm(held, received, bytes));
        }
    } else if constexpr (sizeof(Element) == 2) {
      const int row = first_row + lane % 16;  // the lane addresses matrix lane / 8 of: rows 0-7, 8-15, twice
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        arch::Words4 v;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          v.word[i] = arch::to_bfloat16x2(value(j + i / 2, i % 2 * 2), value(j + i / 2, i % 2 * 2 + 1));
        arch::store_matrices(swizzled(buffer_, row, j + lane / 16), v);
      }
    } else {
      // Half a warp stores four rows at a time, 32 bytes of each. With columns j in even rows and j + 2 (mod 4) in odd
      // ones these are 128 bytes in all the banks.
      const bool odd = lane / 4 % 2 != 0;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = first_row + lane / 4 + 8 * half, column = (odd ? j ^ 2 : j) * 8 + lane % 4 * 2;
          const uint32_t address = swizzled(buffer_, row, column / 4) + column % 4 * 4;
          arch::store_shared(address, odd ? value(j ^ 2, 2 * half) : value(j, 2 * half),
                             odd ? value(j ^ 2, 2 * half + 1) : value(j, 2 * half + 1));
        }
    }
  }

  uint32_t buffer_, other_;
  const uint32_t named_barrier_;
  const int thread_;
};

}  // namespace hunyuan_kernels::tile
