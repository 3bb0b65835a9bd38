// From the number of a tile to its expert: the tiles of all experts, one expert after the other, found from
// expert_offsets without any help of the host.
//
// A warp looks at 32 groups at a time, one per lane, with prefix sums of their tiles, and moves on by 32 when the tile
// lies beyond. Tiles are asked for in increasing order, so that this costs one load per 32 groups and kernel.
//
// Offsets are data. Group e ends at min(rows, max(0, offsets[1], ..., offsets[e + 1])) and starts where the one before
// ends, the first at 0: every row belongs to one group at most, whatever the offsets are.
#pragma once
#include "arch/warp.cuh"

namespace hunyuan_kernels::tile {

struct GroupOfTile {
  int32_t group, begin, end;  // rows begin .. end - 1
  uint32_t tile;              // within the group
};

class ExpertTiles {
 public:
  // With `tail`, the rows that belong to no expert are one more group, number `experts`.
  __device__ ExpertTiles(const int32_t* offsets, int32_t experts, int32_t rows, bool tail)
      : offsets_(offsets), experts_(experts), rows_(rows), groups_(experts + tail) {}

  // tiles_of(rows of a group) is the number of its tiles. False when there are fewer tiles than `tile` + 1. For a whole
  // warp, with the same `tile` in all lanes.
  template <typename TilesOf>
  __device__ __forceinline__ bool find(uint32_t tile, TilesOf&& tiles_of, GroupOfTile& found) {
    for (;; first_group_ += 32) {
      if (first_group_ != loaded_) load(tiles_of);
      if (const uint32_t lanes = arch::ballot(tile < tiles_end_)) {
        const uint32_t lane = __ffs(lanes) - 1;
        found.group = first_group_ + static_cast<int32_t>(lane);
        found.begin = static_cast<int32_t>(arch::lane_value(begin_, lane));
        found.end = static_cast<int32_t>(arch::lane_value(end_, lane));
        found.tile = tile - arch::lane_value(tiles_begin_, lane);
        return true;
      }
      if (first_group_ + 32 >= groups_) return false;
    }
  }

 private:
  template <typename TilesOf>
  __device__ __forceinline__ void load(TilesOf&& tiles_of) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), group = first_group_ + lane;
    const bool next = loaded_ >= 0;  // the lanes before these are those of the window before
    const uint32_t rows_before = next ? arch::lane_value(end_, 31) : 0;
    const uint32_t tiles_before = next ? arch::lane_value(tiles_end_, 31) : 0;
    const int32_t offset = group < experts_ ? offsets_[group + 1] : group < groups_ ? rows_ : 0;
    end_ = max(rows_before, static_cast<uint32_t>(min(max(offset, 0), rows_)));
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) end_ = max(end_, arch::shift_up(end_, distance));
    begin_ = arch::shift_up(end_, 1);
    if (lane == 0) begin_ = rows_before;
    const uint32_t tiles = group < groups_ ? tiles_of(static_cast<int32_t>(end_ - begin_)) : 0;
    tiles_end_ = tiles;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = arch::shift_up(tiles_end_, distance);
      if (lane >= static_cast<int32_t>(distance)) tiles_end_ += other;
    }
    tiles_end_ += tiles_before;
    tiles_begin_ = tiles_end_ - tiles;
    loaded_ = first_group_;
  }

  const int32_t* offsets_;
  const int32_t experts_, rows_, groups_;
  int32_t first_group_ = 0, loaded_ = -1;
  uint32_t begin_ = 0, end_ = 0, tiles_begin_ = 0, tiles_end_ = 0;  // of this lane's group
};

}  // namespace hunyuan_kernels::tile
