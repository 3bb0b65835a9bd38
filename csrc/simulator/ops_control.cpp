// Branches, calls, exits and the external device functions vprintf and __assertfail.
#include <algorithm>

#include "simulator/decode.h"
#include "simulator/memory.h"

namespace hunyuan_kernels::simulator {
namespace {

void split_to(Warp& warp, uint32_t mask, uint32_t target) {
  Fragment& f = warp.frag();
  if (mask == f.mask) {
    f.pc = target;
    f.arrived = false;
    return;
  }
  Fragment taken;
  taken.stack = f.stack;
  taken.mask = mask;
  taken.pc = target;
  f.mask &= ~mask;
  warp.fragments.push_back(std::move(taken));
}

ExecStatus exec_branch(Warp& warp, const Instr& instr, uint32_t mask) {
  Fragment& f = warp.frag();
  if (mask != f.mask) {
    uint32_t next = f.pc + 1;
    split_to(warp, mask, instr.target);
    warp.frag().pc = next;
  } else {
    f.pc = instr.target;
  }
  return ExecStatus::Control;
}

ExecStatus exec_branch_indexed(Warp& warp, const Instr& instr, uint32_t mask) {
  const uint32_t* index = warp.ptr<uint32_t>(instr.op[0]);
  uint32_t next = warp.frag().pc + 1, rest = mask;
  while (rest) {
    int lane = first_lane(rest);
    uint32_t same = 0;
    for (int other : Lanes(rest))
      if (index[other] == index[lane]) same |= 1u << other;
    if (index[lane] >= instr.list2.size()) warp.fail(instr, lane, format("brx.idx index %u out of range", index[lane]));
    uint32_t target = (uint32_t)instr.list2[index[lane]].offset;
    rest &= ~same;
    if (same == warp.frag().mask) {
      warp.frag().pc = target;
      return ExecStatus::Control;
    }
    split_to(warp, same, target);
  }
  warp.frag().pc = next;
  return ExecStatus::Control;
}

void copy_local(Warp& warp, uint32_t mask, uint32_t to, uint32_t from, uint32_t bytes) {
  for (int lane : Lanes(mask)) {
    uint8_t* base = warp.lane_local(lane);
    memcpy(base + to, base + from, bytes);
  }
}

ExecStatus exec_call(Warp& warp, const Instr& instr, uint32_t mask) {
  const CalleeInfo& callee = warp.program->callees[instr.imm[0]];
  for (size_t i = 0; i < callee.param_offsets.size(); ++i)
    copy_local(warp, mask, callee.param_offsets[i], (uint32_t)instr.list[i].offset, callee.param_bytes[i]);
  Fragment& f = warp.frag();
  uint32_t site = f.pc;
  for (uint32_t s : f.stack)
    if (warp.program->code[s].imm[0] == instr.imm[0]) warp.fail(instr, -1, "recursive calls are not supported");
  if (mask != f.mask) {
    split_to(warp, mask, callee.entry);
    warp.fragments.back().stack.push_back(site);
    warp.frag().pc = site + 1;
  } else {
    f.stack.push_back(site);
    f.pc = callee.entry;
  }
  return ExecStatus::Control;
}

ExecStatus exec_exit(Warp& warp, const Instr&, uint32_t mask) {
  Fragment& f = warp.frag();
  if (mask != f.mask) {  // the other lanes continue
    f.pc += 1;
    uint32_t rest = f.mask & ~mask;
    f.mask = mask;
    Fragment others = f;
    others.mask = rest;
    warp.fragments.push_back(others);
  }
  warp.exit_lanes(mask);
  return ExecStatus::Control;
}

ExecStatus exec_return(Warp& warp, const Instr& instr, uint32_t mask) {
  Fragment& f = warp.frag();
  if (f.stack.empty()) return exec_exit(warp, instr, mask);
  const Instr& call = warp.program->code[f.stack.back()];
  const CalleeInfo& callee = warp.program->callees[call.imm[0]];
  for (size_t i = 0; i < callee.result_offsets.size(); ++i)
    copy_local(warp, mask, (uint32_t)call.list2[i].offset, callee.result_offsets[i], callee.result_bytes[i]);
  uint32_t back = f.stack.back() + 1, next = f.pc + 1;
  if (mask != f.mask) {
    split_to(warp, mask, back);
    warp.fragments.back().stack.pop_back();
    warp.frag().pc = next;
  } else {
    f.stack.pop_back();
    f.pc = back;
  }
  return ExecStatus::Control;
}

ExecStatus exec_trap(Warp& warp, const Instr& instr, uint32_t mask) {
  warp.fail(instr, first_lane(mask), "trap executed");
}
ExecStatus exec_nothing(Warp&, const Instr&, uint32_t) { return ExecStatus::Next; }
ExecStatus exec_wait_for_prerequisite(Warp& warp, const Instr&, uint32_t) {
  const Launch* before = warp.launch->prerequisite;
  if (warp.launch->predecessor_pending) return ExecStatus::Blocked;
  if (before && !before->complete) return ExecStatus::Blocked;
  warp.launch->waited = true;
  return ExecStatus::Next;
}
ExecStatus exec_launch_dependents(Warp& warp, const Instr&, uint32_t) {
  warp.launch->release_block(*warp.cta);
  return ExecStatus::Next;
}
ExecStatus exec_nanosleep(Warp&, const Instr&, uint32_t) { return ExecStatus::Yield; }

// Reads a zero-terminated string at a generic address.
std::string read_string(Warp& warp, const Instr& instr, int lane, uint64_t address) {
  std::string s;
  Instr generic;
  generic.space = Space::Generic;
  generic.ast = instr.ast;
  generic.line = instr.line;
  for (; s.size() < 4096; ++address) {
    char ch = (char)*memory_pointer(warp, generic, lane, address, 1, Access::Read);
    if (!ch) break;
    s += ch;
  }
  return s;
}

void print_lane(Warp& warp, const Instr& instr, int lane) {
  uint64_t format_address, args_address;
  memcpy(&format_address, warp.lane_local(lane) + instr.list[0].offset, 8);
  memcpy(&args_address, warp.lane_local(lane) + instr.list[1].offset, 8);
  std::string fmt = read_string(warp, instr, lane, format_address), out;
  Instr generic;
  generic.space = Space::Generic;
  generic.ast = instr.ast;
  generic.line = instr.line;
  auto take = [&](uint32_t bytes) {
    args_address = (args_address + bytes - 1) / bytes * bytes;
    uint64_t v = 0;
    memcpy(&v, memory_pointer(warp, generic, lane, args_address, bytes, Access::Read), bytes);
    args_address += bytes;
    return v;
  };
  for (size_t i = 0; i < fmt.size(); ++i) {
    if (fmt[i] != '%') {
      out += fmt[i];
      continue;
    }
    std::string spec = "%";
    int longs = 0;
    for (++i; i < fmt.size(); ++i) {
      if (fmt[i] == 'l' || fmt[i] == 'z' || fmt[i] == 'j' || fmt[i] == 't') {
        longs += fmt[i] == 'l' ? 1 : 2;
        continue;
      }
      if (fmt[i] == 'h') continue;
      if (fmt[i] == '*') {
        spec += std::to_string((int)take(4));
        continue;
      }
      if (isalpha((unsigned char)fmt[i]) || fmt[i] == '%') break;
      spec += fmt[i];
    }
    char c = i < fmt.size() ? fmt[i] : '%';
    if (c == '%')
      out += '%';
    else if (strchr("eEfFgGaA", c)) {
      double d;
      uint64_t v = take(8);
      memcpy(&d, &v, 8);
      out += format((spec + c).c_str(), d);
    } else if (c == 's')
      out += format((spec + "s").c_str(), read_string(warp, instr, lane, take(8)).c_str());
    else if (c == 'p')
      out += format("0x%llx", (unsigned long long)take(8));
    else if (c == 'c')
      out += format((spec + "c").c_str(), (int)take(4));
    else if (longs)
      out += format((spec + "ll" + c).c_str(), (long long)take(8));
    else
      out += format((spec + c).c_str(), (int)take(4));
  }
  warp.launch->output += out;
}

ExecStatus exec_printf(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    print_lane(warp, instr, lane);
    if (!instr.list2.empty()) memset(warp.lane_local(lane) + instr.list2[0].offset, 0, 4);
  }
  return ExecStatus::Next;
}

ExecStatus exec_assert_fail(Warp& warp, const Instr& instr, uint32_t mask) {
  int lane = first_lane(mask);
  auto arg = [&](int i) {
    uint64_t v;
    memcpy(&v, warp.lane_local(lane) + instr.list[i].offset, 8);
    return v;
  };
  uint32_t line;
  memcpy(&line, warp.lane_local(lane) + instr.list[2].offset, 4);
  warp.fail(instr, lane,
            format("device assertion failed: %s (%s:%u)", read_string(warp, instr, lane, arg(0)).c_str(),
                   read_string(warp, instr, lane, arg(1)).c_str(), line));
}

void decode_call(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Control;
  auto param = [&](const OperandAst& o) {
    uint32_t bytes;
    Operand r;
    r.offset = (int32_t)c.param_offset(o.name, &bytes);
    r.bytes = (uint8_t)std::min(255u, bytes);
    return r;
  };
  for (auto& o : a.call_arguments) instr.list.push_back(param(o));
  for (auto& o : a.call_results) instr.list2.push_back(param(o));
  const std::string& name = a.operands[0].name;
  if (name == "vprintf") {
    instr.fn = &exec_printf;
    return;
  }
  if (name == "__assertfail") {
    instr.fn = &exec_assert_fail;
    return;
  }
  uint32_t index = c.callee_index(name);
  if (index == ~0u) c.unsupported("call of an unknown or indirect function");
  instr.imm[0] = index;
  instr.fn = &exec_call;
}

}  // namespace

