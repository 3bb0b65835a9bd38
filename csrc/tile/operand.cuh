// Operand tiles of wgmma in shared memory: rows of 128 bytes (64 bf16), as TMA's 128-byte swizzle leaves them, at
// multiples of 1024 bytes. Chunk c (16 bytes) of row r lies at 128 * r + 16 * (c ^ r % 8).
//
//   K-major    a row is a row of A (a column of B) at 64 neighbouring depths; the tile is one box, [lines][64].
//   MN-major   a row is a depth; 64 neighbouring lines make a box of 64 depths, and the tile is such boxes one
//              after the other: [lines / 64][64 depths][64 lines].
#pragma once
#include "arch/wgmma.cuh"

namespace hunyuan_kernels::tile {

constexpr int kDepth = 64;         // of a tile
constexpr int kProductDepth = 16;  // of one wgmma
constexpr int kSwizzledRowBytes = 128;
constexpr int kBoxBytes = 64 * kSwizzledRowBytes;  // of 64 rows

__device__ __forceinline__ uint32_t swizzled(uint32_t tile, int row, int chunk) {
  return tile + row * kSwizzledRowBytes + ((chunk ^ (row & 7)) << 4);
}

// wgmma's descriptor of a tile: address / 16 in bits 0-13, then two strides / 16 and the kind of swizzle (1: 128
// bytes). Bits 32-45: from 8 rows to the next 8. Bits 16-29: from a box to the next; unused when a tile is one box.
template <arch::Major kMajor>
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t tile) {
  constexpr uint64_t kBetweenBoxes = kMajor == arch::Major::mn ? kBoxBytes : 16;
  return uint64_t{1} << 62 | uint64_t{8 * kSwizzledRowBytes / 16} << 32 | (kBetweenBoxes / 16) << 16 |
         (tile & 0x3ffff) >> 4;  // in a cluster the bits above are the rank of the block
}

// What to add to a descriptor to go kProductDepth deeper. Swizzling works on addresses, so a step within a row is a
// step in the descriptor too.
template <arch::Major kMajor>
constexpr uint64_t kDepthStep =
    (kMajor == arch::Major::mn ? kProductDepth * kSwizzledRowBytes : kProductDepth * 2) / 16;

}  // namespace hunyuan_kernels::tile
