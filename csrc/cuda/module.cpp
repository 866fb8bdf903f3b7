// The Python module `comer_d2._C_cuda`, whose import registers the CUDA kernels.

#include <Python.h>

#include "../ms_deform_attn.h"

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() {
  PyObject* created = PyModule_Create(&module);
  if (created != nullptr) {
    PyModule_AddIntConstant(created, "op_version", comer_d2::kOpVersion);
  }
  return created;
}
