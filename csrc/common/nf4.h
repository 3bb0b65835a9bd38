// NF4: 4-bit weights in blocks of 64 along k with one absmax each (Dettmers et al., arXiv 2305.14314, appendix E).
//
//   w[n][k] = value[code[n][k]] * absmax[n][k / 64] * scale[n],   absmax e4m3, scale fp32
//
// The 16 values are the published ones rounded to bf16 (by up to 2^-9 of themselves), so that bf16 dot products take
// them as they are. Weights are stored as the CPU kernels read them: for 16 rows and 64 of k a block of 528 bytes,
//
//   codes[8][16][2][4 nibbles]   of eight k: row n, then parity of k, then k / 2 from the lowest nibble on
//   absmax[16]                   e4m3
#pragma once
#include <cstdint>

namespace hunyuan_kernels {

constexpr int kNf4Depth = 64, kNf4Rows = 16, kNf4Codes = kNf4Depth * kNf4Rows / 2, kNf4Block = kNf4Codes + kNf4Rows;

// As bf16 bits.
constexpr uint16_t kNf4Values[16] = {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000,
                                     0x3da3, 0x3e25, 0x3e7c, 0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80};
constexpr int kNf4Zero = 7;  // the code of 0

}  // namespace hunyuan_kernels
