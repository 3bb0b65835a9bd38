// Python surface of the simulator: hunyuan_kernels._C.simulator with Module, Gpu, TensorMap, Report and SimError.
#include "bindings/python_module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

#include "simulator/simulator.h"

namespace py = pybind11;

namespace hunyuan_kernels {
namespace {

using namespace simulator;

constexpr const char* kSchedules[] = {"random", "hold_warps", "hold_block", "hold_copies"};  // of enum Schedule

struct PyTensorMap {
  TensorMap map;
  py::object tensor;  // kept alive
  MemoryRange range;
};

// The bytes between the lowest and the highest element of an array with these strides (in bytes).
MemoryRange span_of(uint64_t address, const py::tuple& shape, const py::tuple& strides, int64_t scale, int64_t item) {
  int64_t low = 0, high = item;
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t extent = shape[i].cast<int64_t>(), stride = strides[i].cast<int64_t>() * scale;
    if (extent == 0) return {address, 0, "", false};
    (stride < 0 ? low : high) += (extent - 1) * stride;
  }
  return {address + low, static_cast<uint64_t>(high - low), "", false};
}

MemoryRange memory_of(const py::object& o) {
  if (py::hasattr(o, "untyped_storage")) {
    const std::string device = py::str(o.attr("device").attr("type"));
    if (device != "cpu")
      throw py::type_error("a tensor on device '" + device + "' was given; the simulator needs CPU tensors");
    const int64_t item = o.attr("element_size")().cast<int64_t>();
    return span_of(o.attr("data_ptr")().cast<uint64_t>(), py::tuple(o.attr("shape")), py::tuple(o.attr("stride")()),
                   item, item);
  }
  if (py::hasattr(o, "__array_interface__")) {
    py::dict d = o.attr("__array_interface__");
    MemoryRange range = span_of(d["data"].cast<py::tuple>()[0].cast<uint64_t>(), o.attr("shape"), o.attr("strides"), 1,
                                o.attr("itemsize").cast<int64_t>());
    range.read_only = d["data"].cast<py::tuple>()[1].cast<bool>();
    return range;
  }
  throw py::type_error("'" + std::string(py::str(py::type::of(o).attr("__name__"))) +
                       "' was given; allowed are int, float, None, bytes, TensorMap, numpy arrays and CPU tensors");
}

Argument to_argument(const py::handle& h) {
  Argument a;
  if (h.is_none()) return a;  // a null pointer
  if (py::isinstance<py::int_>(h)) {
    int overflow = 0;
    a.integer = PyLong_AsLongLongAndOverflow(h.ptr(), &overflow);
    if (overflow > 0) {  // the upper half of an unsigned 64-bit number
      a.integer = static_cast<int64_t>(PyLong_AsUnsignedLongLong(h.ptr()));
      if (PyErr_Occurred()) throw py::error_already_set();
    } else if (overflow < 0) {
      throw py::value_error("integer argument is below -2^63");
    }
  } else if (py::isinstance<py::float_>(h)) {
    a.kind = Argument::Kind::Real;
    a.real = h.cast<double>();
  } else if (py::isinstance<PyTensorMap>(h)) {
    const auto& m = h.cast<const PyTensorMap&>();
    a = Argument::of_bytes(&m.map, sizeof(TensorMap));
    a.ranges.push_back(m.range);
  } else if (py::isinstance<py::bytes>(h)) {
    const std::string s = h.cast<std::string>();
    a = Argument::of_bytes(s.data(), s.size());
  } else if (py::hasattr(h, "dtype") && py::hasattr(h, "item") && !py::hasattr(h, "untyped_storage") &&
             py::len(h.attr("shape")) == 0) {
    return to_argument(h.attr("item")());  // numpy scalar
  } else {
    a.kind = Argument::Kind::Pointer;
    const MemoryRange range = memory_of(py::reinterpret_borrow<py::object>(h));
    a.integer =
        static_cast<int64_t>(py::hasattr(h, "untyped_storage") ? h.attr("data_ptr")().cast<uint64_t>()
                                                               : h.attr("ctypes").attr("data").cast<uint64_t>());
    a.ranges.push_back(range);
  }
  return a;
}

std::vector<Argument> to_arguments(const py::sequence& list) {
  std::vector<Argument> arguments;
  for (auto h : list) arguments.push_back(to_argument(h));
  return arguments;
}

void fill_dimensions(uint32_t* out, const py::object& o, const char* what) {
  std::vector<int64_t> values;
  if (py::isinstance<py::int_>(o))
    values.push_back(o.cast<int64_t>());
  else
    for (auto v : o) values.push_back(v.cast<int64_t>());
  if (values.empty() || values.size() > 3) throw py::value_error(std::string(what) + " needs one to three dimensions");
  values.resize(3, 1);
  for (int i = 0; i < 3; ++i) {
    if (values[i] < 0 || values[i] > 0xffffffffll)
      throw py::value_error(std::string(what) + " has the dimension " + std::to_string(values[i]));
    out[i] = static_cast<uint32_t>(values[i]);
  }
}

LaunchConfig to_config(const py::object& grid, const py::object& block, const py::object& cluster, int64_t smem_bytes,
                       bool programmatic) {
  LaunchConfig config;
  fill_dimensions(config.grid, grid, "grid");
  fill_dimensions(config.block, block, "block");
  fill_dimensions(config.cluster, cluster, "cluster");
  if (smem_bytes < 0 || smem_bytes > 0xffffffffll) throw py::value_error("smem_bytes is " + std::to_string(smem_bytes));
  config.shared_bytes = static_cast<uint32_t>(smem_bytes);
  config.programmatic_stream_serialization = programmatic;
  return config;
}

}  // namespace

