// Tables of CuTe's layout functions, computed on the host, as JSON in the file that the argument names.
//
//   operands       for each canonical shared memory layout of wgmma and each step of one instruction's depth: its
//   matrix
//                  descriptor for a tile at address 0, and the address of every element [line][depth]
//   accumulators   [thread][value] -> line + 64 * column
//   fragments      A in registers: [thread][value] -> line + 64 * depth
//   loads, stores  ldmatrix, stmatrix: [lane][16-bit value] -> 8 * (lane that gave the row's address) + place in the
//   row
#include <cstdint>
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <string>
#include <utility>

using namespace cute;
namespace gmma = SM90::GMMA;

namespace {

constexpr int kLines = 128;  // several atoms of every layout
alignas(1024) uint8_t memory[1 << 17];
FILE* out;

template <typename Values>
void print_array(int n, Values&& value) {
  fprintf(out, "[");
  for (int i = 0; i < n; ++i) fprintf(out, i ? ", %lld" : "%lld", static_cast<long long>(value(i)));
  fprintf(out, "]");
}

template <typename T, gmma::Major major, typename Atom>
void operand(const char* type, const char* swizzle) {
  constexpr int kDepth = 32 / sizeof(T), kTileDepth = 128 / sizeof(T);
  const auto layout = tile_to_shape(Atom{}, Shape<Int<kLines>, Int<kTileDepth>>{});
  const auto tile = make_tensor(make_smem_ptr(reinterpret_cast<T*>(memory)), layout);
  for (int step = 0; step < kTileDepth / kDepth; ++step) {
    const auto part = local_tile(tile, Shape<Int<kLines>, Int<kDepth>>{}, make_coord(0, step));
    gmma::DescriptorIterator iterator{gmma::make_gmma_desc<major>(part)};
    const int64_t start = reinterpret_cast<uint8_t*>(raw_pointer_cast(part.data())) - memory;
    fprintf(out, "{\"type\": \"%s\", \"major\": \"%s\", \"swizzle\": \"%s\", \"step\": %d, \"start\": %lld, ", type,
            major == gmma::Major::K ? "K" : "MN", swizzle, step, static_cast<long long>(start));
    fprintf(out, "\"descriptor\": %llu, \"addresses\": ", static_cast<unsigned long long>(iterator.desc_.desc_));
    print_array(kLines * kDepth,
                [&](int i) { return reinterpret_cast<uint8_t*>(&part(i / kDepth, i % kDepth)) - memory; });
    fprintf(out, "},\n");
  }
}

template <typename T>
void operands(const char* type) {
  operand<T, gmma::Major::K, gmma::Layout_K_INTER_Atom<T>>(type, "none");
  operand<T, gmma::Major::K, gmma::Layout_K_SW32_Atom<T>>(type, "32");
  operand<T, gmma::Major::K, gmma::Layout_K_SW64_Atom<T>>(type, "64");
  operand<T, gmma::Major::K, gmma::Layout_K_SW128_Atom<T>>(type, "128");
  if constexpr (sizeof(T) == 2) {  // the only operands that may be MN-major
    operand<T, gmma::Major::MN, gmma::Layout_MN_INTER_Atom<T>>(type, "none");
    operand<T, gmma::Major::MN, gmma::Layout_MN_SW32_Atom<T>>(type, "32");
    operand<T, gmma::Major::MN, gmma::Layout_MN_SW64_Atom<T>>(type, "64");
    operand<T, gmma::Major::MN, gmma::Layout_MN_SW128_Atom<T>>(type, "128");
  }
}

// A layout of (thread, value), written as [thread][value].
template <typename Layout>
void threads_and_values(const char* key, const Layout& layout) {
  constexpr int kValues = size<1>(Layout{});
  fprintf(out, "\"%s\": ", key);
  print_array(size<0>(layout) * kValues, [&](int i) { return layout(i / kValues, i % kValues); });
  fprintf(out, ",\n");
}

// Every N: 8, 16, ..., 256.
template <int... eighths>
void accumulators(std::integer_sequence<int, eighths...>) {
  (threads_and_values(std::to_string(8 * eighths + 8).c_str(), gmma::CLayout_64xN<8 * eighths + 8>{}), ...);
}

// Registers of a matrix move, whose layout counts bits: 128 for each row.
template <typename Layout>
void registers(const char* key, const Layout& layout) {
  constexpr int kValues = size<1>(Layout{}) / 16;
  fprintf(out, "\"%s\": ", key);
  print_array(32 * kValues, [&](int i) { return layout(i / kValues, i % kValues * 16) / 16; });
  fprintf(out, ",\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 || !(out = fopen(arguments[1], "w"))) return 2;
  fprintf(out, "{\"lines\": %d, \"operands\": [\n", kLines);
  operands<bfloat16_t>("bf16");
  operands<tfloat32_t>("tf32");
  operands<float_e4m3_t>("e4m3");
  operands<half_t>("f16");
  operands<float_e5m2_t>("e5m2");
  operands<int8_t>("s8");
  operands<uint8_t>("u8");
  fprintf(out, "null],\n\"accumulators\": {\n");
  accumulators(std::make_integer_sequence<int, 32>{});
  fprintf(out, "\"\": null},\n\"fragments\": {\n");
  threads_and_values("bf16", gmma::ALayout_64x16{});
  threads_and_values("tf32", gmma::ALayout_64x8{});
  threads_and_values("e4m3", gmma::ALayout_64x32{});
  fprintf(out, "\"\": null},\n\"loads\": {\n");
  registers("x1", Copy_Traits<SM75_U32x1_LDSM_N>::DstLayout{});
  registers("x2", Copy_Traits<SM75_U32x2_LDSM_N>::DstLayout{});
  registers("x4", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{});
  registers("x1.trans", Copy_Traits<SM75_U16x2_LDSM_T>::DstLayout{});
  registers("x2.trans", Copy_Traits<SM75_U16x4_LDSM_T>::DstLayout{});
  registers("x4.trans", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{});
  fprintf(out, "\"\": null},\n\"stores\": {\n");
  registers("x1", Copy_Traits<SM90_U32x1_STSM_N>::SrcLayout{});
  registers("x2", Copy_Traits<SM90_U32x2_STSM_N>::SrcLayout{});
  registers("x4", Copy_Traits<SM90_U32x4_STSM_N>::SrcLayout{});
  registers("x1.trans", Copy_Traits<SM90_U16x2_STSM_T>::SrcLayout{});
  registers("x2.trans", Copy_Traits<SM90_U16x4_STSM_T>::SrcLayout{});
  registers("x4.trans", Copy_Traits<SM90_U16x8_STSM_T>::SrcLayout{});
  fprintf(out, "\"\": null}}\n");
  return fclose(out);
}
