// Special registers: %tid, %ctaid, %clusterid, ...
#include "simulator/ops_data.h"

namespace hunyuan_kernels::simulator {

int find_special_register(const std::string& name) {
  static const char* names[] = {"%tid.x",
                                "%tid.y",
                                "%tid.z",
                                "%ntid.x",
                                "%ntid.y",
                                "%ntid.z",
                                "%ctaid.x",
                                "%ctaid.y",
                                "%ctaid.z",
                                "%nctaid.x",
                                "%nctaid.y",
                                "%nctaid.z",
                                "%laneid",
                                "%warpid",
                                "%nwarpid",
                                "%smid",
                                "%nsmid",
                                "%gridid",
                                "%clock",
                                "%clock64",
                                "%clock_hi",
                                "%globaltimer",
                                "%globaltimer_lo",
                                "%globaltimer_hi",
                                "%lanemask_eq",
                                "%lanemask_lt",
                                "%lanemask_le",
                                "%lanemask_gt",
                                "%lanemask_ge",
                                "%dynamic_smem_size",
                                "%total_smem_size",
                                "%aggr_smem_size",
                                "%clusterid.x",
                                "%clusterid.y",
                                "%clusterid.z",
                                "%nclusterid.x",
                                "%nclusterid.y",
                                "%nclusterid.z",
                                "%cluster_ctaid.x",
                                "%cluster_ctaid.y",
                                "%cluster_ctaid.z",
                                "%cluster_nctaid.x",
                                "%cluster_nctaid.y",
                                "%cluster_nctaid.z",
                                "%cluster_ctarank",
                                "%cluster_nctarank",
                                "%is_explicit_cluster",
                                "%reserved_smem_offset_begin",
                                "%reserved_smem_offset_end",
                                "%envreg0"};
  static_assert(sizeof(names) / sizeof(names[0]) == (int)SpecialRegister::Count);
  for (int i = 0; i < (int)SpecialRegister::Count; ++i)
    if (name == names[i]) return i;
  return -1;
}

uint64_t special_register(Warp& warp, SpecialRegister r, int lane) {
  using S = SpecialRegister;
  const Launch& launch = *warp.launch;
  const uint32_t thread = warp.index * kWarpSize + lane;
  auto component = [&](S first) { return (int)r - (int)first; };
  switch (r) {
    case S::TidX: return thread % launch.block[0];
    case S::TidY: return thread / launch.block[0] % launch.block[1];
    case S::TidZ: return thread / (launch.block[0] * launch.block[1]);
    case S::NtidX:
    case S::NtidY:
    case S::NtidZ: return launch.block[component(S::NtidX)];
    case S::CtaidX:
    case S::CtaidY:
    case S::CtaidZ: return warp.cta->id[component(S::CtaidX)];
    case S::NctaidX:
    case S::NctaidY:
    case S::NctaidZ: return launch.grid[component(S::NctaidX)];
    case S::LaneId: return lane;
    case S::WarpId: return warp.index;
    case S::NwarpId: return warp.cta->warps.size();
    case S::Smid: return warp.cta->smid;
    case S::Nsmid: return launch.options.num_sms;
    case S::GridId: return 1;
    case S::Clock:
    case S::GlobalTimerLo: return (uint32_t)launch.issued;
    case S::Clock64:
    case S::GlobalTimer: return launch.issued;
    case S::ClockHi:
    case S::GlobalTimerHi: return launch.issued >> 32;
    case S::LanemaskEq: return 1u << lane;
    case S::LanemaskLt: return (1u << lane) - 1;
    case S::LanemaskLe: return lane == 31 ? kFullMask : (2u << lane) - 1;
    case S::LanemaskGt: return lane == 31 ? 0 : ~((2u << lane) - 1);
    case S::LanemaskGe: return ~((1u << lane) - 1);
    case S::DynamicSmemSize: return launch.dynamic_shared_bytes;
    case S::TotalSmemSize:
    case S::AggrSmemSize: return launch.shared_bytes + kSharedReserved;
    case S::ClusterIdX:
    case S::ClusterIdY:
    case S::ClusterIdZ: return warp.cta->cluster->id[component(S::ClusterIdX)];
    case S::NclusterIdX:
    case S::NclusterIdY:
    case S::NclusterIdZ: {
      int i = component(S::NclusterIdX);
      return launch.grid[i] / launch.cluster[i];
    }
    case S::ClusterCtaidX:
    case S::ClusterCtaidY:
    case S::ClusterCtaidZ: {
      int i = component(S::ClusterCtaidX);
      return warp.cta->id[i] % launch.cluster[i];
    }
    case S::ClusterNctaidX:
    case S::ClusterNctaidY:
    case S::ClusterNctaidZ: return launch.cluster[component(S::ClusterNctaidX)];
    case S::ClusterCtarank: return warp.cta->rank;
    case S::ClusterNctarank: return warp.cta->cluster->ctas.size();
    case S::IsExplicitCluster: return warp.cta->cluster->ctas.size() > 1;
    case S::ReservedBegin: return 0;
    case S::ReservedEnd: return kSharedReserved;
    default: return 0;
  }
}

}  // namespace hunyuan_kernels::simulator
