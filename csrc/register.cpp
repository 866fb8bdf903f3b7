// The schemas, and the Python module `comer_d2._C` whose import registers them.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

// spatial_shapes is the flat list H0, W0, H1, W1, ...: integers, so that no call waits for a device.
STABLE_TORCH_LIBRARY(comer_d2, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights, bool deterministic=False) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor projected, "
      "Tensor reference_points) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor projected, Tensor reference_points, bool deterministic=False) -> (Tensor, Tensor)");
  m.def(
      "token_depthwise_conv(Tensor tokens, SymInt[] spatial_shapes, Tensor weight, Tensor bias, "
      "int[] kernel_sizes) -> Tensor");
  m.def(
      "token_depthwise_conv_backward(Tensor grad_output, Tensor tokens, SymInt[] spatial_shapes, "
      "Tensor weight, Tensor bias, int[] kernel_sizes) -> (Tensor, Tensor, Tensor)");
}

namespace {

PyObject* cpu_capability(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(comer_d2::cpu::capability_name());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"cpu_capability", cpu_capability, METH_NOARGS, "Name of the instruction set in use."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__C() {
  PyObject* created = PyModule_Create(&module);
  if (created != nullptr) {
    PyModule_AddIntConstant(created, "op_version", comer_d2::kOpVersion);
  }
  return created;
}
