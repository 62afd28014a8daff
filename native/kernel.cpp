// dynamo.router._kernel: xxh3.hpp and block_index.hpp for Python. What comes in is checked here.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <new>
#include <stdexcept>

#include "block_index.hpp"
#include "xxh3.hpp"

namespace {

using dynamo::BlockIndex;
using dynamo::Hashes;
using dynamo::SlotMatch;
using dynamo::Xxh3;

constexpr uint64_t kChainSeed = 1337;   // dynamo.tokens.HASH_SEED
constexpr long long kSlotsMax = 65536;  // dynamo.router.block_index.SLOTS_MAX
constexpr Py_ssize_t kTokenBytes = 4, kHashBytes = 8;
constexpr size_t kLongPromptBytes = 65536;  // from here on hashing lets other threads run

PyObject* one_hash;  // array.array("Q", [0]), of which arrays are made

// Owned by this scope.
class Reference {
public:
    explicit Reference(PyObject* object) : object_(object) {}
    Reference(const Reference&) = delete;
    Reference& operator=(const Reference&) = delete;
    ~Reference() { Py_XDECREF(object_); }
    explicit operator bool() const { return object_ != nullptr; }
    PyObject* get() const { return object_; }
    PyObject* release() {
        PyObject* object = object_;
        object_ = nullptr;
        return object;
    }

private:
    PyObject* object_;
};

// A buffer for as long as this scope lasts; nothing in it moves meanwhile.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (view_.obj) PyBuffer_Release(&view_);
    }

    // One after the other, without gaps: unsigned integers of `item_bytes`, or bytes. False: an exception is set.
    bool read(PyObject* object, Py_ssize_t item_bytes, const char* what) {
        if (PyObject_GetBuffer(object, &view_, PyBUF_ND | PyBUF_FORMAT)) return false;
        if (!is_unsigned(item_bytes)) {
            PyErr_Format(PyExc_TypeError, "%s must be a buffer of u%zd or bytes, not of format '%s'", what,
                         8 * item_bytes, format());
            return false;
        }
        if (view_.len % item_bytes) {
            PyErr_Format(PyExc_ValueError, "%s: %zd bytes are not a multiple of %zd", what, view_.len, item_bytes);
            return false;
        }
        return true;
    }

    bool write(PyObject* object) { return !PyObject_GetBuffer(object, &view_, PyBUF_WRITABLE); }

    void* data() const { return view_.buf; }
    size_t bytes() const { return static_cast<size_t>(view_.len); }

private:
    const char* format() const { return view_.format ? view_.format : "B"; }

    bool is_unsigned(Py_ssize_t item_bytes) const {
        const char* code = format();
        if (*code == '@' || *code == '=' || *code == '<') ++code;
        if (!*code || code[1]) return false;
        return view_.itemsize == 1 ? *code == 'B' : view_.itemsize == item_bytes && std::strchr("ILQN", *code);
    }

    Py_buffer view_ = {};
};

