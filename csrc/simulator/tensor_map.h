// The simulator's own 128-byte tensor map and the address arithmetic of tiled bulk copies.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace hunyuan_kernels::simulator {

enum class TensorDataType : uint8_t { U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, F32Ftz, TF32, TF32Ftz };
uint32_t size_of(TensorDataType t);

// Arguments of cuTensorMapEncodeTiled, with its numbering of types, interleaves, swizzles and fills.
struct TensorMapDescription {
  uint32_t type = 0;
  uint32_t rank = 0;
  uint64_t address = 0;
  const uint64_t* dims = nullptr;             // [rank], innermost first
  const uint64_t* strides = nullptr;          // [rank - 1], bytes, of dimensions 1..rank-1
  const uint32_t* box = nullptr;              // [rank]
  const uint32_t* element_strides = nullptr;  // [rank]
  uint32_t interleave = 0;                    // 0: none
  uint32_t swizzle = 0;                       // 0: none, 1: 32, 2: 64, 3: 128 bytes
  uint32_t l2_promotion = 0;                  // no effect here
  uint32_t oob_fill = 0;                      // 0: zeros, 1: NaN
};

struct alignas(64) TensorMap {
  static constexpr uint64_t kMagic = 0x50414d4f534e5450ull;
  uint64_t magic = kMagic;
  uint64_t address = 0;
  uint64_t dims[5] = {};
  uint64_t strides[4] = {};  // bytes, of dimensions 1..rank-1
  uint16_t box[5] = {};
  uint8_t element_strides[5] = {1, 1, 1, 1, 1};
  uint8_t type = 0, rank = 0, swizzle = 0 /* span in units of 16 bytes, 0 none */, interleave = 0, nan_fill = 0;
  uint8_t reserved[10] = {};

  // The checks of cuTensorMapEncodeTiled in its terms (cuda.h 13.0). Raises SimError for what the driver would refuse.
  static TensorMap encode(const TensorMapDescription& description);

  std::string problem() const;  // which of the driver's rules the map breaks; empty when none

  uint32_t element_bytes() const { return size_of((TensorDataType)type); }
  uint32_t swizzle_span() const { return swizzle * 16; }
  uint32_t box_bytes() const;  // bytes counted by the mbarrier transaction
  uint32_t row_bytes() const { return box[0] * element_bytes(); }
  uint32_t row_pitch() const;  // distance of inner rows in shared memory
  uint32_t rows() const;       // product of the outer box dimensions
  uint32_t shared_bytes() const { return rows() * row_pitch(); }
};
static_assert(sizeof(TensorMap) == 128);

inline uint32_t swizzle_address(uint32_t address, uint32_t span) {
  const uint32_t mask = span == 128 ? 7 : span == 64 ? 3 : span == 32 ? 1 : 0;
  return address ^ (((address >> 7) & mask) << 4);
}

}  // namespace hunyuan_kernels::simulator
