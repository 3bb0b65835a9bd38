#include "host/fp8_gemm.h"

#include "common/integer_math.h"
#include "host/tensor_map.h"

namespace hunyuan_kernels::host {
namespace {

constexpr int kTileRows = kernels::kGroupedGemmTileRows;

const char* name_of(const Fp8GemmProblem& p) {
  if (p.swiglu) return "grouped_swiglu_fp8";
  return p.grouped ? "grouped_gemm_fp8" : "fp8_gemm";
}

const char* out_name(const Fp8GemmProblem& p) {
  if (p.out == DType::float8_e4m3fn) return "e4m3";
  return p.out == DType::float32 ? "float32" : "bfloat16";
}

int64_t result_columns(const Fp8GemmProblem& p) { return p.swiglu ? p.columns / 2 : p.columns; }

}  // namespace

int64_t row_columns(const Fp8GemmProblem& p) { return padded_columns(result_columns(p), p.out); }

Fp8GemmPlan plan_fp8_gemm(const Fp8GemmProblem& problem, const driver::DeviceProperties& device) {
  Fp8GemmPlan plan;
  plan.problem = problem;
  for (int tile_columns : {256, 128}) plan.candidates.push_back({kTileRows, tile_columns});
  if (problem.swiglu) plan.candidates[1].illegal = "gate and up make tiles of 256 columns only";
  ProductShape shape(name_of(problem), problem, problem.swiglu ? 2 : 1);
  shape.rest = problem.grouped;
  shape.operands = DType::float8_e4m3fn;
  shape.tile_depth = kernels::kFp8GemmTileDepth;
  plan.take_best(shape, device.sms);
  if (plan.candidate().tiles == 0) return plan;
  driver::KernelLaunch launch = plan.launch_of(device.sms);
  launch.stem = "fp8_gemm";
  launch.kernel = std::string("fp8_gemm_") +
                  (problem.swiglu ? "swiglu" : "rows_" + std::to_string(plan.candidate().tile_columns)) + "_" +
                  out_name(problem) + (problem.in_blocks ? "_blocks" : "");
  launch.block.x = kernels::kGroupedGemmThreads;
  launch.shared_bytes = kernels::kGroupedGemmSharedBytes;
  plan.launches.push_back(launch);
  return plan;
}

std::string title(const Fp8GemmProblem& p) {
  std::string text = std::string(name_of(p)) + " " + extents_text({p.rows, p.depth}) + " x ";
  text += p.grouped ? extents_text({p.experts, p.columns, p.depth}) : extents_text({p.columns, p.depth});
  text += " -> " + extents_text({p.rows, result_columns(p)}) + " " + out_name(p);
  return text + (p.in_blocks ? ", scales of blocks" : ", scales of rows and columns");
}

void launch_fp8_gemm(const Fp8GemmPlan& plan, const Fp8GemmPointers& pointers, driver::Stream& stream) {
  if (plan.launches.empty()) return;
  const Fp8GemmProblem& p = plan.problem;
  const driver::DriverTable& table = stream.device.table();
  const int64_t row = row_columns(p);
  const uint32_t slice = static_cast<uint32_t>(128 / element_size(p.out));
  constexpr DType kE4m3 = DType::float8_e4m3fn;
  constexpr uint32_t kBox = 128;
  auto map = [&](const char* what, const TiledTensor& tensor) {
    return as_argument<kernels::TensorMap>(tensor_map(table, tensor, what));
  };
  kernels::Fp8GemmArguments arguments{};
  kernels::GroupedGemmArguments& product = arguments.product;
  product.a = map("a", {kE4m3, pointers.a, {p.depth, p.rows, 1}, {pointers.a_stride, 0}, {kBox, kBox, 1}, 2});
  product.b = map("b", {kE4m3,
                        pointers.b,
                        {p.depth, p.columns, p.experts},
                        {pointers.b_stride, pointers.b_expert_stride},
                        {kBox, kBox, 1}});
  product.out = map("out", {p.out, pointers.out, {row, 1, p.rows}, {row, row}, {slice, 1, 64}});
  product.expert_offsets = pointers.expert_offsets;
  product.out_data = static_cast<char*>(pointers.out);
  product.experts = static_cast<int32_t>(p.grouped ? p.experts : 0);
  product.rows = static_cast<int32_t>(p.rows);
  product.columns = static_cast<int32_t>(result_columns(p));
  product.row_columns = static_cast<int32_t>(row);
  product.depth = static_cast<int32_t>(p.depth);
  product.panel_tiles = plan.panel_tiles;
  arguments.a_scale = pointers.a_scale;
  arguments.b_scale = pointers.b_scale;
  arguments.out_scale = pointers.out_scale;
  void* parameters[] = {&arguments};
  stream.launch(plan.launches[0], parameters);
}

}  // namespace hunyuan_kernels::host