// What `call` returns; nullptr and an exception when memory is short.
template <typename Call>
PyObject* guarded(Call call) {
    try {
        return call();
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {
    }
    return PyErr_NoMemory();
}

bool check_arguments(const char* name, Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, not %zd", name, wanted, given);
    return false;
}

// An integer from 0 to `end` - 1. False: an exception is set.
bool read_number(PyObject* object, const char* what, long long end, uint32_t* number) {
    int overflow = 0;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (value == -1 && PyErr_Occurred()) return false;
    if (overflow || value < 0 || value >= end) {
        PyErr_Format(PyExc_ValueError, "%s is between 0 and %lld, not %R", what, end - 1, object);
        return false;
    }
    *number = static_cast<uint32_t>(value);
    return true;
}

bool read_slot(PyObject* object, uint32_t* slot) { return read_number(object, "a slot", kSlotsMax, slot); }
bool read_tier(PyObject* object, uint32_t* tier) { return read_number(object, "a tier", dynamo::kTiers, tier); }

bool read_seed(PyObject* object, uint64_t* seed) {
    *seed = PyLong_AsUnsignedLongLong(object);
    return !(*seed == static_cast<uint64_t>(-1) && PyErr_Occurred());
}

Hashes hashes_in(const Buffer& buffer) { return Hashes(buffer.data(), buffer.bytes() / kHashBytes); }

// An array of u64 of that length.
PyObject* new_hashes(size_t size) { return PySequence_Repeat(one_hash, static_cast<Py_ssize_t>(size)); }

void chain(const uint8_t* tokens, size_t block_bytes, size_t blocks, uint64_t seed, uint8_t* hashes) {
    Xxh3 local(seed), sequence(kChainSeed);
    uint64_t parent = 0;
    for (size_t i = 0; i < blocks; ++i) {
        uint64_t hash = local(tokens + block_bytes * i, block_bytes);
        parent = i ? sequence.pair(parent, hash) : hash;
        std::memcpy(hashes + kHashBytes * i, &parent, kHashBytes);
    }
}

// Arguments: token_ids, block_size, seed. Returns an array of hashes, seen through `hashes`; or nullptr.
PyObject* hash_prompt(PyObject* const* args, Buffer* hashes) {
    Buffer tokens;
    uint64_t seed;
    if (!tokens.read(args[0], kTokenBytes, "token_ids")) return nullptr;
    Py_ssize_t block_size = PyLong_AsSsize_t(args[1]);
    if (block_size == -1 && PyErr_Occurred()) return nullptr;
    if (block_size < 1) return PyErr_Format(PyExc_ValueError, "block_size must be at least 1, not %zd", block_size);
    if (!read_seed(args[2], &seed)) return nullptr;

    size_t blocks = tokens.bytes() / kTokenBytes / static_cast<size_t>(block_size);
    Reference array(new_hashes(blocks));
    if (!array || !hashes->write(array.get())) return nullptr;
    auto from = static_cast<const uint8_t*>(tokens.data());
    auto to = static_cast<uint8_t*>(hashes->data());
    size_t block_bytes = kTokenBytes * static_cast<size_t>(block_size);
    if (tokens.bytes() < kLongPromptBytes) {
        chain(from, block_bytes, blocks, seed, to);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        chain(from, block_bytes, blocks, seed, to);
        Py_END_ALLOW_THREADS;
    }
    return array.release();
}

PyObject* xxh3_64(PyObject*, PyObject* const* args, Py_ssize_t given) {
    Buffer data;
    uint64_t seed;
    if (!check_arguments("xxh3_64", given, 2) || !data.read(args[0], 1, "data") || !read_seed(args[1], &seed)) {
        return nullptr;
    }
    if (data.bytes() < 4) return PyErr_Format(PyExc_ValueError, "data must be at least 4 bytes, not %zu", data.bytes());
    return PyLong_FromUnsignedLongLong(Xxh3(seed)(static_cast<const uint8_t*>(data.data()), data.bytes()));
}

PyObject* sequence_hashes(PyObject*, PyObject* const* args, Py_ssize_t given) {
    Buffer hashes;
    return check_arguments("sequence_hashes", given, 3) ? hash_prompt(args, &hashes) : nullptr;
}

// The type BlockIndex.

struct IndexObject {
    PyObject_HEAD
    BlockIndex* index;
};

BlockIndex& index_of(PyObject* self) { return *reinterpret_cast<IndexObject*>(self)->index; }

PyObject* index_new(PyTypeObject* type, PyObject* args, PyObject* keywords) {
    Py_ssize_t max_blocks;
    if (keywords && PyDict_GET_SIZE(keywords)) {
        return PyErr_Format(PyExc_TypeError, "BlockIndex() takes no keyword arguments");
    }
    if (!PyArg_ParseTuple(args, "n:BlockIndex", &max_blocks)) return nullptr;
    if (max_blocks < 1) return PyErr_Format(PyExc_ValueError, "max_blocks must be at least 1, not %zd", max_blocks);
    return guarded([&]() -> PyObject* {
        auto index = new BlockIndex(static_cast<size_t>(max_blocks));
        PyObject* self = type->tp_alloc(type, 0);
        if (self) {
            reinterpret_cast<IndexObject*>(self)->index = index;
        } else {
            delete index;
        }
        return self;
    });
}

void index_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete &index_of(self);
    type->tp_free(self);
    Py_DECREF(type);
}

Py_ssize_t index_len(PyObject* self) { return static_cast<Py_ssize_t>(index_of(self).size()); }

PyObject* index_pruned(PyObject* self, void*) { return PyLong_FromSize_t(index_of(self).pruned()); }

// Arguments: slot, tier, hashes.
template <void (BlockIndex::*method)(uint32_t, uint32_t, Hashes)>
PyObject* index_change(PyObject* self, const char* name, PyObject* const* args, Py_ssize_t given) {
    Buffer hashes;
    uint32_t slot, tier;
    if (!check_arguments(name, given, 3) || !read_slot(args[0], &slot) || !read_tier(args[1], &tier) ||
        !hashes.read(args[2], kHashBytes, "hashes")) {
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        (index_of(self).*method)(slot, tier, hashes_in(hashes));
        Py_RETURN_NONE;
    });
}

PyObject* index_store(PyObject* self, PyObject* const* args, Py_ssize_t given) {
    return index_change<&BlockIndex::store>(self, "store", args, given);
}

PyObject* index_remove(PyObject* self, PyObject* const* args, Py_ssize_t given) {
    return index_change<&BlockIndex::remove>(self, "remove", args, given);
}

