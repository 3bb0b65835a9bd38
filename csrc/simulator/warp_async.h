// Hooks of the asynchronous tensor-core queue and of wait descriptions used by the warp loop.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

void execute_oldest_wgmma(Warp& warp);
void finish_wgmma(Warp& warp);  // executes and retires everything
// True when the instruction was handled (a move of a pending accumulator); raises on a hazard.
bool intercept_pending_registers(Warp& warp, const Instr& instr, uint32_t mask);
// Text for the deadlock report.
std::string wait_detail(const Warp& warp, const Fragment& f);

}  // namespace hunyuan_kernels::simulator
