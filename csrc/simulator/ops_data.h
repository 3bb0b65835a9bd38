// Special registers.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

enum class SpecialRegister : uint8_t {
  TidX,
  TidY,
  TidZ,
  NtidX,
  NtidY,
  NtidZ,
  CtaidX,
  CtaidY,
  CtaidZ,
  NctaidX,
  NctaidY,
  NctaidZ,
  LaneId,
  WarpId,
  NwarpId,
  Smid,
  Nsmid,
  GridId,
  Clock,
  Clock64,
  ClockHi,
  GlobalTimer,
  GlobalTimerLo,
  GlobalTimerHi,
  LanemaskEq,
  LanemaskLt,
  LanemaskLe,
  LanemaskGt,
  LanemaskGe,
  DynamicSmemSize,
  TotalSmemSize,
  AggrSmemSize,
  ClusterIdX,
  ClusterIdY,
  ClusterIdZ,
  NclusterIdX,
  NclusterIdY,
  NclusterIdZ,
  ClusterCtaidX,
  ClusterCtaidY,
  ClusterCtaidZ,
  ClusterNctaidX,
  ClusterNctaidY,
  ClusterNctaidZ,
  ClusterCtarank,
  ClusterNctarank,
  IsExplicitCluster,
  ReservedBegin,
  ReservedEnd,
  Envreg0,
  Count
};
int find_special_register(const std::string& name);
uint64_t special_register(Warp& warp, SpecialRegister r, int lane);

constexpr uint32_t kPlainMove32 = 0x100;  // Instr::flags of a 32-bit register move

}  // namespace hunyuan_kernels::simulator
