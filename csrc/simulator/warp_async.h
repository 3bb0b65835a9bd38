// Hooks of the asynchronous tensor-core queue and of wait descriptions used by the warp loop.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

void execute_oldest_wgmma(Warp& warp);
void finish_wgmma(Warp& warp);  // executes and retires everything

// Registers of wgmma (wgmma_registers.cpp).
void watch_wgmma_registers(Program& program);  // sets Instr::watched
// Before a watched instruction; true when it was handled (a copy of a pending accumulator). Raises on a hazard.
bool touch_wgmma_registers(Warp& warp, const Instr& instr, uint32_t mask);
void issue_wgmma_registers(Warp& warp, const Instr& instr);
void retire_wgmma_registers(Warp& warp, const WgmmaOp& op);

// Text for the deadlock report.
std::string wait_detail(const Warp& warp, const Fragment& f);

}  // namespace hunyuan_kernels::simulator
