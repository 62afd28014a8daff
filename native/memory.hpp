// Memory for many plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

namespace dynamo {

// It grows without a copy where the system can move pages, and what is new in it is not touched: pages that nobody has
// written to cost nothing, and those of a large index cost as much as all else that is done to fill them.
template <typename T>
class Memory {
    static_assert(std::is_trivially_copyable<T>::value, "it is moved as bytes");

public:
    Memory() = default;
    explicit Memory(size_t size) { grow(size); }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { std::free(data_); }

    bool empty() const { return !size_; }
    size_t size() const { return size_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }

    // What is new has no value yet. When memory is short, std::bad_alloc, and nothing has changed.
    void grow(size_t size) {
        void* data = size > SIZE_MAX / sizeof(T) ? nullptr : std::realloc(data_, size * sizeof(T));
        if (!data) throw std::bad_alloc();
        data_ = static_cast<T*>(data);
        size_ = size;
    }

    void swap(Memory& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace dynamo
