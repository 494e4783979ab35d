// Vector operations on sixteen outputs in plain C++, for every other processor.
namespace plain {
struct Bytes {
    uint8_t v[64];
};
struct Ints {
    int32_t v[16];
};
struct Floats {
    float v[16];
};
constexpr int MOST = 2;

#define OP static inline
#define EACH(N) for (int i = 0; i < N; i++)
OP Bytes load(const uint8_t *p) {
    Bytes o;
    std::memcpy(o.v, p, 64);
    return o;
}
OP void keep(uint8_t *p, const Bytes &v) { std::memcpy(p, v.v, 64); }
OP Ints ints_at(const int32_t *p) {
    Ints o;
    std::memcpy(o.v, p, 64);
    return o;
}
template <int N> OP Bytes move(Bytes a) {
    EACH(64) a.v[i] = N > 0 ? a.v[i] >> (N > 0 ? N : 0) : uint8_t(a.v[i] << (N < 0 ? -N : 0));
    return a;
}
template <int N> OP Bytes right(Bytes a) { return move<N>(a); }
OP Bytes both(Bytes a, int mask) {
    EACH(64) a.v[i] &= mask;
    return a;
}
OP Bytes either(Bytes a, Bytes b) {
    EACH(64) a.v[i] |= b.v[i];
    return a;
}
OP Bytes look_up(const uint8_t *table, Bytes a) {
    EACH(64) a.v[i] = table[a.v[i]];
    return a;
}
template <bool EIGHT_BITS> OP Ints dot(Ints sum, const Bytes &w, const int8_t *x) {
    EACH(16) sum.v[i] += w.v[4 * i] * x[0] + w.v[4 * i + 1] * x[1] + w.v[4 * i + 2] * x[2] + w.v[4 * i + 3] * x[3];
    return sum;
}
OP Ints plus(Ints a, const Ints &b) {
    EACH(16) a.v[i] += b.v[i];
    return a;
}
OP Ints spread(int32_t v) {
    Ints o;
    EACH(16) o.v[i] = v;
    return o;
}
OP Floats spread(float v) {
    Floats o;
    EACH(16) o.v[i] = v;
    return o;
}
OP Floats floats(Ints a) {
    Floats o;
    EACH(16) o.v[i] = float(a.v[i]);
    return o;
}
OP Floats times(Floats a, Floats b) {
    EACH(16) a.v[i] *= b.v[i];
    return a;
}
OP Floats fused(Floats a, Floats b, Floats c) {
    EACH(16) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
OP Floats negative(Floats a) {
    EACH(16) a.v[i] = -a.v[i];
    return a;
}
OP Floats halves(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = layout::half(uint16_t(p[2 * i] | p[2 * i + 1] << 8));
    return o;
}
OP Floats unsigned_bytes(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = float(p[i]);
    return o;
}
OP Floats signed_bytes(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = float(int8_t(p[i]));
    return o;
}
template <int HIGH> OP Floats nibble(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = float(HIGH ? p[i] >> 4 : p[i] & 15);
    return o;
}
OP Floats powers(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = layout::e8m0_half(p[i]);
    return o;
}
// Sixteen FP8 numbers; those of e4m3 times 2^-8.
template <bool E5M2> OP Floats small_floats(const uint8_t *p) {
    Floats o;
    EACH(16) o.v[i] = layout::half(uint16_t(E5M2 ? p[i] << 8 : (p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7));
    return o;
}
OP void store(float *p, Floats v) { std::memcpy(p, v.v, 64); }
struct Pairs {
    uint32_t v[16];
};
OP Floats floats_at(const float *p) {
    Floats o;
    std::memcpy(o.v, p, 64);
    return o;
}
OP Pairs pairs_at(const uint8_t *p) {
    Pairs o;
    std::memcpy(o.v, p, 64);
    return o;
}
OP float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
OP Floats pairs(Floats sum, const Pairs &w, uint32_t x) {
    float second = as_float(x & 0xffff0000u), first = as_float(x << 16);
    EACH(16) sum.v[i] = __builtin_fmaf(as_float(w.v[i] & 0xffff0000u), second, sum.v[i]);
    EACH(16) sum.v[i] = __builtin_fmaf(as_float(w.v[i] << 16), first, sum.v[i]);
    return sum;
}
constexpr int ROWS = 2, ACCUMULATORS = 2, NEXT = 0;
OP int64_t turn_whole(const uint32_t *const *, int64_t, uint32_t *) { return 0; }
OP Floats plus(Floats a, Floats b) {
    EACH(16) a.v[i] += b.v[i];
    return a;
}
OP Floats greater(Floats a, Floats b) {  // b where either is no number
    EACH(16) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
// p times 2^k, k + 127 being the low bits of `shifted`.
OP Floats exponent(Floats p, Floats shifted) {
    EACH(16) {
        uint32_t bits;
        std::memcpy(&bits, &shifted.v[i], 4);
        p.v[i] *= as_float(bits << 23);
    }
    return p;
}
// Of sixteen lanes, joined in halves: k and k + 8, k and k + 4, ...
OP float sum_of(const float *lanes) {
    float sums[16];
    std::memcpy(sums, lanes, 64);
    for (int half = 8; half; half /= 2) EACH(half) sums[i] += sums[i + half];
    return sums[0];
}
OP float greatest_of(const float *lanes) {
    float most[16];
    std::memcpy(most, lanes, 64);
    for (int half = 8; half; half /= 2) EACH(half) most[i] = most[i] > most[i + half] ? most[i] : most[i + half];
    return most[0];
}
OP void fetch(const uint8_t *) {}
#undef OP
#undef EACH
}  // namespace plain
