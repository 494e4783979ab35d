// The packed layout: how a matrix [out, in] of some GGUF type, or of small floats, lies in memory for the products.
//
// Sixteen rows of the matrix are a panel. A panel holds the codes of all its blocks of 32 columns and then all scales.
// A block's codes are eight vectors W0..W7 of 64 bytes; byte 4 n + t of Wj is the code of the panel's row n, column
// 4 j + t. They are stored with the bits that they need: nibbles (W0..W3 low, W4..W7 high), crumbs of two bits, single
// bits, bytes. Scales stay as exact as they were stored: products of a 16-bit and a 6-bit scale are made while computing.
// FP8 lies otherwise: byte 16 c + n of a block is row n's code of column c, and a float32 scale serves 128 columns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace layout {

enum Scale {
    F16,        // one binary16 per row and block: w = d (q - zero)
    F16_MIN,    // two: w = d q + m
    SUPER_MIN,  // d, dmin (binary16) per 256 columns, bytes s, m per 32: w = (d s) q - dmin m
    SUPER16,    // d per 256, signed byte s per 16: w = (d s) (q - zero)
    SUPER2,     // d, dmin per 256, nibbles s, m per 16: w = (d s) q - dmin m
    SUPER,      // d per 256, signed byte s per 32: w = (d s) (q - zero)
    E8M0,       // a byte e per 32: w = 2^(e - 128) (q - zero)
    E4M3,       // an FP8 number s per 16, two float32 per row (see `LEAD`): w = (s f) (q - zero)
    F32,        // a float32 per 128: w = s times the number that the code is, FP8
};

// What lies before the scales of E4M3, per row: a float32 f, half of the matrix's own scale or of its inverse; and that
// scale itself, negative where it divides.
constexpr size_t LEAD = 128;

// bits: of a stored code; zero: taken off each code; table: codes go through a table of sixteen bytes first.
template <int BITS, int ZERO, Scale SCALE, int TABLE = 0> struct Traits {
    static constexpr int bits = BITS, zero = ZERO, table = TABLE;
    static constexpr Scale scale = SCALE;
    static constexpr bool super = SCALE == SUPER_MIN || SCALE == SUPER16 || SCALE == SUPER2 || SCALE == SUPER;
    static constexpr bool has_min = SCALE == F16_MIN || SCALE == SUPER_MIN || SCALE == SUPER2;
    static constexpr bool floats = SCALE == F32;  // codes are numbers by themselves, x is not rounded to bytes
    static constexpr int sub = SCALE == SUPER16 || SCALE == SUPER2 || SCALE == E4M3 ? 16 : 32;  // columns of one scale
    static constexpr int code_bytes = BITS * 64;                               // of sixteen rows and 32 columns
    static constexpr int head_bytes = SCALE == SUPER_MIN || SCALE == SUPER2 ? 64 : super ? 32 : 0;  // per 256 columns
    static constexpr int scale_bytes = SCALE == F16_MIN ? 64 : SCALE == SUPER || SCALE == E8M0 ? 16 : 32;  // per block

    static size_t blocks(int64_t columns) { return columns / 32; }
    static size_t codes(int64_t columns) { return blocks(columns) * code_bytes; }
    static size_t panel(int64_t columns) {
        size_t scales = blocks(columns) * scale_bytes + blocks(columns) / 8 * head_bytes;
        if (floats) scales = (blocks(columns) + 3) / 4 * 64;
        if (SCALE == E4M3) scales += LEAD;
        return codes(columns) + (scales + 63) / 64 * 64;
    }
    // Where the scales of a block begin, after the panel's codes; the head of its 256 columns lies before the first.
    static size_t at(size_t block) {
        if (floats) return block / 4 * 64;
        return block * scale_bytes + (super ? (block / 8 + 1) * head_bytes : 0) + (SCALE == E4M3 ? LEAD : 0);
    }
    static size_t head(size_t block) { return block / 8 * (8 * scale_bytes + head_bytes); }
};

// Tables hold value + 128. IQ4: ggml's kvalues_iq4nl; MXFP4: twice the e2m1 values.
alignas(16) static const uint8_t TABLES[3][16] = {
    {},
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116},
};

using Q4_0 = Traits<4, 8, F16>;
using Q4_1 = Traits<4, 0, F16_MIN>;
using Q5_0 = Traits<5, 16, F16>;
using Q5_1 = Traits<5, 0, F16_MIN>;
using Q8_0 = Traits<8, 128, F16>;
using Q2_K = Traits<2, 0, SUPER2>;
using Q3_K = Traits<3, 4, SUPER16>;
using Q4_K = Traits<4, 0, SUPER_MIN>;
using Q5_K = Traits<5, 0, SUPER_MIN>;
using Q6_K = Traits<6, 32, SUPER16>;
using IQ4_NL = Traits<4, 128, F16, 1>;
using IQ4_XS = Traits<4, 128, SUPER, 1>;
using MXFP4 = Traits<4, 128, E8M0, 2>;
// Of our own: what safetensors hold, brought into blocks by floats.py.
using FP8_E4M3 = Traits<8, 0, F32, 0>;
using FP8_E5M2 = Traits<8, 0, F32, 3>;
using NVFP4 = Traits<4, 128, E4M3, 2>;

// Calls f(Traits) for ggml's number of a type; false where there is none.
template <class F> static inline bool with_type(int kind, F &&f) {
    switch (kind) {
    case 2: f(Q4_0()); return true;
    case 3: f(Q4_1()); return true;
    case 6: f(Q5_0()); return true;
    case 7: f(Q5_1()); return true;
    case 8: f(Q8_0()); return true;
    case 10: f(Q2_K()); return true;
    case 11: f(Q3_K()); return true;
    case 12: f(Q4_K()); return true;
    case 13: f(Q5_K()); return true;
    case 14: f(Q6_K()); return true;
    case 20: f(IQ4_NL()); return true;
    case 23: f(IQ4_XS()); return true;
    case 39: f(MXFP4()); return true;
    case 200: f(FP8_E4M3()); return true;
    case 201: f(FP8_E5M2()); return true;
    case 202: f(NVFP4()); return true;
    }
    return false;
}

static inline float half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    float value;
    if (exponent == 0) {
        value = mantissa * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    std::memcpy(&value, &bits, 4);
    return value;
}

// An FP8 number: e5m2 is the upper half of a binary16, e4m3 has an exponent that is 8 lower.
template <bool E5M2> static inline float small_float(uint8_t code) {
    if (E5M2) return half(uint16_t(code << 8));
    return half(uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256.0f;
}

// 2^(e - 128), as ggml reads MXFP4's scales for doubled values.
static inline float e8m0_half(uint8_t e) {
    uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace layout
