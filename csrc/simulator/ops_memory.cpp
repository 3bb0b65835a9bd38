// ld, st and their vector forms.
#include <algorithm>

#include "simulator/decode.h"
#include "simulator/definedness.h"
#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {
namespace {

uint64_t extend(uint64_t v, ScalarType t) {
  switch (t) {
    case ScalarType::S8: return (uint64_t)(int64_t)(int8_t)v;
    case ScalarType::S16: return (uint64_t)(int64_t)(int16_t)v;
    case ScalarType::S32: return (uint64_t)(int64_t)(int32_t)v;
    default: return v;
  }
}

template <uint32_t bytes>
void copy_element(Warp& warp, const Operand& reg, int lane, uint8_t* memory, ScalarType type, bool store) {
  if (store) {
    if constexpr (bytes == 16)
      memcpy(memory, warp.ptr<uint8_t>(reg) + lane * 16, 16);
    else {
      uint64_t v = warp.value(reg, lane);
      memcpy(memory, &v, bytes);
    }
  } else {
    if constexpr (bytes == 16)
      memcpy(warp.ptr<uint8_t>(reg) + lane * 16, memory, 16);
    else {
      uint64_t v = 0;
      memcpy(&v, memory, bytes);
      warp.set_value(reg, lane, extend(v, type));
    }
  }
}

// The common case of a global access in few comparisons; null where memory_pointer has to look closer.
uint8_t* same_allocation(Warp& warp, uint64_t address, uint32_t bytes, bool write) {
  const Allocation* a = warp.last_allocation;
  if (!a || address < a->begin || address + bytes > a->end || (write && a->read_only) ||
      (address & (std::min(bytes, 32u) - 1)))
    return nullptr;
  warp.shared_marks = nullptr;
  return reinterpret_cast<uint8_t*>(address);
}

// ld/st through a checked pointer. flags bit 0: store
template <uint32_t bytes>
ExecStatus exec_access(Warp& warp, const Instr& instr, uint32_t mask) {
  const bool store = instr.flags & 1;
  const bool check = warp.launch->options.check_uninitialized_shared;
  const uint32_t total = bytes * instr.vec;
  uint64_t addresses[kWarpSize];
  uint32_t n = 0;
  Space actual = instr.space;
  const bool unwatched = instr.space == Space::Global && !warp.launch->watch_global;
  for (int lane : Lanes(mask)) {
    uint64_t address = warp.address(instr.addr, lane);
    addresses[n++] = address;
    uint8_t* p = unwatched ? same_allocation(warp, address, total, store) : nullptr;
    if (!p) p = memory_pointer(warp, instr, lane, address, total, store ? Access::Write : Access::Follow, &actual);
    for (uint32_t v = 0; v < instr.vec; ++v)
      copy_element<bytes>(warp, instr.list[v], lane, p + v * bytes, instr.type, store);
    uint8_t* marks = warp.shared_marks;
    if (!store && marks && check && memchr(marks, 0, total)) {
      for (uint32_t v = 0; v < instr.vec; ++v)
        load_undefined(warp, instr, lane, instr.list[v], 0, bytes, marks + v * bytes, address);
    } else if (store && warp.follows_undefined) {
      for (uint32_t v = 0; v < instr.vec; ++v)
        store_undefined(warp, instr, lane, instr.list[v], 0, bytes, marks ? marks + v * bytes : nullptr);
    }
  }
  count_access(warp, actual, store, addresses, n, total);
  if (store) warp.launch->progress();
  return ExecStatus::Next;
}

// Kernel parameters without a register in the address: one uniform value.
ExecStatus exec_load_param(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t bytes = size_of(instr.type);
  for (uint32_t v = 0; v < instr.vec; ++v) {
    uint64_t value = 0;
    memcpy(&value, param_pointer(warp, instr, first_lane(mask), (uint64_t)instr.addr.offset + v * bytes, bytes),
           std::min(8u, bytes));
    value = extend(value, instr.type);
    const Operand& r = instr.list[v];
    for (int lane : Lanes(mask)) warp.set_value(r, lane, value);
  }
  return ExecStatus::Next;
}

Space space_part(const InstrAst& a) {
  for (auto p : a.parts) {
    if (p == "global") return Space::Global;
    if (p == "shared" || p == "shared::cta") return Space::Shared;
    if (p == "shared::cluster") return Space::SharedCluster;
    if (p == "local") return Space::Local;
    if (p == "param" || p == "param::entry" || p == "param::func") return Space::Param;
    if (p == "const") return Space::Const;
  }
  return Space::Generic;
}

InstrClass class_of(Space s, bool store) {
  switch (s) {
    case Space::Global:
    case Space::Const: return store ? InstrClass::StoreGlobal : InstrClass::LoadGlobal;
    case Space::Shared:
    case Space::SharedCluster: return store ? InstrClass::StoreShared : InstrClass::LoadShared;
    case Space::Local: return InstrClass::LocalMemory;
    case Space::Param: return InstrClass::ParamMemory;
    default: return InstrClass::GenericMemory;
  }
}

void decode_access(DecodeContext& c, const InstrAst& a, Instr& instr) {
  const bool store = a.parts[0] == "st";
  if (a.has("async") || a.has("bulk")) c.unsupported();
  instr.type = parse_scalar_type(a.parts.back());
  instr.vec = a.has("v2") ? 2 : a.has("v4") ? 4 : a.has("v8") ? 8 : 1;
  instr.space = space_part(a);
  decode_ordering(a, instr);
  instr.cls = class_of(instr.space, store);
  instr.flags = store ? 1 : 0;
  const OperandAst& address = a.operands[store ? 0 : 1];
  const OperandAst& data = a.operands[store ? 1 : 0];
  instr.addr = c.address(address);
  const uint32_t bytes = size_of(instr.type);
  auto add = [&](const OperandAst& o) { instr.list.push_back(store ? c.any_source(o, bytes) : c.dest(o)); };
  if (data.kind == OperandAst::Kind::Vector)
    for (auto& e : data.elements) add(e);
  else
    add(data);
  if (instr.list.size() != instr.vec) c.unsupported("vector size");
  for (auto& r : instr.list)
    if ((r.bytes == 16) != (bytes == 16)) c.unsupported("register width");
  if (instr.addr.symbol == SymbolBase::Local)
    instr.space = Space::Local;
  else if (instr.space == Space::Param && instr.addr.base.present && !c.function->is_entry)
    instr.space = Space::Local;
  else if (instr.space == Space::Param && !instr.addr.base.present && !store && bytes <= 8) {
    instr.fn = &exec_load_param;
    return;
  }
  if (instr.space == Space::Const) instr.space = Space::Global;
  if (instr.space == Space::Generic && !instr.addr.base.present && instr.addr.symbol == SymbolBase::Shared)
    instr.space = Space::Shared;
  switch (bytes) {
    case 1: instr.fn = &exec_access<1>; break;
    case 2: instr.fn = &exec_access<2>; break;
    case 4: instr.fn = &exec_access<4>; break;
    case 8: instr.fn = &exec_access<8>; break;
    case 16: instr.fn = &exec_access<16>; break;
    default: break;
  }
}

}  // namespace

void register_memory_ops(OpTable& t) {
  t["ld"] = &decode_access;
  t["ldu"] = &decode_access;
  t["st"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    if (a.has("async")) {
      decode_store_async(c, a, instr);
      return;
    }
    decode_access(c, a, instr);
  };
}

}  // namespace hunyuan_kernels::simulator