void Gpu::enqueue(const Module& module, const std::string& kernel, const py::object& grid, const py::object& block,
                  const py::object& cluster, int64_t smem_bytes, const py::sequence& args, bool programmatic) {
  device.enqueue(module, kernel, to_config(grid, block, cluster, smem_bytes, programmatic), to_arguments(args));
  keep_alive.push_back(py::cast(&module, py::return_value_policy::reference));
  keep_alive.push_back(args);
}

std::vector<Report> Gpu::synchronize() {
  py::gil_scoped_release release;
  return device.synchronize();
}

Report Gpu::launch(const Module& module, const std::string& kernel, const py::object& grid, const py::object& block,
                   const py::object& cluster, int64_t smem_bytes, const py::sequence& args) {
  const LaunchConfig config = to_config(grid, block, cluster, smem_bytes, false);
  std::vector<Argument> arguments = to_arguments(args);
  py::gil_scoped_release release;
  return device.launch(module, kernel, config, std::move(arguments));
}

namespace {

// Each entry: dict(gpu=, module=, kernel=, grid=, block=, cluster=, smem_bytes=, args=).
std::vector<Report> launch_several(const py::list& launches) {
  std::vector<LaunchRequest> requests;
  for (auto h : launches) {
    py::dict d = py::reinterpret_borrow<py::dict>(h);
    auto get = [&](const char* key, const py::object& fallback) {
      return d.contains(key) ? py::object(d[key]) : fallback;
    };
    const LaunchConfig config = to_config(d["grid"], d["block"], get("cluster", py::int_(1)),
                                          get("smem_bytes", py::int_(0)).cast<int64_t>(), false);
    requests.push_back(d["gpu"].cast<Gpu&>().device.request(
        d["module"].cast<Module&>(), d["kernel"].cast<std::string>(), config, to_arguments(get("args", py::list()))));
  }
  py::gil_scoped_release release;
  return launch_together(requests);
}

PyTensorMap make_tensor_map(const std::string& dtype, const py::object& tensor, const std::vector<uint64_t>& dims,
                            const std::vector<uint64_t>& strides, const std::vector<uint32_t>& box,
                            std::vector<uint32_t> element_strides, uint32_t swizzle, const std::string& fill,
                            uint64_t offset) {
  static const std::map<std::string, TensorDataType> types = {
      {"u8", TensorDataType::U8},     {"e4m3", TensorDataType::U8},   {"e5m2", TensorDataType::U8},
      {"s8", TensorDataType::U8},     {"u16", TensorDataType::U16},   {"u32", TensorDataType::U32},
      {"s32", TensorDataType::S32},   {"u64", TensorDataType::U64},   {"s64", TensorDataType::S64},
      {"f16", TensorDataType::F16},   {"f32", TensorDataType::F32},   {"f64", TensorDataType::F64},
      {"bf16", TensorDataType::BF16}, {"tf32", TensorDataType::TF32},
  };
  auto type = types.find(dtype);
  if (type == types.end()) throw py::value_error("invalid tensor map: unknown dtype '" + dtype + "'");
  if (box.size() != dims.size() || strides.size() + 1 != dims.size())
    throw py::value_error("invalid tensor map: box needs one entry per dimension, strides one less");
  if (element_strides.empty()) element_strides.assign(dims.size(), 1);
  if (element_strides.size() != dims.size())
    throw py::value_error("invalid tensor map: element_strides needs one entry per dimension");
  if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
    throw py::value_error("invalid tensor map: swizzle is " + std::to_string(swizzle) + ", not 0, 32, 64 or 128");
  if (fill != "zero" && fill != "nan") throw py::value_error("invalid tensor map: oob_fill is not 'zero' or 'nan'");
  PyTensorMap m;
  m.tensor = tensor;
  m.range = memory_of(tensor);
  TensorMapDescription d;
  d.type = static_cast<uint32_t>(type->second);
  d.rank = static_cast<uint32_t>(dims.size());
  d.address = m.range.address + offset;
  d.dims = dims.data();
  d.strides = strides.data();
  d.box = box.data();
  d.element_strides = element_strides.data();
  d.swizzle = swizzle == 128 ? 3 : swizzle / 32;
  d.oob_fill = fill == "nan";
  try {
    m.map = TensorMap::encode(d);
  } catch (const SimError& e) {
    throw py::value_error(e.what());
  }
  uint64_t last = m.map.address + m.map.element_bytes() * m.map.dims[0];
  for (int i = 1; i < m.map.rank; ++i) last += (m.map.dims[i] - 1) * m.map.strides[i - 1];
  if (last > m.range.address + m.range.bytes)
    throw py::value_error("invalid tensor map: it describes more memory than the tensor holds");
  return m;
}

py::dict shared_counters(const Counters& c) {
  static const char* names[] = {"ld.1", "ld.2", "ld.4",  "ld.8",     "ld.16",    "st.1",  "st.2",
                                "st.4", "st.8", "st.16", "ldmatrix", "stmatrix", "atomic"};
  py::dict shared;
  for (int kind = 0; kind < Counters::SharedKinds; ++kind) {
    const Counters::SharedAccess& access = c.shared[kind];
    if (access.requests == 0) continue;
    py::dict entry;
    entry["requests"] = access.requests;
    entry["wavefronts"] = access.wavefronts;
    entry["extra_wavefronts"] = access.extra_wavefronts;
    shared[names[kind]] = entry;
  }
  return shared;
}

py::dict counter_dict(const Report& r) {
  const Counters& c = r.counters;
  py::dict d;
#define COUNTER(name) d[#name] = c.name
  COUNTER(blocks);
  COUNTER(warps);
  COUNTER(seconds);
  COUNTER(global_load_requests);
  COUNTER(global_store_requests);
  COUNTER(global_load_sectors);
  COUNTER(global_store_sectors);
  COUNTER(global_load_ideal_sectors);
  COUNTER(global_store_ideal_sectors);
  COUNTER(global_load_bytes);
  COUNTER(global_store_bytes);
  COUNTER(tma_load_bytes);
  COUNTER(tma_store_bytes);
  COUNTER(tma_loads);
  COUNTER(tma_stores);
  COUNTER(cp_async_bytes);
  COUNTER(atomic_requests);
  COUNTER(barrier_waits);
  COUNTER(mbarrier_waits);
  COUNTER(cluster_barrier_waits);
  COUNTER(fences);
  COUNTER(proxy_fences);
  COUNTER(mma_count);
  COUNTER(mma_flops);
#undef COUNTER
  d["shared"] = shared_counters(c);
  return d;
}

const ModuleVariable& variable_of(const Module& module, const std::string& name) {
  const ModuleVariable* variable = module.find_variable(name);
  if (!variable) throw py::key_error("the module has no variable '" + name + "'");
  return *variable;
}

void register_module(py::module_& m) {
  py::class_<Module>(m, "Module", "A PTX file")
      .def(py::init<std::string>(), py::arg("ptx_text"))
      .def("kernels", &Module::kernel_names, "names of the entry functions")
      .def(
          "unsupported",
          [](Module& self) {
            std::vector<std::string> errors;
            for (auto& name : self.kernel_names()) {
              try {
                self.program(name);
              } catch (const SimError& e) {
                errors.push_back(e.what());
              }
            }
            return errors;
          },
          "decodes every kernel and lists what cannot be simulated")
      .def("static_smem_bytes",
           [](Module& self, const std::string& name) { return self.kernel_info(name).static_shared_bytes; })
      .def("global_address",
           [](Module& self, const std::string& name) {
             const ModuleVariable& v = variable_of(self, name);
             return std::make_pair(v.address, v.bytes);
           })
      .def("read_global",
           [](Module& self, const std::string& name) {
             const ModuleVariable& v = variable_of(self, name);
             return py::bytes(reinterpret_cast<const char*>(v.address), v.bytes);
           })
      .def("write_global", [](Module& self, const std::string& name, const std::string& data) {
        const ModuleVariable& v = variable_of(self, name);
        if (data.size() > v.bytes) throw py::value_error("data larger than the variable");
        memcpy(reinterpret_cast<void*>(v.address), data.data(), data.size());
      });
}

void register_gpu(py::module_& m) {
  py::class_<Gpu> gpu(m, "Gpu", "A simulated device; keyword arguments set its options");
  gpu.def(py::init([](uint64_t seed, uint32_t sms, const py::kwargs& kwargs) {
            auto self = std::make_unique<Gpu>();
            self->device.options.seed = seed;
            self->device.options.num_sms = sms;
            py::object object = py::cast(self.get(), py::return_value_policy::reference);
            for (auto item : kwargs) {
              if (!py::hasattr(object, item.first))
                throw py::type_error("Gpu has no option '" + item.first.cast<std::string>() + "'");
              object.attr(item.first) = item.second;
            }
            return self;
          }),
          py::arg("seed") = 0, py::arg("num_sms") = 8);
  gpu.def(
      "register",
      [](Gpu& g, const py::object& tensor, const std::string& name) {
        const MemoryRange range = memory_of(tensor);
        g.device.register_memory(reinterpret_cast<const void*>(range.address), range.bytes, name, range.read_only);
        g.keep_alive.push_back(tensor);
      },
      py::arg("tensor"), py::arg("name") = "registered",
      "makes memory accessible that kernels reach through pointers in memory");
  gpu.def("launch", &Gpu::launch, py::arg("module"), py::arg("kernel"), py::arg("grid"), py::arg("block"),
          py::arg("cluster") = 1, py::arg("smem_bytes") = 0, py::arg("args") = py::list(),
          "runs a kernel and returns its report");
  gpu.def("enqueue", &Gpu::enqueue, py::arg("module"), py::arg("kernel"), py::arg("grid"), py::arg("block"),
          py::arg("cluster") = 1, py::arg("smem_bytes") = 0, py::arg("args") = py::list(),
          py::arg("programmatic_stream_serialization") = false, "queues a kernel; synchronize() runs the queue");
  gpu.def("synchronize", &Gpu::synchronize, "runs what is queued; one report per launch");
#define OPTION(name)                                             \
  gpu.def_property(                                              \
      #name, [](const Gpu& g) { return g.device.options.name; }, \
      [](Gpu& g, decltype(Options::name) value) { g.device.options.name = value; })
  OPTION(seed);
  OPTION(num_sms);
  OPTION(check_uninitialized_shared);
  OPTION(check_proxy_fence);
  OPTION(check_async_hazards);
  OPTION(check_races);
  OPTION(split_warps);
  OPTION(fp8_accumulator_bits);
  OPTION(max_instructions);
  OPTION(livelock_instructions);
  OPTION(async_latency);
  OPTION(max_shared_bytes);
  OPTION(capability);
  OPTION(eager_async);
  OPTION(assume_predecessor);
#undef OPTION
  gpu.def_property(
      "schedule", [](const Gpu& g) { return kSchedules[static_cast<size_t>(g.device.options.schedule)]; },
      [](Gpu& g, const std::string& name) {
        const auto* found = std::find(std::begin(kSchedules), std::end(kSchedules), name);
        if (found == std::end(kSchedules))
          throw py::value_error("schedule is '" + name + "', not random, hold_warps, hold_block or hold_copies");
        g.device.options.schedule = static_cast<Schedule>(found - kSchedules);
      });
}

}  // namespace

