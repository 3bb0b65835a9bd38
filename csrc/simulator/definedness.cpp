#include "simulator/definedness.h"

#include <algorithm>

namespace hunyuan_kernels::simulator {
namespace {

constexpr uint32_t kRecheckInterval = 4096;  // instructions until a warp looks whether undefined values are left

uint8_t* shadow_of(Warp& warp, uint32_t row) { return warp.regs + warp.program->register_bytes + row * kRegisterRow; }
uint32_t row_of(const Operand& o) { return static_cast<uint32_t>(o.offset) / kRegisterRow; }
bool is_register(const Operand& o) { return o.present && o.offset > 0; }

uint32_t undefined_lanes(Warp& warp, uint32_t row) {
  const uint8_t* shadow = shadow_of(warp, row);
  const uint32_t bytes = warp.program->row_bytes[row];
  uint32_t lanes = 0;
  if (bytes == 0) {
    memcpy(&lanes, shadow, 4);
    return lanes;
  }
  for (uint32_t lane = 0; lane < kWarpSize; ++lane)
    for (uint32_t i = 0; i < bytes; ++i) lanes |= uint32_t(shadow[lane * bytes + i] != 0) << lane;
  return lanes;
}

void set_undefined(Warp& warp, uint32_t row, uint32_t mask, uint32_t lanes, uint32_t origin) {
  uint8_t* shadow = shadow_of(warp, row);
  const uint32_t bytes = warp.program->row_bytes[row];
  if (bytes == 0) {
    uint32_t old;
    memcpy(&old, shadow, 4);
    old = (old & ~mask) | (lanes & mask);
    memcpy(shadow, &old, 4);
  } else {
    for (int lane : Lanes(mask)) memset(shadow + lane * bytes, (lanes >> lane) & 1 ? 0xff : 0, bytes);
  }
  if (lanes & mask) warp.undefined_origin[row] = origin;
}

[[noreturn]] void report(Warp& warp, const Instr& instr, uint32_t row, uint32_t lanes, const char* use) {
  const Launch::UndefinedRead& read = warp.launch->undefined_reads[warp.undefined_origin[row]];
  warp.fail(instr, first_lane(lanes),
            format("a value of uninitialized shared memory, read from 0x%llx at PTX line %u by lane %d, is used %s",
                   (unsigned long long)read.address, read.line, read.lane, use));
}

void require_defined(Warp& warp, const Instr& instr, uint32_t mask, const Operand& o, const char* use) {
  if (!is_register(o)) return;
  if (const uint32_t lanes = undefined_lanes(warp, row_of(o)) & mask) report(warp, instr, row_of(o), lanes, use);
}

// Undefined lanes of all inputs; `origin` gets that of the first one.
uint32_t undefined_inputs(Warp& warp, const std::vector<uint32_t>& rows, uint32_t mask, uint32_t& origin) {
  uint32_t lanes = 0;
  for (uint32_t row : rows) {
    const uint32_t more = undefined_lanes(warp, row) & mask;
    if (more && !lanes) origin = warp.undefined_origin[row];
    lanes |= more;
  }
  return lanes;
}

Operand shadow_operand(const Warp& warp, Operand o) {
  o.offset = o.offset < 0 ? ~0 : o.offset + static_cast<int32_t>(warp.program->register_bytes);  // constants: zeros
  o.negated = false;
  return o;
}

// The instruction on the shadows of its data operands: all of a copy, op[0] to op[2] of a selection, op[0] and op[1] of
// a shuffle.
const Instr& shadow_instr(Warp& warp, const Instr& instr) {
  auto& slot = warp.launch->shadow_instrs[&instr];
  if (slot) return *slot;
  slot = std::make_unique<Instr>(instr);
  const int data = instr.flow == DataFlow::Copy ? 5 : instr.flow == DataFlow::Select ? 3 : 2;
  for (int i = 0; i < data; ++i)
    if (slot->op[i].present) slot->op[i] = shadow_operand(warp, slot->op[i]);
  if (instr.flow == DataFlow::Copy)
    for (auto& o : slot->list) o = shadow_operand(warp, o);
  else
    slot->list.clear();
  return *slot;
}

void follow_copy(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t origin = 0, control = 0;
  undefined_inputs(warp, instr.reads, kFullMask, origin);  // a shuffle reads other lanes
  for (int i = instr.flow == DataFlow::Select ? 3 : 2; i < 5 && instr.flow != DataFlow::Copy; ++i)
    if (is_register(instr.op[i])) control |= undefined_lanes(warp, row_of(instr.op[i])) & mask;
  if (instr.fn(warp, shadow_instr(warp, instr), mask) != ExecStatus::Next) return;
  for (uint32_t row : instr.writes) {
    if (!is_register(instr.op[0]) || row == row_of(instr.op[0]) || instr.flow == DataFlow::Copy)
      warp.undefined_origin[row] = origin;
    else
      set_undefined(warp, row, mask, control, origin);  // the predicate of a shuffle
    if (control) set_undefined(warp, row, control, control, origin);
  }
}

// Lanes of the same row of a matrix fragment.
uint32_t whole_quads(uint32_t lanes) {
  lanes |= (lanes >> 1) & 0x55555555;
  lanes |= (lanes & 0x55555555) << 1;
  lanes |= (lanes >> 2) & 0x33333333;
  return lanes | (lanes & 0x33333333) << 2;
}

uint32_t undefined_of(Warp& warp, const Operand* begin, const Operand* end, uint32_t& origin) {
  uint32_t lanes = 0;
  for (const Operand* o = begin; o != end; ++o) {
    if (!is_register(*o)) continue;
    const uint32_t more = undefined_lanes(warp, row_of(*o));
    if (more && !lanes) origin = warp.undefined_origin[row_of(*o)];
    lanes |= more;
  }
  return lanes;
}

// An undefined element of A makes its row of D undefined, one of B its column. list: A, B, C; list2: D.
void follow_mma(Warp& warp, const Instr& instr) {
  const size_t a_count = instr.imm[2] & 0xff, b_count = instr.imm[2] >> 8;
  const Operand *a = instr.list.data(), *b = a + a_count, *c = b + b_count, *end = a + instr.list.size();
  uint32_t origin = 0, columns = 0;
  for (int lane : Lanes(undefined_of(warp, b, c, origin))) columns |= 0x11111111u << (lane / 8);
  const uint32_t lanes = whole_quads(undefined_of(warp, a, b, origin)) | columns | undefined_of(warp, c, end, origin);
  for (const Operand& d : instr.list2)
    if (is_register(d)) set_undefined(warp, row_of(d), kFullMask, lanes, origin);
}

// list: accumulators; list2: A registers; op[0], op[1]: descriptors; op[2]: whether the accumulators are inputs.
void follow_wgmma(Warp& warp, const Instr& instr) {
  for (const Operand& o : {instr.op[0], instr.op[1], instr.op[2]})
    require_defined(warp, instr, kFullMask, o, "as a descriptor or a predicate of wgmma");
  if (instr.list.empty()) return;
  uint32_t origin = 0;
  const bool accumulates = warp.predicate(instr.op[2]) & 1;
  const uint32_t rows =
      whole_quads(undefined_of(warp, instr.list2.data(), instr.list2.data() + instr.list2.size(), origin));
  for (const Operand& d : instr.list) {
    const uint32_t before = accumulates ? undefined_of(warp, &d, &d + 1, origin) : 0;
    set_undefined(warp, row_of(d), kFullMask, rows | before, origin);
  }
}

DataFlow flow_of(const Instr& instr) {
  if (instr.flow != DataFlow::ByClass) return instr.flow;
  switch (instr.cls) {
    case InstrClass::IntegerAlu:
    case InstrClass::FloatAlu:
    case InstrClass::Convert:
    case InstrClass::Move:
    case InstrClass::Predicate: return DataFlow::Lanewise;
    case InstrClass::LoadGlobal:
    case InstrClass::StoreGlobal:
    case InstrClass::LoadShared:
    case InstrClass::StoreShared:
    case InstrClass::LocalMemory:
    case InstrClass::ParamMemory:
    case InstrClass::GenericMemory:
    case InstrClass::MatrixLoadStore: return DataFlow::Memory;
    case InstrClass::WarpCollective: return DataFlow::Collective;
    case InstrClass::Mma: return DataFlow::Mma;
    case InstrClass::Wgmma: return DataFlow::Wgmma;
    default: return DataFlow::Use;
  }
}

void forget_if_all_defined(Warp& warp) {
  if (warp.undefined_countdown-- != 0) return;
  warp.undefined_countdown = kRecheckInterval;
  const uint8_t* shadow = shadow_of(warp, 0);
  warp.follows_undefined = std::any_of(shadow, shadow + warp.program->register_bytes, [](uint8_t b) { return b != 0; });
}

}  // namespace

void follow_undefined(Warp& warp, const Instr& instr, uint32_t mask) {
  uint32_t origin = 0, lanes;
  switch (flow_of(instr)) {
    case DataFlow::Lanewise:
      lanes = undefined_inputs(warp, instr.reads, mask, origin);
      for (uint32_t row : instr.writes) set_undefined(warp, row, mask, lanes, origin);
      break;
    case DataFlow::Copy:
    case DataFlow::Select:
    case DataFlow::Shuffle: follow_copy(warp, instr, mask); break;
    case DataFlow::Collective:
      lanes = undefined_inputs(warp, instr.reads, mask, origin) ? kFullMask : 0;
      for (uint32_t row : instr.writes) set_undefined(warp, row, mask, lanes, origin);
      break;
    case DataFlow::Memory:
      require_defined(warp, instr, mask, instr.addr.base, "as an address");
      for (uint32_t row : instr.writes) set_undefined(warp, row, mask, 0, 0);
      break;
    case DataFlow::Mma: follow_mma(warp, instr); break;
    case DataFlow::Wgmma: follow_wgmma(warp, instr); break;
    default:
      for (uint32_t row : instr.reads)
        if (const uint32_t used = undefined_lanes(warp, row) & mask) report(warp, instr, row, used, "as an operand");
      for (uint32_t row : instr.writes) set_undefined(warp, row, mask, 0, 0);
  }
  forget_if_all_defined(warp);
}

void check_defined_guard(Warp& warp, const Instr& instr, uint32_t lanes) {
  const uint32_t row = static_cast<uint32_t>(instr.guard) / kRegisterRow;
  if (const uint32_t used = undefined_lanes(warp, row) & lanes) report(warp, instr, row, used, "in a condition");
}

void load_undefined(Warp& warp, const Instr& instr, int lane, const Operand& reg, uint32_t at, uint32_t bytes,
                    const uint8_t* initialized, uint64_t address) {
  if (!is_register(reg)) return;
  if (warp.undefined_origin.empty()) warp.undefined_origin.resize(warp.program->register_bytes / kRegisterRow + 1);
  uint8_t* shadow = shadow_of(warp, row_of(reg)) + lane * reg.bytes;
  bool any = false;
  for (uint32_t i = 0; i < bytes; ++i) {
    shadow[at + i] = !initialized[i];
    any |= !initialized[i];
  }
  if (!any) return;
  // The upper bytes of a widened value are zeros or copies of its sign.
  if (is_signed(instr.type) && reg.bytes > bytes) memset(shadow + bytes, shadow[bytes - 1], reg.bytes - bytes);
  auto& reads = warp.launch->undefined_reads;
  if (reads.empty() || reads.back().line != instr.line || reads.back().warp != &warp)
    reads.push_back({&warp, instr.line, lane, address});
  warp.undefined_origin[row_of(reg)] = static_cast<uint32_t>(reads.size() - 1);
  if (!warp.follows_undefined) warp.undefined_countdown = kRecheckInterval;
  warp.follows_undefined = true;
}

void store_undefined(Warp& warp, const Instr& instr, int lane, const Operand& reg, uint32_t at, uint32_t bytes,
                     uint8_t* initialized) {
  if (!is_register(reg)) return;
  const uint8_t* shadow = shadow_of(warp, row_of(reg)) + lane * reg.bytes + at;
  for (uint32_t i = 0; i < bytes; ++i) {
    if (!shadow[i]) continue;
    if (!initialized) report(warp, instr, row_of(reg), 1u << lane, "as the data of a store");
    initialized[i] = 0;
  }
}

}  // namespace hunyuan_kernels::simulator
