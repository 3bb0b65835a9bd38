#include "simulator/decode.h"

#include <algorithm>

#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {

namespace {

const OpTable& op_table() {
  static const OpTable table = [] {
    OpTable t;
    register_integer_ops(t);
    register_bit_ops(t);
    register_compare_ops(t);
    register_float_ops(t);
    register_convert_ops(t);
    register_data_ops(t);
    register_control_ops(t);
    register_memory_ops(t);
    register_atomic_ops(t);
    register_collective_ops(t);
    register_mma_ops(t);
    register_wgmma_ops(t);
    register_async_copy_ops(t);
    register_tma_ops(t);
    register_barrier_ops(t);
    return t;
  }();
  return table;
}

uint32_t align_up(uint32_t v, uint32_t a) { return (v + a - 1) / a * a; }

}  // namespace

ScalarType type_part(const InstrAst& ast, int nth) {
  for (size_t i = 1; i < ast.parts.size(); ++i) {
    ScalarType t = parse_scalar_type(ast.parts[i]);
    if (t != ScalarType::None && nth-- == 0) return t;
  }
  return ScalarType::None;
}

void decode_ordering(const InstrAst& ast, Instr& instr) {
  for (const char* p : {"volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio"})
    instr.strong |= ast.has(p);
  instr.acquire = ast.has("acquire") || ast.has("acq_rel");
  instr.release = ast.has("release") || ast.has("acq_rel");
  instr.device_scope = !ast.has("cta");
}

void DecodeContext::unsupported(const std::string& why) const {
  throw SimError(format("PTX line %u: unsupported instruction%s%s: %s", ast->line, why.empty() ? "" : " - ",
                        why.c_str(), ast->text().c_str()));
}

const Variable* DecodeContext::find_variable(const std::string& name, int scope) const {
  for (int s = scope; s >= 0; s = function->scopes[s].parent) {
    auto it = function->scopes[s].variables.find(name);
    if (it != function->scopes[s].variables.end()) return &it->second;
  }
  return nullptr;
}

Operand DecodeContext::find_register(const std::string& name) const {
  for (int s = (int)ast->scope; s >= 0; s = function->scopes[s].parent) {
    auto it = function->scopes[s].registers.find(name);
    if (it != function->scopes[s].registers.end()) return layouts_.at(function).registers[it->second.index];
  }
  return {};
}

Operand DecodeContext::reg(const OperandAst& o) const {
  if (o.kind != OperandAst::Kind::Name) unsupported("register expected");
  Operand r = find_register(o.name);
  if (!r.present) unsupported("unknown register " + o.name);
  r.negated = o.negated;
  return r;
}

Operand DecodeContext::read(Operand o) {
  if (o.present && o.offset > 0 && current_) current_->reads.push_back((uint32_t)o.offset / kRegisterRow);
  return o;
}

Operand DecodeContext::write(Operand o) {
  if (o.present && o.offset > 0 && current_) current_->writes.push_back((uint32_t)o.offset / kRegisterRow);
  return o;
}

Operand DecodeContext::dest(const OperandAst& o) {
  if (o.kind == OperandAst::Kind::Sink) return Operand{kSinkOffset, 8, true, false, false};
  return write(reg(o));
}

Operand DecodeContext::dest(const OperandAst& o, uint32_t bytes) {
  Operand r = dest(o);
  if (o.kind != OperandAst::Kind::Sink && r.bytes != bytes)
    unsupported(format("destination of %u bytes, expected %u", r.bytes, bytes));
  return r;
}

Operand DecodeContext::carry(bool reads, bool writes) {
  const Operand o{kCarryOffset, 4, true, false, false};
  if (reads) read(o);
  return writes ? write(o) : o;
}

Operand DecodeContext::constant(uint64_t bits, uint32_t bytes) {
  auto [it, is_new] = constant_index_.try_emplace({bits, bytes}, 0);
  if (is_new) {
    uint32_t at = (uint32_t)program.constants.size();
    program.constants.resize(at + align_up(std::max(bytes, 2u) * kWarpSize, 64));
    for (uint32_t lane = 0; lane < kWarpSize; ++lane)
      memcpy(&program.constants[at + lane * bytes], &bits, std::min(bytes, 8u));
    it->second = ~(int32_t)at;
  }
  return Operand{it->second, (uint8_t)bytes, true, false, false};
}

uint64_t DecodeContext::immediate(const OperandAst& o) const {
  if (o.kind != OperandAst::Kind::Integer) unsupported("integer constant expected");
  return o.bits;
}

