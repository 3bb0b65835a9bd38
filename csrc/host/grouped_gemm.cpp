#include "host/grouped_gemm.h"

#include "common/integer_math.h"
#include "host/tensor_map.h"
#include "kernels/grouped_gemm_arguments.h"

namespace hunyuan_kernels::host {
namespace {

using Form = GroupedGemmForm;

constexpr int kTileDepth = kernels::kGroupedGemmTileDepth;

bool is_swiglu(Form form) { return form == Form::swiglu || form == Form::swiglu_preactivation; }

// Columns of the result as the kernel counts them.
int64_t result_columns(const GroupedGemmProblem& p) {
  if (p.form == Form::weight_gradient) return p.depth;
  return is_swiglu(p.form) ? p.columns / 2 : p.columns;
}

// Multicast has few kernels until it was measured.
std::string why_no_multicast(const GroupedGemmProblem& p, const ProductCandidate& c, int64_t sms) {
  const std::string name = name_of(p.form);
  if (p.form == Form::weight_gradient) return name + " has no kernels with multicast";
  if (c.tile_columns != 256) return "multicast has tiles of 256 columns only";
  if (p.out != DType::bfloat16) return "multicast has bfloat16 results only";
  if (is_swiglu(p.form) && p.across) return name + " with b across has no kernels with multicast";
  if (sms < 2) return "a cluster of two needs two SMs";
  return p.columns <= c.tile_columns ? "all columns are in one tile" : "";
}

std::string why_illegal(const GroupedGemmProblem& p, const ProductCandidate& c, int64_t sms) {
  const std::string name = name_of(p.form);
  if (c.multicast > 1) return why_no_multicast(p, c, sms);
  if (c.cluster == 0)
    return p.form != Form::rows && c.tile_columns != 256 ? name + " has tiles of 256 columns only" : "";
  if (p.form == Form::weight_gradient) return name + " has no kernels for few rows";
  // Fewer k-blocks than stages: nothing to divide.
  return c.cluster > 1 && p.depth < c.cluster * 4 * kTileDepth ? "the depth is too small to be divided" : "";
}

std::string kernel_name(const GroupedGemmPlan& plan) {
  const GroupedGemmProblem& p = plan.problem;
  const std::string out = p.out == DType::float32 ? "_float32" : "_bfloat16";
  const ProductCandidate& c = plan.candidate();
  const std::string across = std::string(p.across ? "_across" : "") + (c.multicast > 1 ? "_multicast" : "");
  if (c.cluster) {
    const std::string tokens = std::to_string(c.tile_rows);
    return "grouped_gemm_few_rows_" + (is_swiglu(p.form) ? "swiglu_" + tokens : tokens + out) + across;
  }
  switch (p.form) {
    case Form::rows: return "grouped_gemm_rows_" + std::to_string(c.tile_columns) + out + across;
    case Form::swiglu: return "grouped_gemm_swiglu" + across;
    case Form::swiglu_preactivation: return "grouped_gemm_swiglu_preactivation" + across;
    case Form::weight_gradient: return "grouped_gemm_wgrad" + out;
  }
  return {};
}

}  // namespace

int64_t row_columns(const GroupedGemmProblem& p) { return padded_columns(result_columns(p), p.out); }

const char* name_of(Form form) {
  switch (form) {
    case Form::rows: return "grouped_gemm";
    case Form::swiglu: return "grouped_swiglu";
    case Form::swiglu_preactivation: return "grouped_swiglu_preactivation";
    case Form::weight_gradient: return "grouped_gemm_wgrad";
  }
  return "";
}

GroupedGemmPlan plan_grouped_gemm(const GroupedGemmProblem& problem, const driver::DeviceProperties& device,
                                  const ProductOptions& options) {
  GroupedGemmPlan plan;
  plan.problem = problem;
  if (options.multicast)
    for (int tile_columns : {256, 128}) plan.candidates.push_back({128, tile_columns, 0, 2});
  for (int tile_columns : {256, 128}) plan.candidates.push_back({128, tile_columns});
  const int parts = is_swiglu(problem.form) ? 2 : 1;
  for (int tokens : {16, 64})
    for (int cluster : {1, 2, 4, 8}) plan.candidates.push_back({tokens, parts * kernels::kFewRowsWeights, cluster});
  bool multicast = false;
  for (ProductCandidate& c : plan.candidates) {
    // The model sees no gain in sharing rows: what was asked for is taken where it is possible.
    c.illegal = multicast ? "multicast was asked for" : why_illegal(problem, c, device.sms);
    multicast |= c.multicast > 1 && c.illegal.empty();
  }
  ProductShape shape(name_of(problem.form), problem, parts);
  shape.weight_gradient = problem.form == Form::weight_gradient;
  shape.rest = !shape.weight_gradient;
  shape.lines = problem.columns;
  shape.columns = result_columns(problem);
  plan.take_best(shape, device.sms, options);
  const ProductCandidate& c = plan.candidate();
  if (c.tiles == 0) return plan;
  driver::KernelLaunch launch = plan.launch_of(device.sms);
  launch.stem = c.cluster ? "grouped_gemm_few_rows" : "grouped_gemm";
  launch.kernel = kernel_name(plan);
  launch.block.x = kernels::kGroupedGemmThreads;
  launch.shared_bytes =
      c.cluster ? kernels::few_rows_shared_bytes(c.tile_rows, parts) : kernels::kGroupedGemmSharedBytes;
  plan.launches.push_back(launch);
  return plan;
}

std::string title(const GroupedGemmProblem& p) {
  std::string text = std::string(name_of(p.form)) + " ";
  if (p.form == Form::weight_gradient)
    text += extents_text({p.rows, p.columns}) + "^T x " + extents_text({p.rows, p.depth}) + " -> " +
            extents_text({p.experts, p.columns, p.depth});
  else
    text += extents_text({p.rows, p.depth}) + " x " + extents_text({p.experts, p.columns, p.depth}) +
            (p.across ? " across" : "") + " -> " + extents_text({p.rows, result_columns(p)});
  return text + (p.out == DType::float32 ? " float32" : " bfloat16");
}

void launch_grouped_gemm(const GroupedGemmPlan& plan, const GroupedGemmPointers& pointers, driver::Stream& stream) {
  if (plan.launches.empty()) return;
  const GroupedGemmProblem& p = plan.problem;
  const driver::DriverTable& table = stream.device.table();
  const bool gradient = p.form == Form::weight_gradient;
  const int64_t columns = result_columns(p);
  const uint32_t slice = static_cast<uint32_t>(128 / element_size(p.out));
  constexpr DType kBf16 = DType::bfloat16;
  // Of two blocks that share rows each loads half of them.
  const auto box_rows = static_cast<uint32_t>(plan.candidate().tile_rows / plan.candidate().multicast);

  kernels::GroupedGemmArguments arguments{};
  auto map = [&](const char* what, const TiledTensor& tensor) {
    return as_argument<kernels::TensorMap>(tensor_map(table, tensor, what));
  };
  if (gradient) {
    arguments.a = map("grad_out", {kBf16, pointers.a, {p.columns, p.rows, 1}, {pointers.a_stride, 0}, {64, 64, 1}, 2});
    arguments.b = map(
        "a", {kBf16, pointers.b, {p.depth, p.rows, 1}, {pointers.b_stride, pointers.b_stride * p.rows}, {64, 64, 1}});
    arguments.out = map("grad_b", {p.out,
                                   pointers.out,
                                   {p.depth, p.columns, p.experts},
                                   {pointers.out_stride, pointers.out_expert_stride},
                                   {slice, 64, 1}});
  } else {
    arguments.a = map("a", {kBf16, pointers.a, {p.depth, p.rows, 1}, {pointers.a_stride, 0}, {64, box_rows, 1}, 2});
    const std::array<int64_t, 2> strides = {pointers.b_stride, pointers.b_expert_stride};
    arguments.b =
        map("b", p.across ? TiledTensor{kBf16, pointers.b, {p.columns, p.depth, p.experts}, strides, {64, 64, 1}}
                          : TiledTensor{kBf16, pointers.b, {p.depth, p.columns, p.experts}, strides, {64, 128, 1}});
    const int64_t row = row_columns(p);
    arguments.row_columns = static_cast<int32_t>(row);
    arguments.out = map("out", {p.out, pointers.out, {row, 1, p.rows}, {row, row}, {slice, 1, 64}});
    if (p.form == Form::swiglu_preactivation)
      arguments.preactivation =
          map("preactivation", {p.out, pointers.preactivation, {row, 2, p.rows}, {row, 2 * row}, {slice, 1, 64}});
  }
  arguments.expert_offsets = pointers.expert_offsets;
  arguments.out_data = static_cast<char*>(pointers.out);
  arguments.preactivation_data = static_cast<char*>(pointers.preactivation);
  arguments.experts = static_cast<int32_t>(p.experts);
  arguments.rows = static_cast<int32_t>(p.rows);
  arguments.lines = static_cast<int32_t>(p.columns);
  arguments.columns = static_cast<int32_t>(columns);
  arguments.depth = static_cast<int32_t>(p.depth);
  arguments.panel_tiles = plan.panel_tiles;
  arguments.column_panels = plan.column_panels;
  arguments.accumulate = pointers.accumulate;
  void* parameters[] = {&arguments};
  stream.launch(plan.launches[0], parameters);
}

}  // namespace hunyuan_kernels::host
