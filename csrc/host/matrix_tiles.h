// How plans of grouped products count tiles (tile/matrix_tiles.cuh walks over them) and say what they found.
#pragma once
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <string>

#include "common/integer_math.h"

namespace hunyuan_kernels::host {

// The kernels count rows, columns and tiles in 32 bits and go past the last one by less than a tile.
constexpr int64_t kMaxExtent = std::numeric_limits<int32_t>::max() - 512;

// The most tiles of this many rows that so many groups with so many rows in all can have.
inline int64_t most_row_tiles(int64_t rows, int64_t groups, int64_t tile_rows) {
  const int64_t used = minimum(rows, groups);  // each with one row
  return used + (rows - used) / tile_rows;
}
inline int64_t likely_row_tiles(int64_t rows, int64_t groups, int64_t tile_rows) {
  const int64_t used = minimum(rows, groups);
  return used ? used * ceil_div(ceil_div(rows, used), tile_rows) : 0;
}

// Tiles below each other that share the SMs with those of the next columns: h rows of tiles and sms / h columns of them
// load the fewest different bytes when h * tile_rows = (sms / h) * tile_columns. A power of two below that.
inline int panel_height(int64_t tile_rows, int64_t tile_columns, int64_t sms) {
  int height = 1;
  while (4 * height * height * tile_rows <= sms * tile_columns) height *= 2;
  return height;
}

inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

inline std::string extents_text(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (int64_t size : sizes) {
    text += text.empty() ? "[" : ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

}  // namespace hunyuan_kernels::host
