// Vector operations on sixteen outputs with AVX-512 and its dot product of bytes.
namespace avx512 {
typedef __m512i Bytes;
typedef __m512i Ints;
typedef __m512 Floats;
constexpr int MOST = 8;  // rows that share one reading of the codes

#define OP TARGET static inline __attribute__((always_inline))
OP Bytes load(const uint8_t *p) { return _mm512_loadu_si512(p); }
OP void keep(uint8_t *p, Bytes v) { _mm512_storeu_si512(p, v); }
OP Ints ints_at(const int32_t *p) { return _mm512_loadu_si512(p); }
template <int N> OP Bytes right(Bytes v) { return _mm512_srli_epi16(v, N); }
template <int N> OP Bytes move(Bytes v) {
    if constexpr (N > 0) return _mm512_srli_epi16(v, N);
    if constexpr (N < 0) return _mm512_slli_epi16(v, -N);
    return v;
}
OP Bytes both(Bytes v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8(char(mask))); }
OP Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
OP Bytes look_up(const uint8_t *table, Bytes v) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), v);
}
template <bool EIGHT_BITS> OP Ints dot(Ints sum, Bytes w, const int8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
}
OP Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
OP Ints spread(int32_t v) { return _mm512_set1_epi32(v); }
OP Floats spread(float v) { return _mm512_set1_ps(v); }
OP Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
OP Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
OP Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
OP Floats negative(Floats a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
OP Floats halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
OP Floats unsigned_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
OP Floats signed_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
template <int HIGH> OP Floats nibble(const uint8_t *p) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    v = _mm_and_si128(HIGH ? _mm_srli_epi16(v, 4) : v, _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v));
}
OP Floats powers(const uint8_t *p) {
    alignas(64) float v[16];
    for (int n = 0; n < 16; n++) v[n] = layout::e8m0_half(p[n]);
    return _mm512_load_ps(v);
}
// Sixteen FP8 numbers; those of e4m3 times 2^-8.
template <bool E5M2> OP Floats small_floats(const uint8_t *p) {
    // As wide as the sign goes: shifted by 7 it fills the two highest bits, of which the lower one is the exponent's.
    __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i h = E5M2 ? _mm256_slli_epi16(w, 8)
                     : _mm256_and_si256(_mm256_slli_epi16(w, 7), _mm256_set1_epi16(short(0xbfff)));
    return _mm512_cvtph_ps(h);
}
OP void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
typedef __m512i Pairs;  // of bfloat16: sixteen outputs, two columns each
OP Floats floats_at(const float *p) { return _mm512_loadu_ps(p); }
OP Pairs pairs_at(const uint8_t *p) { return _mm512_loadu_si512(p); }
OP Floats pairs(Floats sum, Pairs w, uint32_t x) {
    __m512 second = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
    __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    sum = _mm512_fmadd_ps(second, _mm512_castsi512_ps(_mm512_set1_epi32(int(x & 0xffff0000u))), sum);
    return _mm512_fmadd_ps(first, _mm512_castsi512_ps(_mm512_set1_epi32(int(x << 16))), sum);
}
constexpr int ROWS = 8, ACCUMULATORS = 24;  // rows of a tile, and vectors of sums that the registers hold
constexpr int NEXT = 2048;                  // bytes that a panel of few rows is asked for ahead
// Columns of sixteen lines of 32-bit words: whole squares of 16 x 16. Returns how many words of each line are done.
TARGET static inline int64_t turn_whole(const uint32_t *const *lines, int64_t words, uint32_t *to) {
    int64_t s = 0;
    for (; s + 16 <= words; s += 16) {
        __m512i r[16], t[16];
        for (int i = 0; i < 16; i++) r[i] = lines[i] ? _mm512_loadu_si512(lines[i] + s) : _mm512_setzero_si512();
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; i++) {  // r[i]: columns i, 4 + i, 8 + i, 12 + i of lines 0 to 3; r[4 + i] of 4 to 7, ...
            __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
            __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
            t[i] = _mm512_shuffle_i32x4(a, c, 0x88), t[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
            t[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd), t[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
        }
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (s + i) * 16, t[i]);
    }
    return s;
}
OP Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
OP Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where either is no number
// p times 2^k, k + 127 being the low bits of `shifted`.
OP Floats exponent(Floats p, Floats shifted) {
    return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
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
}  // namespace avx512
