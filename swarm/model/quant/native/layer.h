// What stands between the products of a decoder layer: norms, rotation, activation, sums. Included once per instruction
// set, after product.h. E: float, or uint16_t for bfloat16, whose results are rounded wherever transformers' would be.
//
// Loops without branches and with sixteen partial sums each, so that compilers make vectors of them and every instruction
// set gives the same bits; a row's bits depend on that row alone.

namespace ISA {

TARGET static inline float wide(float v) { return v; }
TARGET static inline float wide(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
template <class E> struct Round {
    TARGET static inline float round(float v) { return v; }
    TARGET static inline float store(float v) { return v; }
};
template <> struct Round<uint16_t> {
    TARGET static inline uint16_t store(float v) {
        uint32_t bits;
        std::memcpy(&bits, &v, 4);
        uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even);
    }
    TARGET static inline float round(float v) { return wide(store(v)); }
};

// y = w * (x / sqrt(mean(x^2) + eps)); n a multiple of 16. x and y may be the same.
template <class E> TARGET static void norm_row(const E *x, const E *w, float eps, int64_t n, E *y) {
    alignas(64) float sums[16] = {};
    for (int64_t i = 0; i < n; i += 16)
        for (int k = 0; k < 16; k++) sums[k] += wide(x[i + k]) * wide(x[i + k]);
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += sums[k];
    float factor = 1.0f / __builtin_sqrtf(sum / float(n) + eps);
    for (int64_t i = 0; i < n; i++) y[i] = Round<E>::store(wide(w[i]) * Round<E>::round(wide(x[i]) * factor));
}

// Rotates the two halves of each head by the row's angles: cos, sin [dim]; x [heads, dim], in place.
template <class E> TARGET static void rotate_row(E *x, int64_t heads, int64_t dim, const E *cos, const E *sin) {
    int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; h++) {
        E *low = x + h * dim, *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            float a = wide(low[i]), b = wide(high[i]);
            float first = Round<E>::round(a * wide(cos[i])), second = Round<E>::round(-b * wide(sin[i]));
            float third = Round<E>::round(b * wide(cos[half + i])), fourth = Round<E>::round(a * wide(sin[half + i]));
            low[i] = Round<E>::store(first + second), high[i] = Round<E>::store(third + fourth);
        }
    }
}

// e^v for v in [-87, 87], off by two units in the last place at most: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2].
TARGET static inline float exponential(float v) {
    v = v > 87.0f ? 87.0f : v;
    v = v < -87.0f ? -87.0f : v;
    float shifted = v * 1.44269504f + 12582912.0f, k = shifted - 12582912.0f;  // k: the nearest whole number
    float r = (v - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

// gate = silu(gate) * up.
template <class E> TARGET static void activate_row(E *gate, const E *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = wide(gate[i]);
        float s = g / (1.0f + exponential(-g));
        gate[i] = Round<E>::store(Round<E>::round(s) * wide(up[i]));
    }
}

template <class E> TARGET static void add_row(const E *a, const E *b, int64_t n, E *y) {
    for (int64_t i = 0; i < n; i++) y[i] = Round<E>::store(wide(a[i]) + wide(b[i]));
}

}  // namespace ISA
