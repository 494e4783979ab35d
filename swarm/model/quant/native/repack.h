// From stored GGUF blocks to panels, and from panels back to numbers.
// Block structures: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#pragma once
#include "layout.h"

namespace repack {
using namespace layout;

// One block of 32 columns of one row, taken apart: codes, and the bytes of its scales as the panel keeps them.
struct Piece {
    uint8_t q[32];
    uint16_t d, m;         // binary16 bits, of the block or of its 256 columns
    uint8_t s[2], mins[2];  // per `sub` columns; E8M0's byte in s[0]
    float f;                // FP8's scale; of NVFP4 the matrix's, negative where it divides
};

static inline uint16_t u16(const uint8_t *p) { return uint16_t(p[0] | p[1] << 8); }

static inline void nibbles(const uint8_t *p, uint8_t *q) {
    for (int i = 0; i < 16; i++) q[i] = p[i] & 15, q[i + 16] = p[i] >> 4;
}

static inline void fifth(const uint8_t *p, uint8_t *q) {
    uint32_t bits = uint32_t(u16(p)) | uint32_t(u16(p + 2)) << 16;
    for (int i = 0; i < 32; i++) q[i] |= (bits >> i & 1) << 4;
}

// Six-bit scale and minimum j of Q4_K and Q5_K.
static inline void six_bits(const uint8_t *p, int j, Piece &o) {
    o.s[0] = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
    o.mins[0] = j < 4 ? p[j + 4] & 63 : (p[j + 4] >> 4) | (p[j] >> 6) << 4;
}

// Stored bytes of a row per 32 (or, with `super`, 256) columns.
static inline int stored_bytes(int kind) {
    switch (kind) {
    case 2: return 18; case 3: return 20; case 6: return 22; case 7: return 24; case 8: return 34;
    case 10: return 84; case 11: return 110; case 12: return 144; case 13: return 176; case 14: return 210;
    case 20: return 18; case 23: return 136; case 39: return 17;
    case 200: case 201: return 36; case 202: return 22;
    }
    return 0;
}

// Block `b` (of 32 columns) of the row that is stored at `row`.
static void take(int kind, const uint8_t *row, size_t b, Piece &o) {
    size_t size = stored_bytes(kind);
    bool super = kind >= 10 && kind != 20 && kind < 39;
    const uint8_t *p = row + (super ? b / 8 : b) * size;
    int j = super ? int(b % 8) : 0;
    switch (kind) {
    case 2: case 20: o.d = u16(p), nibbles(p + 2, o.q); return;
    case 3: o.d = u16(p), o.m = u16(p + 2), nibbles(p + 4, o.q); return;
    case 6: o.d = u16(p), nibbles(p + 6, o.q), fifth(p + 2, o.q); return;
    case 7: o.d = u16(p), o.m = u16(p + 2), nibbles(p + 8, o.q), fifth(p + 4, o.q); return;
    case 8: o.d = u16(p); for (int i = 0; i < 32; i++) o.q[i] = p[2 + i] ^ 0x80; return;
    case 39: o.s[0] = p[0], nibbles(p + 1, o.q); return;
    case 200: case 201: std::memcpy(&o.f, p, 4), std::memcpy(o.q, p + 4, 32); return;
    case 202: std::memcpy(&o.f, p, 4), o.s[0] = p[4], o.s[1] = p[5], nibbles(p + 6, o.q); return;
    case 10:
        o.d = u16(p + 80), o.m = u16(p + 82);
        for (int h = 0; h < 2; h++) o.s[h] = p[2 * j + h] & 15, o.mins[h] = p[2 * j + h] >> 4;
        for (int i = 0; i < 32; i++) o.q[i] = p[16 + j / 4 * 32 + i] >> 2 * (j % 4) & 3;
        return;
    case 11:
        o.d = u16(p + 108);
        for (int h = 0; h < 2; h++) {
            int k = 2 * j + h;  // four bits of k in twelve bytes, then two more
            int low = k < 8 ? p[96 + k] & 15 : p[96 + k - 8] >> 4, high = p[104 + k % 4] >> 2 * (k / 4) & 3;
            o.s[h] = uint8_t((low | high << 4) - 32);
        }
        for (int i = 0; i < 32; i++) o.q[i] = (p[32 + j / 4 * 32 + i] >> 2 * (j % 4) & 3) | (p[i] >> j & 1) << 2;
        return;
    case 12: case 13: {
        o.d = u16(p), o.m = u16(p + 2), six_bits(p + 4, j, o);
        const uint8_t *low = p + (kind == 12 ? 16 : 48) + j / 2 * 32;
        for (int i = 0; i < 32; i++) o.q[i] = low[i] >> 4 * (j % 2) & 15;
        if (kind == 13) for (int i = 0; i < 32; i++) o.q[i] |= (p[16 + i] >> j & 1) << 4;
        return;
    }
    case 14: {
        o.d = u16(p + 208), o.s[0] = p[192 + 2 * j], o.s[1] = p[193 + 2 * j];
        int half = j / 4, k = j % 4;
        const uint8_t *low = p + 64 * half + 32 * (k % 2), *high = p + 128 + 32 * half;
        for (int i = 0; i < 32; i++) o.q[i] = (low[i] >> 4 * (k / 2) & 15) | (high[i] >> 2 * k & 3) << 4;
        return;
    }
    case 23: {
        o.d = u16(p);
        int low = p[4 + j / 2] >> 4 * (j % 2) & 15, high = u16(p + 2) >> 2 * j & 3;
        o.s[0] = uint8_t((low | high << 4) - 32);
        nibbles(p + 8 + 16 * j, o.q);
        return;
    }
    }
}

// Codes of sixteen rows into a block's vectors; four codes of a row are one 32-bit word.
template <class T> static void put_codes(const Piece *pieces, uint8_t *to) {
    if (T::floats) {
        for (int c = 0; c < 32; c++)
            for (int n = 0; n < 16; n++) to[16 * c + n] = pieces[n].q[c];
        return;
    }
    for (int n = 0; n < 16; n++) {
        uint32_t w[8], v[8] = {};
        std::memcpy(w, pieces[n].q, 32);
        int words = 0;  // vectors of 64 bytes written
        if (T::bits == 8) {
            for (int j = 0; j < 8; j++) v[j] = w[j];
            words = 8;
        } else if (T::bits >= 4) {
            for (int i = 0; i < 4; i++) v[i] = (w[i] & 0x0f0f0f0f) | (w[i + 4] & 0x0f0f0f0f) << 4;
            if (T::bits == 5) for (int j = 0; j < 8; j++) v[4] |= (w[j] >> 4 & 0x01010101) << j;
            if (T::bits == 6) for (int j = 0; j < 8; j++) v[4 + j / 4] |= (w[j] >> 4 & 0x03030303) << 2 * (j % 4);
            words = T::bits;
        } else {
            for (int j = 0; j < 8; j++) v[j / 4] |= (w[j] & 0x03030303) << 2 * (j % 4);
            if (T::bits == 3) for (int j = 0; j < 8; j++) v[2] |= (w[j] >> 2 & 0x01010101) << j;
            words = T::bits;
        }
        for (int i = 0; i < words; i++) std::memcpy(to + 64 * i + 4 * n, v + i, 4);
    }
}

template <class T> static void put_scales(const Piece *pieces, uint8_t *head, uint8_t *to) {
    for (int n = 0; n < 16; n++) {
        const Piece &p = pieces[n];
        if (T::scale == F32) {
            std::memcpy(to + 4 * n, &p.f, 4);
            continue;
        }
        if (T::scale == E4M3) {  // head: where the panel's scales begin
            float half_of = (p.f < 0 ? -1.0f / p.f : p.f) * 0.5f;
            std::memcpy(head + 4 * n, &half_of, 4), std::memcpy(head + 64 + 4 * n, &p.f, 4);
            to[n] = p.s[0], to[16 + n] = p.s[1];
            continue;
        }
        uint8_t *d = T::super ? head : to;
        if (T::scale != E8M0) std::memcpy(d + 2 * n, &p.d, 2);
        if (T::has_min) std::memcpy(d + 32 + 2 * n, &p.m, 2);
        if (T::scale == SUPER_MIN) to[n] = p.s[0], to[16 + n] = p.mins[0];
        if (T::scale == SUPER16) to[n] = p.s[0], to[16 + n] = p.s[1];
        if (T::scale == SUPER2) to[n] = p.s[0] | p.mins[0] << 4, to[16 + n] = p.s[1] | p.mins[1] << 4;
        if (T::scale == SUPER || T::scale == E8M0) to[n] = p.s[0];
    }
}

// Panels [first, last) of a matrix [rows, columns]; row i comes from stored row order[i] (i itself without an order).
template <class T>
static void panels(int kind, const uint8_t *stored, const int32_t *order, int64_t rows, int64_t columns, uint8_t *packed,
                   int64_t first, int64_t last) {
    size_t row_bytes = size_t(columns / (T::super ? 256 : 32)) * stored_bytes(kind);
    for (int64_t panel = first; panel < last; panel++) {
        uint8_t *codes = packed + panel * T::panel(columns), *scales = codes + T::codes(columns);
        std::memset(codes, 0, T::panel(columns));
        for (size_t b = 0; b < T::blocks(columns); b++) {
            Piece pieces[16] = {};
            for (int n = 0; n < 16; n++) {
                int64_t i = panel * 16 + n;
                if (i < rows) take(kind, stored + row_bytes * (order ? order[i] : i), b, pieces[n]);
            }
            put_codes<T>(pieces, codes + b * T::code_bytes);
            if (T::floats && b % 4) continue;  // one scale for 128 columns
            put_scales<T>(pieces, T::scale == E4M3 ? scales : scales + T::head(b), scales + T::at(b));
        }
    }
}

template <class T> static int code_at(const uint8_t *block, int n, int column) {
    int j = column / 4, at = 4 * n + column % 4, q;
    if (T::bits == 8) return block[64 * j + at];
    if (T::bits >= 4) {
        q = block[64 * (j % 4) + at] >> 4 * (j / 4) & 15;
        if (T::bits == 5) q |= (block[256 + at] >> j & 1) << 4;
        if (T::bits == 6) q |= (block[256 + 64 * (j / 4) + at] >> 2 * (j % 4) & 3) << 4;
    } else {
        q = block[64 * (j / 4) + at] >> 2 * (j % 4) & 3;
        if (T::bits == 3) q |= (block[128 + at] >> j & 1) << 2;
    }
    return T::table ? TABLES[T::table % 3][q] : q;
}

// Row `row` as float32, in the order of operations of gguf.dequantize: the same bits.
template <class T> static void numbers(const uint8_t *packed, int64_t columns, int64_t row, float *out) {
    const uint8_t *codes = packed + row / 16 * T::panel(columns), *scales = codes + T::codes(columns);
    int n = row % 16;
    for (size_t b = 0; b < T::blocks(columns); b++) {
        if (T::floats) {
            float scale;
            std::memcpy(&scale, scales + T::at(b) + 4 * n, 4);
            for (int i = 0; i < 32; i++)
                out[b * 32 + i] = small_float<T::table == 3>(codes[b * T::code_bytes + 16 * i + n]) * scale;
            continue;
        }
        const uint8_t *s = scales + T::at(b), *d = T::super ? scales + T::head(b) : s;
        for (int h = 0; h < 32 / T::sub; h++) {
            float scale = T::scale == E8M0 ? e8m0_half(s[n]) : half(u16(d + 2 * n)), min = 0;
            if (T::scale == E4M3) {
                float whole;
                std::memcpy(&whole, scales + 64 + 4 * n, 4);
                scale = small_float<false>(s[16 * h + n]);
                scale = (whole < 0 ? scale / -whole : scale * whole) * 0.5f;
            }
            if (T::scale == F16_MIN) min = half(u16(d + 32 + 2 * n));
            if (T::scale == SUPER_MIN) scale *= float(s[n]), min = -(half(u16(d + 32 + 2 * n)) * float(s[16 + n]));
            if (T::scale == SUPER16 || T::scale == SUPER) scale *= float(int8_t(s[16 * h + n]));
            if (T::scale == SUPER2) {
                scale *= float(s[16 * h + n] & 15), min = -(half(u16(d + 32 + 2 * n)) * float(s[16 * h + n] >> 4));
            }
            for (int i = 0; i < T::sub; i++) {
                float value = scale * float(code_at<T>(codes + b * T::code_bytes, n, h * T::sub + i) - T::zero);
                out[b * 32 + h * T::sub + i] = T::has_min ? value + min : value;
            }
        }
    }
}

}  // namespace repack
