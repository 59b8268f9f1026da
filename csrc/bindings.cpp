// The Python module fastattn._native: raw pointers in, nothing of torch. Tensors are checked on the Python side.
#include "bindings.h"

#include "cpu/acp/plan.h"
#include "cpu/cat/plan.h"
#include "cpu/gates/plan.h"
#include "cpu/lga/plan.h"
#include "cpu/scsa/plan.h"

namespace {

using namespace fastattn;

PyObject* text(const std::string& from) { return PyUnicode_FromStringAndSize(from.data(), from.size()); }

PyObject* isa(PyObject*, PyObject*) {
    return guarded([] { return text(fastattn::isa()); });
}

PyObject* isa_levels(PyObject*, PyObject*) {
    return guarded([] {
        Reference names = own(PyList_New(0));
        for (const std::string& name : fastattn::isa_levels())
            if (PyList_Append(names.get(), own(text(name)).get()) < 0) throw PythonError();
        return names.release();
    });
}

PyObject* set_isa(PyObject*, PyObject* level) {
    return guarded([&] {
        Py_ssize_t size;
        const char* name = PyUnicode_AsUTF8AndSize(level, &size);
        if (!name) throw PythonError();
        fastattn::set_isa({name, static_cast<size_t>(size)});
        return Py_NewRef(Py_None);
    });
}

int bind_plans(PyObject* module) {
    const PyObject* done = guarded([&] {
        PlanType<&ScsaPlan::make>::bind(module, "fastattn._native.ScsaPlan");
        PlanType<&LgaPlan::make>::bind(module, "fastattn._native.LgaPlan");
        PlanType<&AcpPlan::make>::bind(module, "fastattn._native.AcpPlan");
        PlanType<&CatPlan::make>::bind(module, "fastattn._native.CatPlan");
        PlanType<&GatesPlan::make>::bind(module, "fastattn._native.GatesPlan");
        return module;
    });
    return done ? 0 : -1;
}

PyMethodDef functions[] = {
    {"isa", isa, METH_NOARGS, nullptr},
    {"isa_levels", isa_levels, METH_NOARGS, nullptr},
    {"set_isa", set_isa, METH_O, nullptr},
    {},
};

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(bind_plans)},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "fastattn._native",
    "fastattn's compiled CPU kernels; use fastattn.functional instead",
    0,
    functions,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
