// What the bindings of all operations share: a plan made from Python, and its two calls. Of Python's C API only the
// limited part is used, so that one build serves every version from Py_LIMITED_API on.
#pragma once

#include <Python.h>

#include <array>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"

namespace fastattn {

// A Python exception is set.
struct PythonError {};

struct Release {
    void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Reference = std::unique_ptr<PyObject, Release>;

inline Reference own(PyObject* object) {
    if (!object) throw PythonError();
    return Reference(object);
}

// What f returns, or null with the Python exception of what it throws
template <class F>
PyObject* guarded(F&& f) {
    try {
        return f();
    } catch (const PythonError&) {
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) { PyErr_NoMemory(); } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// No destructor takes the GIL back: while Python ends, that may unwind the thread instead of returning.
template <class F>
void without_gil(F&& f) {
    PyThreadState* state = PyEval_SaveThread();
    try {
        f();
    } catch (...) {
        PyEval_RestoreThread(state);
        throw;
    }
    PyEval_RestoreThread(state);
}

inline void expect(Py_ssize_t count, Py_ssize_t expected) {
    if (count == expected) return;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
    throw PythonError();
}

inline void read(PyObject* from, int& to) {
    const long value = PyLong_AsLong(from);
    if (value == -1 && PyErr_Occurred()) throw PythonError();
    if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max())
        throw std::invalid_argument(std::to_string(value) + " is too large");
    to = static_cast<int>(value);
}

inline void read(PyObject* from, int64_t& to) {
    to = PyLong_AsLongLong(from);
    if (to == -1 && PyErr_Occurred()) throw PythonError();
}

inline void read(PyObject* from, double& to) {
    to = PyFloat_AsDouble(from);
    if (to == -1.0 && PyErr_Occurred()) throw PythonError();
}

inline void read(PyObject* from, bool& to) {
    const int truth = PyObject_IsTrue(from);
    if (truth < 0) throw PythonError();
    to = truth;
}

inline Py_ssize_t length(PyObject* sequence) {
    const Py_ssize_t size = PySequence_Size(sequence);
    if (size < 0) throw PythonError();
    return size;
}

template <class T, size_t N>
void read(PyObject* from, std::array<T, N>& to) {
    expect(length(from), N);
    for (size_t i = 0; i < N; ++i) read(own(PySequence_GetItem(from, i)).get(), to[i]);
}

template <class T>
void read(PyObject* from, std::vector<T>& to) {
    to.resize(length(from));
    for (size_t i = 0; i < to.size(); ++i) read(own(PySequence_GetItem(from, i)).get(), to[i]);
}

template <class T>
T* pointer(PyObject* address) {
    void* p = PyLong_AsVoidPtr(address);
    if (!p && PyErr_Occurred()) throw PythonError();
    return static_cast<T*>(p);
}

template <class T>
std::vector<T*> pointers(PyObject* list, Py_ssize_t count, Py_ssize_t expected) {
    if (count != expected)
        throw std::invalid_argument("expected " + std::to_string(expected) + " parameter pointers, got " +
                                    std::to_string(count));
    std::vector<T*> to(count);
    for (Py_ssize_t i = 0; i < count; ++i) to[i] = pointer<T>(own(PySequence_GetItem(list, i)).get());
    return to;
}

// The Python class of the plan that a function makes
template <auto make>
struct PlanType;

template <class Plan, class... Options, Plan (*make)(Options...)>
struct PlanType<make> {
    struct Object {
        PyObject_HEAD Plan plan;
    };

    static Plan& plan_of(PyObject* self) { return reinterpret_cast<Object*>(self)->plan; }

    static PyObject* create(PyTypeObject* type, PyObject* args, PyObject* named) {
        return guarded([&] {
            if (named && PyDict_Size(named)) throw std::invalid_argument("a plan's arguments have no names");
            expect(PyTuple_Size(args), sizeof...(Options));
            std::tuple<std::decay_t<Options>...> options;
            Py_ssize_t next = 0;
            std::apply([&](auto&... each) { (read(PyTuple_GetItem(args, next++), each), ...); }, options);
            Plan plan = std::apply(make, std::move(options));
            const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
            Reference self = own(allocate(type, 0));
            new (&plan_of(self.get())) Plan(std::move(plan));
            return self.release();
        });
    }

    static void destroy(PyObject* self) {
        PyTypeObject* type = Py_TYPE(self);
        plan_of(self).~Plan();
        reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
        Py_DECREF(reinterpret_cast<PyObject*>(type));
    }

    static PyObject* saved_size(PyObject* self, void*) { return PyLong_FromLongLong(plan_of(self).saved_size()); }

    // x, out, saved, params, threads
    static PyObject* call_forward(PyObject* self, PyObject* const* from, Py_ssize_t count) {
        return guarded([&] {
            expect(count, 5);
            const Plan& plan = plan_of(self);
            const auto params = pointers<const void>(from[3], length(from[3]), plan.param_count());
            ForwardArgs args{pointer<const void>(from[0]), pointer<void>(from[1]), pointer<float>(from[2]),
                             params.data(), 0};
            read(from[4], args.threads);
            without_gil([&] { forward(plan, args); });
            return Py_NewRef(Py_None);
        });
    }

    // grad_out, x, saved, params, grad_x, grad_params (none: not needed), threads
    static PyObject* call_backward(PyObject* self, PyObject* const* from, Py_ssize_t count) {
        return guarded([&] {
            expect(count, 7);
            const Plan& plan = plan_of(self);
            const auto params = pointers<const void>(from[3], length(from[3]), plan.param_count());
            const Py_ssize_t wanted = length(from[5]);
            const auto gradients = pointers<void>(from[5], wanted, wanted ? plan.param_count() : 0);
            BackwardArgs args{pointer<const void>(from[0]),
                              pointer<const void>(from[1]),
                              pointer<const float>(from[2]),
                              params.data(),
                              pointer<void>(from[4]),
                              wanted ? gradients.data() : nullptr,
                              0};
            read(from[6], args.threads);
            without_gil([&] { backward(plan, args); });
            return Py_NewRef(Py_None);
        });
    }

    // `name` with that of the module
    static void bind(PyObject* module, const char* name) {
        static PyMethodDef methods[] = {
            {"forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_forward)), METH_FASTCALL,
             nullptr},
            {"backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_backward)), METH_FASTCALL,
             nullptr},
            {},
        };
        static PyGetSetDef properties[] = {{"saved_size", saved_size, nullptr, nullptr, nullptr}, {}};
        PyType_Slot slots[] = {
            {Py_tp_new, reinterpret_cast<void*>(create)},
            {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
            {Py_tp_methods, methods},
            {Py_tp_getset, properties},
            {},
        };
        PyType_Spec spec{name, sizeof(Object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
        const Reference type = own(PyType_FromModuleAndSpec(module, &spec, nullptr));
        if (PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(type.get())) < 0) throw PythonError();
    }
};

}  // namespace fastattn
