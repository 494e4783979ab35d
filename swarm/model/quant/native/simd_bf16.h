// AVX-512 with its own product of bfloat16 pairs; the same bits as without.
namespace avx512bf16 {
using namespace avx512;
TARGET static inline __attribute__((always_inline)) Floats pairs(Floats sum, Pairs w, uint32_t x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(x)));
}
}  // namespace avx512bf16
