// Which elements of a matrix share a scale. Host side, no torch.
#pragma once
#include <cstdint>

namespace hunyuan_kernels {

enum class QuantizeRecipe { tensor, row, block_1x128, block_128x128 };

static constexpr const char* kQuantizeRecipeNames[] = {"tensor", "row", "block_1x128", "block_128x128"};
static constexpr int64_t kScaleBlock = 128;  // edge of the block recipes

static constexpr const char* name_of(QuantizeRecipe recipe) { return kQuantizeRecipeNames[static_cast<int>(recipe)]; }

}  // namespace hunyuan_kernels
