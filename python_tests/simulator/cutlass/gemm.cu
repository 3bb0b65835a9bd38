// Kernels of CUTLASS 3.x by its collective builder, launched by its own host code: D = A B^T, A [M, K], B [N, K],
// D [M, N] bf16. Nothing of CUTLASS is changed; what it calls of the CUDA runtime is in runtime.cpp.
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

namespace {

using namespace cute;

template <typename Element, typename Mainloop, typename Epilogue, typename Tile, typename Cluster>
struct Gemm {
  using Output = cutlass::bfloat16_t;
  static constexpr int kAlignment = 16 / sizeof(Element);
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, cutlass::layout::RowMajor, 8, Output,
      cutlass::layout::RowMajor, 8, Epilogue>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, kAlignment, Element,
      cutlass::layout::ColumnMajor, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue>;
  using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static cutlass::Status run(int m, int n, int k, const void* a, const void* b, void* d, int sms) {
    typename Kernel::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k, 1}};
    arguments.mainloop.ptr_A = static_cast<const Element*>(a);
    arguments.mainloop.dA = {k, _1{}, 0};
    arguments.mainloop.ptr_B = static_cast<const Element*>(b);
    arguments.mainloop.dB = {k, _1{}, 0};
    arguments.epilogue.thread.alpha = 1.0f;
    arguments.epilogue.thread.beta = 0.0f;
    arguments.epilogue.ptr_D = static_cast<Output*>(d);
    arguments.epilogue.dD = {n, _1{}, 0};
    arguments.hw_info = {0, sms};
    Adapter gemm;
    if (Adapter::get_workspace_size(arguments) != 0) return cutlass::Status::kErrorWorkspaceNull;
    if (auto status = gemm.can_implement(arguments); status != cutlass::Status::kSuccess) return status;
    if (auto status = gemm.initialize(arguments); status != cutlass::Status::kSuccess) return status;
    return gemm.run();
  }
};

using PingpongSchedule = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using CooperativeSchedule = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using PingpongEpilogue = cutlass::epilogue::TmaWarpSpecialized;
using CooperativeEpilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
using Bf16 = cutlass::bfloat16_t;
using E4m3 = cutlass::float_e4m3_t;

}  // namespace

// Returns CUTLASS's status: 0 is success.
extern "C" int run_gemm(const char* kernel, int m, int n, int k, const void* a, const void* b, void* d, int sms) {
  const std::string name = kernel;
  auto run = [&]<typename G>(G) { return static_cast<int>(G::run(m, n, k, a, b, d, sms)); };
  if (name == "bf16 pingpong")
    return run(Gemm<Bf16, PingpongSchedule, PingpongEpilogue, Shape<_64, _128, _64>, Shape<_1, _1, _1>>{});
  if (name == "bf16 cooperative")
    return run(Gemm<Bf16, CooperativeSchedule, CooperativeEpilogue, Shape<_128, _128, _64>, Shape<_2, _1, _1>>{});
  if (name == "e4m3 pingpong")
    return run(Gemm<E4m3, cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum, PingpongEpilogue,
                    Shape<_64, _128, _128>, Shape<_1, _1, _1>>{});
  if (name == "e4m3 cooperative")
    return run(Gemm<E4m3, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum, CooperativeEpilogue,
                    Shape<_128, _128, _128>, Shape<_1, _2, _1>>{});
  return -1;
}