PyObject* index_clear(PyObject* self, PyObject* const* args, Py_ssize_t given) {
    uint32_t slot;
    if (!check_arguments("clear", given, 2) || !read_slot(args[0], &slot)) return nullptr;
    size_t most = PyLong_AsSize_t(args[1]);
    if (most == static_cast<size_t>(-1) && PyErr_Occurred()) return nullptr;
    return guarded([&]() -> PyObject* { return PyLong_FromSize_t(index_of(self).clear(slot, most)); });
}

PyObject* index_held(PyObject* self, PyObject* const* args, Py_ssize_t given) {
    uint32_t slot, tier;
    if (!check_arguments("held", given, 2) || !read_slot(args[0], &slot) || !read_tier(args[1], &tier)) return nullptr;
    return guarded([&]() -> PyObject* {
        std::vector<uint64_t> held = index_of(self).held(slot, tier);
        Reference array(new_hashes(held.size()));
        Buffer hashes;
        if (!array || !hashes.write(array.get())) return nullptr;
        if (!held.empty()) std::memcpy(hashes.data(), held.data(), hashes.bytes());
        return array.release();
    });
}

PyObject* match_tuple(const SlotMatch& match) {
    Reference tuple(PyTuple_New(4));
    if (!tuple) return nullptr;
    Py_ssize_t i = 0;
    for (uint32_t number : {match.slot, match.device, match.host, match.disk}) {
        PyObject* item = PyLong_FromUnsignedLong(number);
        if (!item) return nullptr;
        PyTuple_SET_ITEM(tuple.get(), i++, item);
    }
    return tuple.release();
}

PyObject* match_list(PyObject* self, Hashes hashes) {
    return guarded([&]() -> PyObject* {
        std::vector<SlotMatch> matches = index_of(self).match(hashes);
        Reference list(PyList_New(static_cast<Py_ssize_t>(matches.size())));
        if (!list) return nullptr;
        for (size_t i = 0; i < matches.size(); ++i) {
            PyObject* item = match_tuple(matches[i]);
            if (!item) return nullptr;
            PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), item);
        }
        return list.release();
    });
}

PyObject* index_match(PyObject* self, PyObject* arg) {
    Buffer hashes;
    return hashes.read(arg, kHashBytes, "hashes") ? match_list(self, hashes_in(hashes)) : nullptr;
}

PyObject* index_hash_and_match(PyObject* self, PyObject* const* args, Py_ssize_t given) {
    if (!check_arguments("hash_and_match", given, 3)) return nullptr;
    Buffer hashes;
    Reference array(hash_prompt(args, &hashes));
    if (!array) return nullptr;
    Reference matches(match_list(self, hashes_in(hashes)));
    return matches ? PyTuple_Pack(2, array.get(), matches.get()) : nullptr;
}

PyCFunction fast(_PyCFunctionFast function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef index_methods[] = {
    {"store", fast(index_store), METH_FASTCALL, nullptr},
    {"remove", fast(index_remove), METH_FASTCALL, nullptr},
    {"clear", fast(index_clear), METH_FASTCALL, nullptr},
    {"match", index_match, METH_O, nullptr},
    {"hash_and_match", fast(index_hash_and_match), METH_FASTCALL, nullptr},
    {"held", fast(index_held), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef index_properties[] = {
    {"pruned", index_pruned, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot index_slots[] = {
    {Py_tp_doc, const_cast<char*>("dynamo.router.block_index.BlockIndex in C++")},
    {Py_tp_new, reinterpret_cast<void*>(index_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(index_dealloc)},
    {Py_tp_methods, index_methods},
    {Py_tp_getset, index_properties},
    {Py_sq_length, reinterpret_cast<void*>(index_len)},
    {0, nullptr},
};

PyType_Spec index_spec = {"dynamo.router._kernel.BlockIndex", sizeof(IndexObject), 0, Py_TPFLAGS_DEFAULT, index_slots};

PyMethodDef functions[] = {
    {"xxh3_64", fast(xxh3_64), METH_FASTCALL, "XXH3 with a seed, of at least 4 bytes."},
    {"sequence_hashes", fast(sequence_hashes), METH_FASTCALL, "dynamo.tokens.sequence_hashes in C++"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "The router's hot loops.", -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernel() {
    Reference array_module(PyImport_ImportModule("array"));
    if (!array_module) return nullptr;
    one_hash = PyObject_CallMethod(array_module.get(), "array", "C[i]", 'Q', 0);
    if (!one_hash) return nullptr;
    Reference created(PyModule_Create(&module));
    if (!created) return nullptr;
    Reference type(PyType_FromSpec(&index_spec));
    if (!type || PyModule_AddObjectRef(created.get(), "BlockIndex", type.get())) return nullptr;
    return created.release();
}