Operand DecodeContext::any_source(const OperandAst& o, uint32_t bytes) {
  using K = OperandAst::Kind;
  if (o.kind == K::Integer) return constant(bytes >= 8 ? o.bits : o.bits & ((1ull << (bytes * 8)) - 1), bytes);
  if (o.kind == K::Float) {
    uint64_t bits = o.bits;
    if (o.float_bytes == 8 && bytes == 4) {
      double d;
      memcpy(&d, &bits, 8);
      float f = (float)d;
      bits = 0;
      memcpy(&bits, &f, 4);
    } else if (o.float_bytes == 4 && bytes == 8) {
      float f;
      memcpy(&f, &bits, 4);
      double d = f;
      memcpy(&bits, &d, 8);
    }
    return constant(bits, bytes);
  }
  if (o.kind == K::Name && is_register(o.name)) return read(reg(o));
  if (o.kind == K::Name) {
    if (o.name == "WARP_SZ") return constant(32, bytes);
    AddressMode mode;
    if (symbol_address(o.name, mode) && mode.symbol == SymbolBase::None) return constant(mode.offset + o.offset, bytes);
    if (o.name[0] == '%') unsupported("operand " + o.name);
  }
  unsupported("operand");
}

Operand DecodeContext::source(const OperandAst& o, uint32_t bytes) {
  Operand r = any_source(o, bytes);
  if (r.bytes != bytes) unsupported(format("operand width %u, expected %u", r.bytes, bytes));
  return r;
}

void DecodeContext::operands(const InstrAst& a, Instr& instr, int sources, uint32_t bytes, uint32_t dest_bytes) {
  if ((int)a.operands.size() != sources + 1) unsupported("operand count");
  instr.op[0] = dest(a.operands[0], dest_bytes ? dest_bytes : bytes);
  for (int i = 1; i <= sources; ++i) instr.op[i] = source(a.operands[i], bytes);
}

bool DecodeContext::is_predicate(const OperandAst& o) const {
  return o.kind == OperandAst::Kind::Name && find_register(o.name).predicate;
}

Operand DecodeContext::predicate(const OperandAst& o) {
  if (o.kind == OperandAst::Kind::Integer) {
    Operand c = constant(o.bits ? 0xffffffffu : 0u, 4);
    c.negated = o.negated;
    return c;
  }
  if (!is_predicate(o)) unsupported("predicate expected");
  return read(reg(o));
}

Operand DecodeContext::predicate_dest(const OperandAst& o) {
  if (o.kind == OperandAst::Kind::Sink) return Operand{kSinkOffset, 4, true, false, true};
  if (!is_predicate(o) || o.negated) unsupported("predicate register expected");
  return write(reg(o));
}

Operand DecodeContext::pair_dest(const OperandAst& o) {
  if (o.pair_name.empty() || o.pair_name == "_") return {};
  Operand r = find_register(o.pair_name);
  if (!r.predicate) unsupported("predicate register expected");
  return write(r);
}

bool DecodeContext::symbol_address(const std::string& name, AddressMode& mode, Space* space) {
  FunctionLayout& layout = layouts_[function];
  auto set = [&](SymbolBase base, int64_t offset, Space s) {
    mode.symbol = base;
    mode.offset += offset;
    if (space) *space = s;
    return true;
  };
  if (const Variable* v = find_variable(name, ast ? (int)ast->scope : 0)) {
    if (v->space == Space::Shared) return set(SymbolBase::Shared, layout.shared_offsets.at(name), Space::Shared);
    if (v->space == Space::Local || v->space == Space::Param) {
      std::string key = name;
      for (int s = (int)ast->scope; s >= 0; s = function->scopes[s].parent)
        if (function->scopes[s].variables.count(name)) {
          key = name + "@" + std::to_string(s);
          break;
        }
      return set(SymbolBase::Local, layout.local_offsets.at(key), v->space);
    }
    auto it = storage.symbols.find(name);
    if (it != storage.symbols.end()) return set(SymbolBase::None, (int64_t)it->second.address, Space::Global);
    return false;
  }
  if (function->is_entry) {
    for (auto& p : program.params)
      if (p.name == name) return set(SymbolBase::EntryParam, p.offset, Space::Param);
  } else if (auto it = layout.local_offsets.find(name); it != layout.local_offsets.end()) {
    return set(SymbolBase::Local, it->second, Space::Param);
  }
  if (auto it = module_shared_.find(name); it != module_shared_.end())
    return set(SymbolBase::Shared, it->second, Space::Shared);
  if (auto it = storage.symbols.find(name); it != storage.symbols.end())
    return set(SymbolBase::None, (int64_t)it->second.address, it->second.read_only ? Space::Const : Space::Global);
  return false;
}

