#include "host/grouped_gemm.h"

#include <cmath>
#include <utility>

#include "common/check.h"
#include "common/integer_math.h"
#include "host/matrix_tiles.h"
#include "host/tensor_map.h"
#include "kernels/grouped_gemm_arguments.h"

namespace hunyuan_kernels::host {
namespace {

using Form = GroupedGemmForm;

constexpr int64_t kTileDepth = kernels::kGroupedGemmTileDepth;

// The model of the GPU: what the H100's data sheet says per clock of 1.755 GHz, not measured. An SM has 4 tensor cores
// x 512 bf16 multiply-adds, and 64 bytes from L2; all of them share 3.35 TB/s.
constexpr double kFlopsPerClock = 4096, kBytesPerClock = 64, kMemoryBytesPerClock = 3.35e12 / 1.755e9;
// Clocks of an addition across a cluster: two rounds of barriers and remote reads, about 1 us. A guess until measured.
constexpr double kClusterSumClocks = 2000;

bool is_swiglu(Form form) { return form == Form::swiglu || form == Form::swiglu_preactivation; }

// Columns of the result as the kernel counts them.
int64_t result_columns(const GroupedGemmProblem& p) {
  if (p.form == Form::weight_gradient) return p.depth;
  return is_swiglu(p.form) ? p.columns / 2 : p.columns;
}

std::string why_illegal(const GroupedGemmProblem& p, const GroupedGemmCandidate& c) {
  const std::string name = name_of(p.form);
  if (c.cluster == 0)
    return p.form != Form::rows && c.tile_columns != 256 ? name + " has tiles of 256 columns only" : "";
  if (p.form == Form::weight_gradient) return name + " has no kernels for few rows";
  // Fewer k-blocks than stages: nothing to divide.
  return c.cluster > 1 && p.depth < c.cluster * 4 * kTileDepth ? "the depth is too small to be divided" : "";
}

// Clusters that the GPU holds at a time. A cluster lies within one GPC, and those of the H100 have 16 or 18 SMs: with 4
// or 8 blocks two SMs of 18 are left over. More clusters than fit would make a second wave of a persistent kernel.
int64_t resident_clusters(int64_t sms, int64_t cluster) {
  return cluster <= 2 || sms < 16 ? maximum(sms / cluster, 1) : sms / 16 * (16 / cluster);
}

void estimate(const GroupedGemmProblem& p, int64_t sms, GroupedGemmCandidate& c) {
  c.illegal = why_illegal(p, c);
  if (!c.illegal.empty()) return;
  const bool gradient = p.form == Form::weight_gradient;
  const int64_t clusters = maximum(c.cluster, 1);
  const int64_t across = ceil_div(result_columns(p), is_swiglu(p.form) ? c.tile_columns / 2 : c.tile_columns);
  const int64_t gradient_tiles = p.experts * ceil_div(p.columns, c.tile_rows);
  c.tiles = across * (gradient ? gradient_tiles : most_row_tiles(p.rows, p.experts + 1, c.tile_rows));  // and the rest
  c.likely_tiles = across * (gradient ? gradient_tiles : likely_row_tiles(p.rows, p.experts, c.tile_rows));
  c.waves = ceil_div(c.likely_tiles, resident_clusters(sms, clusters));
  const int64_t depth = gradient ? ceil_div(p.rows, maximum(p.experts, 1)) : p.depth;
  const int64_t blocks = ceil_div(depth, kTileDepth);
  const double block_flops = 2.0 * c.tile_rows * c.tile_columns * kTileDepth;
  const double block_bytes = 2.0 * (c.tile_rows + c.tile_columns) * kTileDepth;
  c.flops = static_cast<double>(c.likely_tiles * blocks) * block_flops;
  c.bytes = static_cast<double>(c.likely_tiles * blocks) * block_bytes;
  const double block_clocks = std::fmax(block_flops / kFlopsPerClock, block_bytes / kBytesPerClock);
  // A block does not multiply while it stores; what it stores passes through L2 as well.
  double end_clocks = static_cast<double>(c.tile_rows * c.tile_columns * element_size(p.out)) / kBytesPerClock;
  if (c.cluster > 1) end_clocks += kClusterSumClocks;
  c.sm_clocks =
      static_cast<double>(c.waves) * (static_cast<double>(ceil_div(blocks, clusters)) * block_clocks + end_clocks);
  const double weights = gradient ? 0 : 2.0 * static_cast<double>(minimum(p.rows, p.experts) * p.columns * p.depth);
  c.memory_clocks = weights / kMemoryBytesPerClock;
}

std::string kernel_name(const GroupedGemmPlan& plan) {
  const GroupedGemmProblem& p = plan.problem;
  const std::string out = p.out == DType::float32 ? "_float32" : "_bfloat16";
  const std::string across = p.across ? "_across" : "";
  const GroupedGemmCandidate& c = plan.candidates[plan.taken];
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

void check_extents(const GroupedGemmProblem& p, const GroupedGemmPlan& plan) {
  const char* op = name_of(p.form);
  auto limit = [&](const char* what, int64_t value) {
    check(value <= kMaxExtent, op, what, "is ", value, "; on a GPU at most ", kMaxExtent, " are supported");
  };
  limit("number of rows", p.rows);
  limit("number of columns", p.columns);
  limit("depth", p.depth);
  limit("number of experts", p.experts);
  for (const GroupedGemmCandidate& c : plan.candidates) limit("number of tiles", c.tiles);
}

}  // namespace

int64_t row_columns(const GroupedGemmProblem& p) {
  return round_up(result_columns(p), kTensorMapAlignment / element_size(p.out));
}

const char* name_of(Form form) {
  switch (form) {
    case Form::rows: return "grouped_gemm";
    case Form::swiglu: return "grouped_swiglu";
    case Form::swiglu_preactivation: return "grouped_swiglu_preactivation";
    case Form::weight_gradient: return "grouped_gemm_wgrad";
  }
  return "";
}

GroupedGemmPlan plan_grouped_gemm(const GroupedGemmProblem& problem, const driver::DeviceProperties& device) {
  GroupedGemmPlan plan;
  plan.problem = problem;
  for (int tile_columns : {256, 128}) plan.candidates.push_back({128, tile_columns});
  const int parts = is_swiglu(problem.form) ? 2 : 1;
  for (int tokens : {16, 64})
    for (int cluster : {1, 2, 4, 8}) plan.candidates.push_back({tokens, parts * kernels::kFewRowsWeights, cluster});
  for (GroupedGemmCandidate& c : plan.candidates) estimate(problem, device.sms, c);
  check_extents(problem, plan);
  // Where memory decides, the SMs that have least to do leave it the most time.
  auto cost = [](const GroupedGemmCandidate& c) { return std::pair(c.clocks(), c.sm_clocks); };
  for (size_t i = 1; i < plan.candidates.size(); ++i)
    if (plan.candidates[i].illegal.empty() && cost(plan.candidates[i]) < cost(plan.candidates[plan.taken]))
      plan.taken = i;
  const GroupedGemmCandidate& c = plan.candidates[plan.taken];
  plan.panel_tiles = panel_height(c.tile_rows, c.tile_columns, device.sms);
  if (c.tiles == 0) return plan;
  driver::KernelLaunch launch;
  launch.stem = c.cluster ? "grouped_gemm_few_rows" : "grouped_gemm";
  launch.kernel = kernel_name(plan);
  launch.block.x = kernels::kGroupedGemmThreads;
  launch.shared_bytes =
      c.cluster ? kernels::few_rows_shared_bytes(c.tile_rows, parts) : kernels::kGroupedGemmSharedBytes;
  const int64_t cluster = maximum(c.cluster, 1);
  launch.grid.x = static_cast<uint32_t>(cluster * minimum(resident_clusters(device.sms, cluster), c.tiles));
  launch.cluster.x = static_cast<uint32_t>(cluster);
  plan.launches.push_back(launch);
  return plan;
}

std::string GroupedGemmPlan::text() const {
  const GroupedGemmProblem& p = problem;
  std::string text = std::string(name_of(p.form)) + " ";
  if (p.form == Form::weight_gradient)
    text += extents_text({p.rows, p.columns}) + "^T x " + extents_text({p.rows, p.depth}) + " -> " +
            extents_text({p.experts, p.columns, p.depth});
  else
    text += extents_text({p.rows, p.depth}) + " x " + extents_text({p.experts, p.columns, p.depth}) +
            (p.across ? " across" : "") + " -> " + extents_text({p.rows, result_columns(p)});
  text += p.out == DType::float32 ? " float32" : " bfloat16";
  for (size_t i = 0; i < candidates.size(); ++i) {
    const GroupedGemmCandidate& c = candidates[i];
    text += "\n  tile " + std::to_string(c.tile_rows) + " x " + std::to_string(c.tile_columns) + " x " +
            std::to_string(kTileDepth);
    if (c.cluster) text += ", depth over " + std::to_string(c.cluster);
    if (!c.illegal.empty()) {
      text += ": not possible: " + c.illegal;
      continue;
    }
    text += ": at most " + std::to_string(c.tiles) + " tiles; groups of equal size: " + std::to_string(c.likely_tiles) +
            " tiles, " + std::to_string(c.waves) + " waves, " + short_number(c.flops) + " flops, " +
            short_number(c.bytes) + " bytes loaded, " + short_number(c.sm_clocks) + " clocks, memory " +
            short_number(c.memory_clocks);
    if (i != taken) continue;
    text += " <- taken";
    if (!c.cluster) text += ", panels of " + std::to_string(panel_tiles) + " tiles";
  }
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_grouped_gemm(const GroupedGemmPlan& plan, const GroupedGemmPointers& pointers, driver::Stream& stream) {
  if (plan.launches.empty()) return;
  const GroupedGemmProblem& p = plan.problem;
  const driver::DriverTable& table = stream.device.table();
  const bool gradient = p.form == Form::weight_gradient;
  const int64_t columns = result_columns(p);
  const uint32_t slice = static_cast<uint32_t>(128 / element_size(p.out));
  constexpr DType kBf16 = DType::bfloat16;
  const auto tile_rows = static_cast<uint32_t>(plan.candidates[plan.taken].tile_rows);

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
    arguments.a = map("a", {kBf16, pointers.a, {p.depth, p.rows, 1}, {pointers.a_stride, 0}, {64, tile_rows, 1}, 2});
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
  arguments.accumulate = pointers.accumulate;
  void* parameters[] = {&arguments};
  stream.launch(plan.launches[0], parameters);
}

}  // namespace hunyuan_kernels::host
