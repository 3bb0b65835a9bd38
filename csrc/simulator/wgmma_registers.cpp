// Registers of wgmma: who may touch them when.
//
// Between the issue of a wgmma and the wait_group that covers it nothing else may access its accumulators or the
// registers of its A fragment. And a wgmma.fence has to stand between any such access and the next wgmma that uses the
// register; only wgmma of the same shape and types may follow each other on the same accumulators without one.
//
// The compiler leaves register copies in between, which the assembler removes by giving both sides one register. A
// plain move is therefore no access: it hands on the state of its source, and the move of a constant counts as done
// before the fence. Copies of pending accumulators are executed after the wgmma.
#include <set>

#include "simulator/decode.h"
#include "simulator/ops_data.h"
#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {
namespace {

WgmmaRegister& state(Warp& warp, uint32_t row) {
  if (warp.wgmma_registers.empty()) warp.wgmma_registers.resize(warp.program->register_bytes / kRegisterRow + 1);
  return warp.wgmma_registers[row];
}
uint32_t row_of(const Operand& o) { return static_cast<uint32_t>(o.offset) / kRegisterRow; }
bool is_register(const Operand& o) { return o.present && o.offset > 0; }
bool is_plain_move(const Instr& instr) {
  return instr.cls == InstrClass::Move && instr.flags == kPlainMove32 && is_register(instr.op[0]);
}

void defer_copy(Warp& warp, const Instr& instr, uint32_t mask) {
  auto copy = std::make_unique<WgmmaOp>();
  copy->instr = &instr;
  copy->is_copy = true;
  copy->mask = mask;
  copy->group = warp.wgmma_queue.back()->group;
  ++state(warp, row_of(instr.op[0])).accumulating;
  warp.wgmma_queue.push_back(std::move(copy));
}

void check_fenced(Warp& warp, const Instr& instr, const WgmmaRegister& r, const char* what) {
  if (r.touched_fence != warp.wgmma_fences) return;
  warp.fail(instr, -1,
            format("%s of wgmma.mma_async is accessed at PTX line %u after the last wgmma.fence: a wgmma.fence is "
                   "missing in between",
                   what, r.touched_line));
}

bool same_shape(const Instr& a, const Instr& b) {
  return a.imm[0] == b.imm[0] && a.imm[1] == b.imm[1] && a.type == b.type && a.type2 == b.type2 && a.imm[2] == b.imm[2];
}

}  // namespace

void watch_wgmma_registers(Program& program) {
  std::set<uint32_t> rows;
  for (const Instr& instr : program.code)
    if (instr.cls == InstrClass::Wgmma)
      for (const auto* list : {&instr.list, &instr.list2})
        for (const Operand& o : *list) rows.insert(row_of(o));
  if (rows.empty()) return;
  for (bool grown = true; grown;) {  // what is copied into or out of such a register is one as well
    grown = false;
    for (const Instr& instr : program.code) {
      if (!is_plain_move(instr) || !is_register(instr.op[1])) continue;
      const uint32_t to = row_of(instr.op[0]), from = row_of(instr.op[1]);
      if (rows.count(to) != rows.count(from)) {
        rows.insert({to, from});
        grown = true;
      }
    }
  }
  for (Instr& instr : program.code) {
    if (instr.cls == InstrClass::Wgmma) continue;
    for (const auto* list : {&instr.reads, &instr.writes})
      for (uint32_t row : *list) instr.watched |= rows.count(row) != 0;
  }
}

bool touch_wgmma_registers(Warp& warp, const Instr& instr, uint32_t mask) {
  if (is_plain_move(instr)) {
    WgmmaRegister& to = state(warp, row_of(instr.op[0]));
    if (!is_register(instr.op[1])) {
      if (!to.accumulating && !to.feeding) {
        to = {};
        return false;
      }
    } else {
      const WgmmaRegister& from = state(warp, row_of(instr.op[1]));
      if (!to.accumulating && !to.feeding) {
        to.touched_fence = from.touched_fence;
        to.touched_line = from.touched_line;
        to.user = from.user;
        to.user_fence = from.user_fence;
        if (!from.accumulating) return false;
        defer_copy(warp, instr, mask);
        return true;
      }
    }
  }
  for (const auto* list : {&instr.reads, &instr.writes})
    for (uint32_t row : *list) {
      WgmmaRegister& r = state(warp, row);
      if (r.accumulating)
        warp.fail(instr, -1, "accumulator register of an unfinished wgmma is accessed before wgmma.wait_group");
      if (r.feeding) warp.fail(instr, -1, "A register of an unfinished wgmma is accessed before wgmma.wait_group");
      r.touched_fence = warp.wgmma_fences;
      r.touched_line = instr.line;
    }
  return false;
}

void issue_wgmma_registers(Warp& warp, const Instr& instr) {
  if (!warp.wgmma_fences) warp.fail(instr, -1, "wgmma.mma_async without a preceding wgmma.fence");
  for (const Operand& o : instr.list2) {
    WgmmaRegister& r = state(warp, row_of(o));
    check_fenced(warp, instr, r, "an A register");
    if (r.accumulating) warp.fail(instr, -1, "A register is an accumulator of an unfinished wgmma");
  }
  for (const Operand& o : instr.list) {
    WgmmaRegister& r = state(warp, row_of(o));
    check_fenced(warp, instr, r, "an accumulator register");
    if (r.feeding) warp.fail(instr, -1, "accumulator register is an A register of an unfinished wgmma");
    if (r.user && r.user_fence == warp.wgmma_fences && !same_shape(*r.user, instr))
      warp.fail(instr, -1,
                format("accumulator register was used by the wgmma of another shape at PTX line %u after the last "
                       "wgmma.fence: a wgmma.fence is missing in between",
                       r.user->line));
    r.user = &instr;
    r.user_fence = warp.wgmma_fences;
    ++r.accumulating;
  }
  for (const Operand& o : instr.list2) ++state(warp, row_of(o)).feeding;
}

void retire_wgmma_registers(Warp& warp, const WgmmaOp& op) {
  if (op.is_copy) {
    --state(warp, row_of(op.instr->op[0])).accumulating;
    return;
  }
  for (const Operand& o : op.instr->list) --state(warp, row_of(o)).accumulating;
  for (const Operand& o : op.instr->list2) --state(warp, row_of(o)).feeding;
}

}  // namespace hunyuan_kernels::simulator
