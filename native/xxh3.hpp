// XXH3 with 64 bits and a seed, for inputs of at least four bytes: token blocks and pairs of hashes.
//
// Written from the specification, whose words it uses: doc/xxhash_spec.md of github.com/Cyan4973/xxHash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only for little-endian machines; elsewhere the Python version does the work"
#endif

namespace dynamo {

inline uint32_t load32(const uint8_t* data) {
    uint32_t value;
    std::memcpy(&value, data, sizeof value);
    return value;
}

inline uint64_t load64(const uint8_t* data) {
    uint64_t value;
    std::memcpy(&value, data, sizeof value);
    return value;
}

class Xxh3 {
public:
    explicit Xxh3(uint64_t seed) : seed_(seed) {
        for (size_t i = 0; i < kSecretSize; i += 16) {
            derive(i, seed);
            derive(i + 8, 0 - seed);
        }
    }

    uint64_t operator()(const uint8_t* data, size_t size) const {
        if (size <= 8) return from4to8(data, size);
        if (size <= 16) return from9to16(load64(data), load64(data + size - 8), size);
        if (size <= 128) return from17to128(data, size);
        if (size <= 240) return from129to240(data, size);
        return large(data, size);
    }

    // The hash of two words that follow one another.
    uint64_t pair(uint64_t first, uint64_t last) const { return from9to16(first, last, 16); }

private:
    __extension__ typedef unsigned __int128 uint128_t;

    static constexpr uint64_t kPrime32_1 = 0x9E3779B1, kPrime32_2 = 0x85EBCA77, kPrime32_3 = 0xC2B2AE3D;
    static constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87, kPrime64_2 = 0xC2B2AE3D27D4EB4F,
                              kPrime64_3 = 0x165667B19E3779F9, kPrime64_4 = 0x85EBCA77C2B2AE63,
                              kPrime64_5 = 0x27D4EB2F165667C5;
    static constexpr uint64_t kPrimeMx1 = 0x165667919E3779F9, kPrimeMx2 = 0x9FB21C651E98DF25;

    static constexpr size_t kSecretSize = 192, kStripe = 64, kStripesPerBlock = (kSecretSize - kStripe) / 8;
    static constexpr uint8_t kSecret[kSecretSize] = {
        0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
        0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
        0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
        0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
        0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
        0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
        0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
        0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
        0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
        0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
        0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
    };

    static uint64_t secret(size_t offset) { return load64(kSecret + offset); }
    static uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

    static uint64_t folded_product(uint64_t a, uint64_t b) {
        uint128_t product = static_cast<uint128_t>(a) * b;
        return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }

    static uint64_t avalanche(uint64_t x) {
        x ^= x >> 37;
        x *= kPrimeMx1;
        return x ^ x >> 32;
    }

    void derive(size_t offset, uint64_t seed) {
        uint64_t word = secret(offset) + seed;
        std::memcpy(derived_ + offset, &word, sizeof word);
    }

    uint64_t from4to8(const uint8_t* data, size_t size) const {
        uint64_t seed = seed_ ^ static_cast<uint64_t>(__builtin_bswap32(static_cast<uint32_t>(seed_))) << 32;
        uint64_t combined = load32(data + size - 4) | static_cast<uint64_t>(load32(data)) << 32;
        uint64_t value = ((secret(8) ^ secret(16)) - seed) ^ combined;
        value ^= rotate(value, 49) ^ rotate(value, 24);
        value *= kPrimeMx2;
        value ^= (value >> 35) + size;
        value *= kPrimeMx2;
        return value ^ value >> 28;
    }

    uint64_t from9to16(uint64_t first, uint64_t last, size_t size) const {
        uint64_t low = ((secret(24) ^ secret(32)) + seed_) ^ first;
        uint64_t high = ((secret(40) ^ secret(48)) - seed_) ^ last;
        return avalanche(size + __builtin_bswap64(low) + high + folded_product(low, high));
    }

    // The mixing step where the secret's offset is a multiple of 16: what the seed does to it is known already.
    uint64_t mix(const uint8_t* data, size_t offset) const {
        return folded_product(load64(data) ^ load64(derived_ + offset),
                              load64(data + 8) ^ load64(derived_ + offset + 8));
    }

    // The mixing step at any offset.
    uint64_t mix_anywhere(const uint8_t* data, size_t offset) const {
        return folded_product(load64(data) ^ (secret(offset) + seed_),
                              load64(data + 8) ^ (secret(offset + 8) - seed_));
    }

    uint64_t from17to128(const uint8_t* data, size_t size) const {
        uint64_t sum = size * kPrime64_1;
        for (size_t i = 0, rounds = ((size - 1) >> 5) + 1; i < rounds; ++i) {
            sum += mix(data + 16 * i, 32 * i);
            sum += mix(data + size - 16 * i - 16, 32 * i + 16);
        }
        return avalanche(sum);
    }

    uint64_t from129to240(const uint8_t* data, size_t size) const {
        uint64_t sum = size * kPrime64_1;
        for (size_t i = 0; i < 8; ++i) sum += mix(data + 16 * i, 16 * i);
        sum = avalanche(sum);
        for (size_t i = 8; i < size >> 4; ++i) sum += mix_anywhere(data + 16 * i, 16 * (i - 8) + 3);
        return avalanche(sum + mix_anywhere(data + size - 16, 119));
    }

    using Lanes = uint64_t[8];

    void accumulate(Lanes& lanes, const uint8_t* stripe, size_t offset) const {
        for (size_t i = 0; i < 8; ++i) {
            uint64_t word = load64(stripe + 8 * i), value = word ^ load64(derived_ + offset + 8 * i);
            lanes[i ^ 1] += word;
            lanes[i] += (value & 0xFFFFFFFF) * (value >> 32);
        }
    }

    void scramble(Lanes& lanes) const {
        for (size_t i = 0; i < 8; ++i) {
            lanes[i] ^= lanes[i] >> 47;
            lanes[i] ^= load64(derived_ + kSecretSize - kStripe + 8 * i);
            lanes[i] *= kPrime32_1;
        }
    }

    uint64_t large(const uint8_t* data, size_t size) const {
        Lanes lanes = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
        size_t stripes = (size - 1) / kStripe;  // the last one is treated apart, full or not
        for (size_t i = 0; i < stripes; ++i) {
            size_t in_block = i % kStripesPerBlock;
            if (i && !in_block) scramble(lanes);
            accumulate(lanes, data + kStripe * i, 8 * in_block);
        }
        if (stripes && stripes % kStripesPerBlock == 0) scramble(lanes);
        accumulate(lanes, data + size - kStripe, kSecretSize - 71);
        uint64_t sum = size * kPrime64_1;
        for (size_t i = 0; i < 8; i += 2) {
            sum += folded_product(lanes[i] ^ load64(derived_ + 11 + 8 * i), lanes[i + 1] ^ load64(derived_ + 19 + 8 * i));
        }
        return avalanche(sum);
    }

    uint64_t seed_;
    uint8_t derived_[kSecretSize];  // the secret and the seed
};

}  // namespace dynamo