uint32_t DecodeContext::param_offset(const std::string& name, uint32_t* bytes) const {
  const FunctionLayout& layout = layouts_.at(function);
  for (int s = (int)ast->scope; s >= 0; s = function->scopes[s].parent) {
    auto it = function->scopes[s].variables.find(name);
    if (it != function->scopes[s].variables.end()) {
      *bytes = (uint32_t)it->second.bytes;
      return layout.local_offsets.at(name + "@" + std::to_string(s));
    }
  }
  throw SimError(format("PTX line %u: unknown call parameter '%s'", ast->line, name.c_str()));
}

AddressMode DecodeContext::address(const OperandAst& o) {
  AddressMode mode;
  const OperandAst* base = &o;
  if (o.kind == OperandAst::Kind::Address) base = &o.elements.at(0);
  mode.offset = o.offset;
  if (base->kind == OperandAst::Kind::Integer) {
    mode.offset += (int64_t)base->bits;
  } else if (base->kind == OperandAst::Kind::Name) {
    if (o.kind != OperandAst::Kind::Address) mode.offset = 0;
    if (is_register(base->name)) {
      mode.base = read(reg(*base));
      if (mode.base.bytes != 4 && mode.base.bytes != 8) unsupported("address register of other than 32 or 64 bits");
      if (o.kind != OperandAst::Kind::Address) mode.offset = base->offset;
    } else if (!symbol_address(base->name, mode)) {
      unsupported("unknown symbol " + base->name);
    }
  } else {
    unsupported("address");
  }
  return mode;
}

uint32_t DecodeContext::label_target(const std::string& name) const {
  for (int s = (int)ast->scope; s >= 0; s = function->scopes[s].parent) {
    auto it = function->scopes[s].labels.find(name);
    if (it != function->scopes[s].labels.end()) return layouts_.at(function).entry + it->second;
  }
  throw SimError(format("PTX line %u: unknown label '%s'", ast->line, name.c_str()));
}

const std::vector<std::string>* DecodeContext::branch_targets(const std::string& name) const {
  for (int s = (int)ast->scope; s >= 0; s = function->scopes[s].parent) {
    auto it = function->scopes[s].branch_targets.find(name);
    if (it != function->scopes[s].branch_targets.end()) return &it->second;
  }
  return nullptr;
}

uint32_t DecodeContext::callee_index(const std::string& name) {
  auto it = callee_index_.find(name);
  return it == callee_index_.end() ? ~0u : it->second;
}

void DecodeContext::collect_functions(const FunctionAst& f, std::vector<const FunctionAst*>& order) {
  if (std::find(order.begin(), order.end(), &f) != order.end()) return;
  order.push_back(&f);
  for (auto& instr : f.instructions) {
    if (instr.parts[0] != "call") continue;
    const FunctionAst* callee = module.find(instr.operands[0].name);
    if (callee && !callee->is_extern) collect_functions(*callee, order);
  }
}

void DecodeContext::layout_function(const FunctionAst& f) {
  FunctionLayout& layout = layouts_[&f];
  layout.registers.resize(f.register_count);
  for (auto& scope : f.scopes) {
    for (auto& [name, decl] : scope.registers)
      layout.registers[decl.index] =
          Operand{0, (uint8_t)size_of(decl.type), true, false, decl.type == ScalarType::Pred};
  }
  for (auto& r : layout.registers) {
    r.offset = (int32_t)program.register_bytes;
    program.register_bytes += align_up(r.bytes * kWarpSize, 64);
    program.row_bytes.resize(program.register_bytes / kRegisterRow);
    program.row_bytes[r.offset / kRegisterRow] = r.predicate ? 0 : r.bytes;
  }
  auto place = [&](const std::string& key, const Variable& v) {
    program.local_bytes = align_up(program.local_bytes, std::max(8u, v.align));
    layout.local_offsets[key] = program.local_bytes;
    program.local_bytes += (uint32_t)v.bytes;
  };
  for (size_t s = 0; s < f.scopes.size(); ++s)
    for (auto& [name, v] : f.scopes[s].variables)
      if (v.space == Space::Local || v.space == Space::Param) place(name + "@" + std::to_string(s), v);
  if (!f.is_entry) {
    CalleeInfo info;
    info.name = f.name;
    for (auto& p : f.params) {
      place(p.name, p);
      info.param_offsets.push_back(layout.local_offsets[p.name]);
      info.param_bytes.push_back((uint32_t)p.bytes);
    }
    for (auto& r : f.results) {
      place(r.name, r);
      info.result_offsets.push_back(layout.local_offsets[r.name]);
      info.result_bytes.push_back((uint32_t)r.bytes);
    }
    callee_index_[f.name] = (uint32_t)program.callees.size();
    program.callees.push_back(info);
  }
}

