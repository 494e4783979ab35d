// Vector operations on sixteen outputs with AVX2, FMA and F16C: two halves of eight.
namespace avx2 {
struct Ints {
    __m256i a, b;
};
typedef Ints Bytes;
struct Floats {
    __m256 a, b;
};
constexpr int MOST = 2;

#define OP TARGET static inline __attribute__((always_inline))
OP Bytes load(const uint8_t *p) {
    return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
template <int N> OP Bytes right(Bytes v) { return {_mm256_srli_epi16(v.a, N), _mm256_srli_epi16(v.b, N)}; }
template <int N> OP Bytes move(Bytes v) {
    if constexpr (N > 0) return {_mm256_srli_epi16(v.a, N), _mm256_srli_epi16(v.b, N)};
    if constexpr (N < 0) return {_mm256_slli_epi16(v.a, -N), _mm256_slli_epi16(v.b, -N)};
    return v;
}
OP Bytes both(Bytes v, int mask) {
    __m256i m = _mm256_set1_epi8(char(mask));
    return {_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
OP Bytes either(Bytes a, Bytes b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
OP Bytes look_up(const uint8_t *table, Bytes v) {
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return {_mm256_shuffle_epi8(t, v.a), _mm256_shuffle_epi8(t, v.b)};
}
OP __m256i dot_half(__m256i sum, __m256i w, __m256i x) {  // of codes up to 127: pairs stay below 2^15
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
template <bool EIGHT_BITS> OP Ints dot(Ints sum, Bytes w, const int8_t *from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    __m256i x = _mm256_set1_epi32(four);
    if constexpr (EIGHT_BITS) {  // w = low six bits + twice 2-bit-shifted rest: two products that cannot saturate
        __m256i low = _mm256_set1_epi8(0x7f), top = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(128);
        __m256i high_a = _mm256_and_si256(_mm256_srli_epi16(w.a, 7), top);
        __m256i high_b = _mm256_and_si256(_mm256_srli_epi16(w.b, 7), top);
        sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(_mm256_maddubs_epi16(high_a, x), ones));
        sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(_mm256_maddubs_epi16(high_b, x), ones));
        w = {_mm256_and_si256(w.a, low), _mm256_and_si256(w.b, low)};
    }
    return {dot_half(sum.a, w.a, x), dot_half(sum.b, w.b, x)};
}
OP Ints plus(Ints a, Ints b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
OP Ints spread(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
OP Floats spread(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
OP Floats floats(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
OP Floats times(Floats a, Floats b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
OP Floats fused(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
OP Floats negative(Floats a) {
    __m256 s = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.a, s), _mm256_xor_ps(a.b, s)};
}
OP Floats halves(const uint8_t *p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
OP Floats widen(__m128i v) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
}
OP Floats unsigned_bytes(const uint8_t *p) { return widen(_mm_loadu_si128((const __m128i *)p)); }
OP Floats signed_bytes(const uint8_t *p) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}
template <int HIGH> OP Floats nibble(const uint8_t *p) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return widen(_mm_and_si128(HIGH ? _mm_srli_epi16(v, 4) : v, _mm_set1_epi8(15)));
}
OP void store(float *p, Floats v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
OP Floats powers(const uint8_t *p) {
    alignas(32) float v[16];
    for (int n = 0; n < 16; n++) v[n] = layout::e8m0_half(p[n]);
    return {_mm256_load_ps(v), _mm256_load_ps(v + 8)};
}
// Sixteen FP8 numbers; those of e4m3 times 2^-8.
template <bool E5M2> OP Floats small_floats(const uint8_t *p) {
    // As wide as the sign goes: shifted by 7 it fills the two highest bits, of which the lower one is the exponent's.
    __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i h = E5M2 ? _mm256_slli_epi16(w, 8)
                     : _mm256_and_si256(_mm256_slli_epi16(w, 7), _mm256_set1_epi16(short(0xbfff)));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
typedef Ints Pairs;  // of bfloat16: sixteen outputs, two columns each
OP Floats floats_at(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OP Pairs pairs_at(const uint8_t *p) { return load(p); }
OP __m256 pairs_half(__m256 sum, __m256i w, uint32_t x) {
    __m256 second = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int(0xffff0000u))));
    __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    sum = _mm256_fmadd_ps(second, _mm256_castsi256_ps(_mm256_set1_epi32(int(x & 0xffff0000u))), sum);
    return _mm256_fmadd_ps(first, _mm256_castsi256_ps(_mm256_set1_epi32(int(x << 16))), sum);
}
OP Floats pairs(Floats sum, Pairs w, uint32_t x) { return {pairs_half(sum.a, w.a, x), pairs_half(sum.b, w.b, x)}; }
constexpr int ROWS = 4, ACCUMULATORS = 4, NEXT = 2048;
OP int64_t turn_whole(const uint32_t *const *, int64_t, uint32_t *) { return 0; }
OP Floats plus(Floats a, Floats b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
OP Floats greater(Floats a, Floats b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }  // b where either is no number
OP __m256 exponent_half(__m256 p, __m256 shifted) {
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
// p times 2^k, k + 127 being the low bits of `shifted`.
OP Floats exponent(Floats p, Floats shifted) { return {exponent_half(p.a, shifted.a), exponent_half(p.b, shifted.b)}; }
// Of sixteen lanes, joined in halves: k and k + 8, k and k + 4, ...
OP float sum_of(const float *lanes) {
    __m256 eight = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
OP float greatest_of(const float *lanes) {
    __m256 eight = _mm256_max_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
OP void fetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
#undef OP
}  // namespace avx2