void register_control_ops(OpTable& t) {
  t["bra"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Control;
    instr.target = c.label_target(a.operands[0].name);
    instr.fn = &exec_branch;
  };
  t["brx"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Control;
    instr.op[0] = c.source(a.operands[0], 4);
    auto* targets = c.branch_targets(a.operands[1].name);
    if (!targets) c.unsupported("unknown branch target list");
    for (auto& t : *targets) {
      Operand o;
      o.offset = (int32_t)c.label_target(t);
      instr.list2.push_back(o);
    }
    instr.fn = &exec_branch_indexed;
  };
  t["call"] = &decode_call;
  t["ret"] = [](DecodeContext&, const InstrAst&, Instr& instr) {
    instr.cls = InstrClass::Control;
    instr.fn = &exec_return;
  };
  t["exit"] = [](DecodeContext&, const InstrAst&, Instr& instr) {
    instr.cls = InstrClass::Control;
    instr.fn = &exec_exit;
  };
  t["trap"] = [](DecodeContext&, const InstrAst&, Instr& instr) {
    instr.cls = InstrClass::Control;
    instr.fn = &exec_trap;
  };
  auto nothing = [](DecodeContext&, const InstrAst&, Instr& instr) {
    instr.cls = InstrClass::Other;
    instr.fn = &exec_nothing;
  };
  for (const char* op : {"brkpt", "pmevent", "prefetch", "prefetchu", "applypriority", "discard", "createpolicy"})
    t[op] = nothing;
  t["griddepcontrol"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    instr.cls = InstrClass::Other;
    if (!a.has("wait") && !a.has("launch_dependents")) c.unsupported();
    instr.fn = a.has("wait") ? &exec_wait_for_prerequisite : &exec_launch_dependents;
  };
  t["createpolicy"] = [](DecodeContext& c, const InstrAst& a, Instr& instr) {
    c.dest(a.operands[0]);
    instr.cls = InstrClass::Other;
    instr.fn = &exec_nothing;
  };
  t["nanosleep"] = [](DecodeContext&, const InstrAst&, Instr& instr) {
    instr.cls = InstrClass::Other;
    instr.fn = &exec_nanosleep;
  };
}

}  // namespace hunyuan_kernels::simulator