void DecodeContext::layout_shared(const std::vector<const FunctionAst*>& order) {
  // Only the module-level shared variables that this kernel mentions take space.
  std::unordered_map<std::string, bool> mentioned;
  for (auto* f : order)
    for (auto& instr : f->instructions)
      for (auto& o : instr.operands) {
        mentioned[o.name] = true;
        for (auto& e : o.elements) mentioned[e.name] = true;
      }
  uint32_t at = kSharedReserved;
  auto place = [&](const Variable& v) {
    at = align_up(at, std::max(1u, v.align));
    uint32_t offset = at;
    at += (uint32_t)v.bytes;
    return offset;
  };
  for (auto& v : module.variables)
    if (v.space == Space::Shared && !v.is_extern && mentioned.count(v.name)) module_shared_[v.name] = place(v);
  for (auto* f : order)
    for (auto& scope : f->scopes)
      for (auto& [name, v] : scope.variables)
        if (v.space == Space::Shared && !v.is_extern) layouts_[f].shared_offsets[name] = place(v);
  uint32_t dynamic_align = 16;
  for (auto& v : module.variables)
    if (v.space == Space::Shared && v.is_extern && mentioned.count(v.name))
      dynamic_align = std::max(dynamic_align, v.align);
  program.static_shared_bytes = at - kSharedReserved;
  dynamic_shared_offset_ = align_up(at, dynamic_align);
  if (dynamic_align > 16 || at != kSharedReserved)
    program.static_shared_bytes = dynamic_shared_offset_ - kSharedReserved;
  for (auto& v : module.variables)
    if (v.space == Space::Shared && v.is_extern) module_shared_[v.name] = dynamic_shared_offset_;
}

void DecodeContext::decode_function(const FunctionAst& f) {
  function = &f;
  uint32_t entry = layouts_[&f].entry;
  for (size_t i = 0; i < f.instructions.size(); ++i) {
    ast = &f.instructions[i];
    Instr& instr = program.code[entry + i];
    instr.line = ast->line;
    instr.ast = ast;
    current_ = &instr;
    if (!ast->guard_name.empty()) {
      const Operand guard = find_register(ast->guard_name);
      if (!guard.predicate) unsupported("guard is not a predicate register");
      instr.guard = guard.offset;
      instr.guard_negated = ast->guard_negated;
    }
    auto [it, is_new] = opcode_index_.try_emplace(ast->opcode, (uint16_t)program.opcode_names.size());
    if (is_new) program.opcode_names.push_back(ast->opcode);
    instr.opcode_index = it->second;
    auto op = op_table().find(std::string(ast->parts[0]));
    if (op == op_table().end()) unsupported();
    try {
      op->second(*this, *ast, instr);
    } catch (const std::out_of_range&) {
      unsupported("missing operand or modifier");
    }
    if (!instr.fn) unsupported();
  }
  // Falling off the end of a function returns.
  static const InstrAst implicit_return = [] {
    InstrAst a;
    a.opcode = "ret";
    a.parts.push_back("ret");
    return a;
  }();
  ast = &implicit_return;
  Instr& last = program.code[entry + f.instructions.size()];
  last.ast = ast;
  op_table().at("ret")(*this, *ast, last);
  auto [it, is_new] = opcode_index_.try_emplace("ret", (uint16_t)program.opcode_names.size());
  if (is_new) program.opcode_names.push_back("ret");
  last.opcode_index = it->second;
}

void DecodeContext::decode_kernel(const FunctionAst& entry) {
  program.kernel_name = entry.name;
  program.entry = &entry;
  program.register_bytes = kFirstRegister;
  program.row_bytes.resize(kFirstRegister / kRegisterRow);  // the carry flag is a lane mask
  constant(0, 8);
  for (auto& p : entry.params) {
    program.param_bytes = align_up(program.param_bytes, std::max(1u, p.align));
    program.params.push_back({p.name, program.param_bytes, (uint32_t)p.bytes, p.align, is_float(p.type),
                              p.is_array ? ScalarType::None : p.type});
    program.param_bytes += (uint32_t)p.bytes;
  }
  std::vector<const FunctionAst*> order;
  collect_functions(entry, order);
  uint32_t code_size = 0;
  for (auto* f : order) {
    layout_function(*f);
    layouts_[f].entry = code_size;
    if (!f->is_entry) program.callees[callee_index_[f->name]].entry = code_size;
    code_size += (uint32_t)f->instructions.size() + 1;
  }
  program.local_bytes = align_up(std::max(16u, program.local_bytes), 16);
  layout_shared(order);
  program.code.resize(code_size);
  for (auto* f : order) decode_function(*f);
  watch_wgmma_registers(program);
}

}  // namespace hunyuan_kernels::simulator