void register_simulator(py::module_& parent) {
  py::module_ m = parent.def_submodule("simulator", "Functional simulator of PTX for sm_90a on the CPU");
  py::register_exception<SimError>(m, "SimError", PyExc_RuntimeError);
  register_module(m);
  py::class_<PyTensorMap>(m, "TensorMap")
      .def(py::init(&make_tensor_map), py::arg("dtype"), py::arg("tensor"), py::arg("dims"), py::arg("strides"),
           py::arg("box"), py::arg("element_strides") = std::vector<uint32_t>{}, py::arg("swizzle") = 0,
           py::arg("oob_fill") = "zero", py::arg("offset") = 0,
           "dims, box: innermost first; strides: bytes, of dimensions 1..rank-1")
      .def("to_bytes", [](const PyTensorMap& self) {
        return py::bytes(reinterpret_cast<const char*>(&self.map), sizeof(TensorMap));
      });
  py::class_<Report>(m, "Report")
      .def_readonly("kernel", &Report::kernel)
      .def_readonly("output", &Report::output)
      .def_readonly("warp_instructions", &Report::warp_instructions)
      .def_readonly("lane_instructions", &Report::lane_instructions)
      .def_readonly("by_class", &Report::by_class)
      .def_readonly("by_opcode", &Report::by_opcode)
      .def_readonly("by_line", &Report::by_line)
      .def_property_readonly("counters", &counter_dict)
      .def("__str__", &Report::str)
      .def("__repr__", &Report::str);
  register_gpu(m);
  m.def("launch_together", &launch_several, py::arg("launches"),
        "runs several launches at the same time, one per simulated device; each entry is a dict with gpu, module, "
        "kernel, grid, block, and optionally cluster, smem_bytes and args");
}

}  // namespace hunyuan_kernels
