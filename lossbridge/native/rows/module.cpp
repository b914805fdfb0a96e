// The extension module `_rows`: a call's arguments as Python's numbers, in the order of `Call` in rows.py.
// Python's limited API (CMake defines Py_LIMITED_API), so that one file serves every version from 3.11 on.
#include <Python.h>

#include <new>
#include <type_traits>

#include "rows.h"
#include "units.h"
#include "xla.h"

namespace {

using lossbridge::Call;

// Takes one argument after the other. After an error the numbers mean nothing, and PyErr_Occurred() tells.
// Memory is an address, or an object that lends its own, which the caller holds: NumPy takes longer to tell an address
// than many a call to be computed.
struct Arguments {
  PyObject *const *next;
  int64_t integer() { return PyLong_AsLongLong(*next++); }
  int32_t small() { return static_cast<int32_t>(PyLong_AsLong(*next++)); }
  double number() { return PyFloat_AsDouble(*next++); }
  bool truth() { return PyObject_IsTrue(*next++) == 1; }
  template <class T>
  T *pointer() {
    PyObject *memory = *next++;
    if (PyLong_Check(memory)) return static_cast<T *>(PyLong_AsVoidPtr(memory));
    Py_buffer buffer;
    if (PyObject_GetBuffer(memory, &buffer, std::is_const<T>::value ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0) return nullptr;
    T *address = static_cast<T *>(buffer.buf);
    PyBuffer_Release(&buffer);
    return address;
  }
};

constexpr Py_ssize_t ARGUMENTS = 33;

Call parse(Arguments a) {
  Call c;
  c.rule = static_cast<lossbridge::Rule>(a.small());
  c.dtype = static_cast<lossbridge::Dtype>(a.small());
  c.target_dtype = static_cast<lossbridge::Dtype>(a.small());
  c.elementwise = a.truth();
  c.outer = a.integer();
  c.classes = a.integer();
  c.inner = a.integer();
  c.pred = a.pointer<const void>();
  c.target = a.pointer<const void>();
  c.label_smoothing = a.number();
  c.epsilon = a.number();
  c.temperature = a.number();
  c.gamma = a.number();
  c.logit_scale = a.number();
  c.softcap = a.number();
  c.z_loss = a.number();
  c.beta = a.number();
  c.mixture_scaling = a.number();
  c.per_class_number = a.number();
  c.per_class = a.pointer<const void>();
  c.balanced = a.truth();
  c.domain = a.truth();
  c.counted = a.pointer<const uint8_t>();
  c.weight = a.pointer<const void>();
  c.divides = static_cast<lossbridge::Divisor>(a.small());
  c.divisor = a.number();
  c.upstream = a.number();
  c.upstream_each = a.pointer<const void>();
  c.losses = a.pointer<void>();
  c.result = a.pointer<void>();
  c.gradient = a.pointer<void>();
  c.target_gradient = a.pointer<void>();
  c.threads = a.small();
  return c;
}

PyObject *run(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
  if (count != ARGUMENTS) return PyErr_Format(PyExc_TypeError, "run takes %zd arguments, not %zd", ARGUMENTS, count);
  const Call call = parse({arguments});
  if (PyErr_Occurred()) return nullptr;
  bool enough_memory = true;
  const auto compute = [&] {
    try {
      lossbridge::run(call);
    } catch (const std::bad_alloc &) {
      enough_memory = false;
    }
  };
  if (lossbridge::is_small(call)) {
    compute();
  } else {
    Py_BEGIN_ALLOW_THREADS;
    compute();
    Py_END_ALLOW_THREADS;
  }
  if (!enough_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyObject *advise(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "advise takes 2 arguments, not %zd", count);
  void *address = PyLong_AsVoidPtr(arguments[0]);
  const int64_t bytes = PyLong_AsLongLong(arguments[1]);
  if (PyErr_Occurred()) return nullptr;
  lossbridge::advise(address, bytes);
  Py_RETURN_NONE;
}

PyObject *instruction_set(PyObject *, PyObject *) { return PyUnicode_FromString(lossbridge::instruction_set()->name); }

template <lossbridge::xla::Error *(*handler)(lossbridge::xla::CallFrame *)>
PyObject *capsule(PyObject *, PyObject *) {
  return PyCapsule_New(reinterpret_cast<void *>(handler), nullptr, nullptr);
}

// METH_FASTCALL: a tuple of 33 numbers would be made and thrown away by every call.
template <class F>
PyCFunction as_method(F *function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"run", as_method(run), METH_FASTCALL, "Computes the call that the 33 arguments are."},
    {"advise", as_method(advise), METH_FASTCALL, "advise(address, bytes): ask for huge pages below a fresh buffer."},
    {"instruction_set", instruction_set, METH_NOARGS, "The name of the instruction set that is used."},
    {"xla_rows", capsule<lossbridge::xla_rows>, METH_NOARGS, "A handler of XLA's foreign functions, in a capsule."},
    {"xla_ratio", capsule<lossbridge::xla_ratio>, METH_NOARGS, "Another: reduce() of rows.h."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_rows", "The native rows.", 0, methods, nullptr, nullptr, nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__rows() {
  if (lossbridge::instruction_set() == nullptr) {
    PyErr_SetString(PyExc_ImportError, lossbridge::instruction_set_error().c_str());
    return nullptr;
  }
  PyObject *module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "version", LOSSBRIDGE_VERSION) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
