// Weights into the order in which gemm_packed.inl reads them: panel[line][column] is word `line` of row `column`, for
// 16 rows. Words of e4m3 hold four k of one column; of each four columns, their 16 bytes are stored as
//
//   [k / 2][column][k % 2]
//
// so that one interleaving of bytes makes two registers of pairs of bf16 from the tables' halves.

void prepack_panel(const void* rows, int64_t stride, int64_t row_bytes, DType dtype, void* panel_) {
  char* panel = static_cast<char*>(panel_);
  const int64_t words = row_bytes / 4;
  for (int64_t word = 0; word < words; word += kFloats) {
    const int here = static_cast<int>(minimum(kFloats, words - word));
    for (int column = 0; column < kPackedColumns; column += kFloats) {
      const char* from = static_cast<const char*>(rows) + column * stride + word * 4;
      Words w[kFloats] = {};
      HK_UNROLL for (int i = 0; i < kFloats; ++i, from += stride) {
        if (here == kFloats)
          w[i] = load_as<Words>(from);
        else
          __builtin_memcpy(&w[i], from, here * 4);
      }
      transpose(w);
      for (int i = 0; i < here; ++i)
        store_as(panel + (word + i) * kPackedLine + column * 4,
                 dtype == DType::float8_e4m3fn ? e4m3_by_pair(w[i], LaneNumbersFrom<4 * kFloats>::All{}) : w[i]);
    }
  }
}

constexpr PrepackKernels prepack_kernels = {prepack_panel};
