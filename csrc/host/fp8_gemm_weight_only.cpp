#include "host/fp8_gemm_weight_only.h"

#include "common/integer_math.h"
#include "host/tensor_map.h"

namespace hunyuan_kernels::host {

const int64_t kWeightOnlyPackedColumns = kernels::kFp8WeightOnlyPackedLines;
const int64_t kWeightOnlyPackedDepth = kernels::kFp8WeightOnlyPackedDepth;

namespace {

constexpr int kTileDepth = kernels::kFp8GemmTileDepth;

const char* name_of(const Fp8WeightOnlyProblem& p) {
  if (p.swiglu) return "grouped_swiglu_fp8";
  return p.grouped ? "grouped_gemm_fp8" : "fp8_linear";
}

int parts_of(const Fp8WeightOnlyProblem& p) { return p.swiglu ? 2 : 1; }

}  // namespace

Fp8WeightOnlyPlan plan_fp8_weight_only(const Fp8WeightOnlyProblem& problem, const driver::DeviceProperties& device) {
  Fp8WeightOnlyPlan plan;
  plan.problem = problem;
  const int parts = parts_of(problem);
  for (int tokens : {16, 64})
    for (int cluster : {1, 2, 4, 8}) {
      plan.candidates.push_back({tokens, parts * kernels::kFp8WeightOnlyLines, cluster});
      // Fewer k-blocks than stages: nothing to divide.
      if (cluster > 1 && problem.depth < cluster * 4 * kTileDepth)
        plan.candidates.back().illegal = "the depth is too small to be divided";
    }
  ProductShape shape(name_of(problem), problem, parts);
  shape.rest = problem.grouped;
  shape.e4m3_weights = true;
  shape.tile_depth = kTileDepth;
  if (problem.packed)
    check_extent(shape.op, "number of panels of 16 rows of weights",
                 problem.experts * ceil_div(problem.columns, kWeightOnlyPackedColumns));
  plan.take_best(shape, device.sms);
  const ProductCandidate& c = plan.candidate();
  if (c.tiles == 0) return plan;
  driver::KernelLaunch launch = plan.launch_of(device.sms);
  launch.stem = "fp8_gemm_weight_only";
  launch.kernel = problem.swiglu ? "fp8_gemm_weight_only_swiglu_" : "fp8_gemm_weight_only_";
  launch.kernel += std::to_string(c.tile_rows);
  if (problem.packed) launch.kernel += "_packed";
  if (problem.in_blocks) launch.kernel += "_blocks";
  launch.block.x = kernels::kGroupedGemmThreads;
  launch.shared_bytes = kernels::fp8_weight_only_shared_bytes(c.tile_rows, parts);
  plan.launches.push_back(launch);
  return plan;
}

std::string title(const Fp8WeightOnlyProblem& p) {
  std::string text = std::string(name_of(p)) + " " + extents_text({p.rows, p.depth}) + " bfloat16 x ";
  text += p.grouped ? extents_text({p.experts, p.columns, p.depth}) : extents_text({p.columns, p.depth});
  text += p.packed ? " float8_e4m3fn packed -> " : " float8_e4m3fn -> ";
  text += extents_text({p.rows, p.columns / parts_of(p)}) + (p.out == DType::float32 ? " float32" : " bfloat16");
  return text + (p.in_blocks ? ", scales of blocks" : ", scales of columns");
}

void launch_fp8_weight_only(const Fp8WeightOnlyPlan& plan, const Fp8WeightOnlyPointers& pointers,
                            driver::Stream& stream) {
  if (plan.launches.empty()) return;
  const Fp8WeightOnlyProblem& p = plan.problem;
  const driver::DriverTable& table = stream.device.table();
  const int64_t columns = p.columns / parts_of(p);
  constexpr DType kE4m3 = DType::float8_e4m3fn;
  const auto tokens = static_cast<uint32_t>(plan.candidate().tile_rows);
  auto map = [&](const char* what, const TiledTensor& tensor) {
    return as_argument<kernels::TensorMap>(tensor_map(table, tensor, what));
  };
  kernels::Fp8WeightOnlyArguments arguments{};
  kernels::GroupedGemmArguments& product = arguments.product;
  product.a = map("a", {DType::bfloat16, pointers.a, {p.depth, p.rows, 1}, {pointers.a_stride, 0}, {64, tokens, 1}, 2});
  if (p.packed) {
    constexpr int64_t kBox = kernels::kFp8WeightOnlyPackedBox, kLines = kernels::kFp8WeightOnlyPackedLines;
    TiledTensor panels{kE4m3,
                       pointers.b,
                       {kBox, p.depth * kLines / kBox, p.experts * p.columns / kLines},
                       {kBox, p.depth * kLines},
                       {kBox, kTileDepth * kLines / kBox, kernels::kFp8WeightOnlyLines / kLines}};
    panels.swizzled = false;
    product.b = map("b", panels);
  } else {
    product.b = map("b", {kE4m3,
                          pointers.b,
                          {p.depth, p.columns, p.experts},
                          {pointers.b_stride, pointers.b_expert_stride},
                          {kTileDepth, kernels::kFp8WeightOnlyLines, 1}});
  }
  product.expert_offsets = pointers.expert_offsets;
  product.out_data = static_cast<char*>(pointers.out);
  product.experts = static_cast<int32_t>(p.grouped ? p.experts : 0);
  product.rows = static_cast<int32_t>(p.rows);
  product.columns = product.row_columns = static_cast<int32_t>(columns);
  product.depth = static_cast<int32_t>(p.depth);
  arguments.b_scale = pointers.b_scale;
  arguments.float32_out = p.out == DType::float32;
  void* parameters[] = {&arguments};
  stream.launch(plan.launches[0], parameters);
}

}  // namespace hunyuan_kernels::host
