// Rows times packed matrix, once per instruction set: included with ISA (a namespace), TARGET (an attribute) and the
// vector operations of simd.h in scope.
//
// Rows are first rounded to signed bytes in blocks of 32 (scale = largest / 127). For each output the sum over a block's
// columns of code x byte is an integer, hence exact in any order; it is brought to float32 and added, block after
// block, by fused multiply-adds. So the bits of an output depend on its row of x and its row of the matrix alone: not on
// other rows, threads or the instruction set.

namespace ISA {
using namespace layout;

// Bytes of codes. A panel is read from two places, codes and scales, and what both need is asked for a step at a time, so
// many steps ahead, in the order of use. (Zen 4, one row: 25 of the 25 GB/s that memory gives, from 8 KiB on. Lines asked
// for in the order in which they lie, scales behind all codes, came too late in long panels: 22. Where lines were left out:
// 13. Into the first cache instead of the second: 14 to 25.)
constexpr int AHEAD = 12288;

// Asks for what block b of a panel needs, b counting on into the panels behind it.
template <class T>
TARGET static inline __attribute__((always_inline)) void fetch_block(const uint8_t *codes, const uint8_t *scale, int64_t b, int64_t blocks, int64_t panel) {
    while (b >= blocks) b -= blocks, codes += panel, scale += panel;
    for (int line = 0; line < T::code_bytes; line += 64) fetch(codes + b * T::code_bytes + line);
    if (b % (64 / T::scale_bytes) == 0) fetch(scale + T::at(b));
    if constexpr (T::super)
        if (b % 8 == 0) fetch(scale + T::head(b));
}

// x: float32, or bfloat16 as its 16 bits. Loops of fixed length without branches, which compilers make vectors of.
TARGET static inline void take(const float *x, float *v) { std::memcpy(v, x, 32 * sizeof(float)); }
TARGET static inline void take(const uint16_t *x, float *v) {
    uint32_t bits[32];
    for (int i = 0; i < 32; i++) bits[i] = uint32_t(x[i]) << 16;
    std::memcpy(v, bits, sizeof bits);
}

template <class X> TARGET static void round_row(const X *x, int64_t columns, Rounded o) {
    for (int64_t b = 0; b < columns / 32; b++) {
        alignas(64) float v[32];
        alignas(64) int32_t r[32];
        take(x + b * 32, v);
        int32_t largest = 0;
        std::memcpy(r, v, sizeof r);
        for (int i = 0; i < 32; i++) {
            int32_t magnitude = r[i] & 0x7fffffff;  // ordered like the numbers, NaN above all
            largest = magnitude > largest ? magnitude : largest;
        }
        float top, back;
        std::memcpy(&top, &largest, 4);
        float scale = top / 127.0f;
        back = scale > 0 ? 1.0f / scale : 0.0f;
        if (back > 3.0e38f) back = 0.0f, scale = 0.0f;  // numbers below 1e-36: none
        if (!(top <= 3.4028235e38f)) back = 0.0f, scale = __builtin_nanf("");  // infinite or not a number: say so
        for (int i = 0; i < 32; i++) v[i] = v[i] * back + 12582912.0f;  // 1.5 x 2^23: rounds to even in the low bits
        std::memcpy(r, v, sizeof r);
        for (int i = 0; i < 32; i++) {
            int32_t whole = r[i] - 0x4b400000;
            whole = whole > 127 ? 127 : whole;
            r[i] = whole < -127 ? -127 : whole;
        }
        for (int i = 0; i < 32; i++) o.q[b * 32 + i] = int8_t(r[i]);
        int32_t first = 0, second = 0;
        for (int i = 0; i < 16; i++) first += r[i];
        for (int i = 16; i < 32; i++) second += r[i];
        o.scale[b] = scale;
        o.sums[2 * b] = first, o.sums[2 * b + 1] = second;
    }
}

// The row itself, as float32.
template <class X> TARGET static void keep_row(const X *x, int64_t columns, float *to) {
    for (int64_t b = 0; b < columns / 32; b++) take(x + b * 32, to + b * 32);
}

// What a format wants of a rounded row besides its bytes.
template <class T> TARGET static void prepare_row(int64_t columns, Rounded o) {
    for (int64_t b = 0; b < columns / 32; b++) {
        if constexpr (T::sub == 32) {
            int32_t sum = o.sums[2 * b] + o.sums[2 * b + 1];
            o.zero[b] = -T::zero * sum, o.mean[b] = o.scale[b] * float(sum);
        } else {
            for (int64_t h = 2 * b; h < 2 * b + 2; h++)
                o.zero[h] = -T::zero * o.sums[h], o.mean[h] = o.scale[b] * float(o.sums[h]);
        }
    }
}

template <class T, int J> TARGET static inline Bytes vector(const uint8_t *block) {
    if constexpr (T::bits == 8) return load(block + 64 * J);
    if constexpr (T::bits >= 4) {
        Bytes low = J < 4 ? load(block + 64 * (J % 4)) : right<4>(load(block + 64 * (J % 4)));
        Bytes q = both(low, 0x0f);
        if constexpr (T::bits == 5) q = either(q, both(move<J - 4>(load(block + 256)), 0x10));
        if constexpr (T::bits == 6) q = either(q, both(move<2 * (J % 4) - 4>(load(block + 256 + 64 * (J / 4))), 0x30));
        if constexpr (T::table != 0) q = look_up(TABLES[T::table], q);
        return q;
    } else {
        Bytes q = both(move<2 * (J % 4)>(load(block + 64 * (J / 4))), 0x03);
        if constexpr (T::bits == 3) q = either(q, both(move<J - 2>(load(block + 128)), 0x04));
        return q;
    }
}

template <class T, int R, int J>
TARGET static inline __attribute__((always_inline)) void step(Ints *sum, const uint8_t *block, const int8_t *const *x) {
    Bytes w = vector<T, J>(block);
    for (int r = 0; r < R; r++) sum[r] = dot<T::bits == 8 || T::table != 0>(sum[r], w, x[r] + 4 * J);
}

// Scales (and minima) of part h of a block. d, m: those of the 256 columns.
template <class T>
TARGET static inline __attribute__((always_inline)) void scales(const uint8_t *s, int h, Floats d, Floats m, Floats &w, Floats &min) {
    if constexpr (T::scale == F16 || T::scale == F16_MIN) w = halves(s);
    if constexpr (T::scale == F16_MIN) min = halves(s + 32);
    if constexpr (T::scale == SUPER_MIN) w = times(d, unsigned_bytes(s)), min = times(m, unsigned_bytes(s + 16));
    if constexpr (T::scale == SUPER16 || T::scale == SUPER) w = times(d, signed_bytes(s + 16 * h));
    if constexpr (T::scale == SUPER2) w = times(d, nibble<0>(s + 16 * h)), min = times(m, nibble<1>(s + 16 * h));
    if constexpr (T::scale == E8M0) w = powers(s);
    if constexpr (T::scale == E4M3) w = times(d, small_floats<false>(s + 16 * h));
}

// Bring the integer sums of one part of a block to float32 and add them. at: the part's place in a row's means.
template <class T, int R>
TARGET static inline __attribute__((always_inline)) void add(const Ints *sum, const uint8_t *s, int h, Floats d, Floats m,
                                                             const Rounded *rows, int64_t at, int64_t b, Floats *total) {
    Floats w, min = m;
    scales<T>(s, h, d, m, w, min);
    for (int r = 0; r < R; r++) {
        total[r] = fused(floats(sum[r]), times(w, spread(rows[r].scale[b])), total[r]);
        if constexpr (T::has_min) total[r] = fused(min, spread(rows[r].mean[at]), total[r]);
    }
}

// R rows times one panel: out[r] gets sixteen outputs.
template <class T, int R>
TARGET static __attribute__((noinline)) void panel(const uint8_t *codes, const uint8_t *scale, int64_t columns, const Rounded *rows, Floats *out) {
    constexpr int parts = 32 / T::sub;
    Floats total[R], d = spread(0.0f), m = d;
    for (int r = 0; r < R; r++) total[r] = spread(0.0f);
    if constexpr (T::scale == E4M3) d = times(floats_at(reinterpret_cast<const float *>(scale)), spread(256.0f));
    int64_t blocks = columns / 32;
    constexpr int64_t ahead = AHEAD / T::code_bytes;
    const int64_t size = int64_t(T::panel(columns));
    for (int64_t b = 0; b < blocks; b++) {
        if constexpr (T::super) {
            if (b % 8 == 0) {
                d = halves(scale + T::head(b));
                if constexpr (T::has_min) m = negative(halves(scale + T::head(b) + 32));
            }
        }
        const uint8_t *block = codes + b * T::code_bytes, *s = scale + T::at(b);
        fetch_block<T>(codes, scale, b + ahead, blocks, size);
        const int8_t *x[R];
        for (int r = 0; r < R; r++) x[r] = rows[r].q + b * 32;
        // Few rows wait for each other's sums: two half as long chains for them (integers, so the order is free).
        constexpr int chains = parts == 2 || R <= 2 ? 2 : 1;
        Ints sum[chains][R];
        for (int h = 0; h < chains; h++)
            for (int r = 0; r < R; r++) sum[h][r] = spread(h < parts ? rows[r].zero[b * parts + h] : 0);
        step<T, R, 0>(sum[0], block, x), step<T, R, 4>(sum[chains - 1], block, x);
        step<T, R, 1>(sum[0], block, x), step<T, R, 5>(sum[chains - 1], block, x);
        step<T, R, 2>(sum[0], block, x), step<T, R, 6>(sum[chains - 1], block, x);
        step<T, R, 3>(sum[0], block, x), step<T, R, 7>(sum[chains - 1], block, x);
        if constexpr (parts == 1 && chains == 2)
            for (int r = 0; r < R; r++) sum[0][r] = plus(sum[0][r], sum[1][r]);
        for (int h = 0; h < parts; h++) add<T, R>(sum[h], s, h, d, m, rows, b * parts + h, b, total);
    }
    for (int r = 0; r < R; r++) out[r] = total[r];
}

constexpr int FLOATS_AHEAD = 2048;  // bytes of a panel of FP8

// The same for FP8: rows as they are, one chain of fused multiply-adds in the order of the columns over weights in float32:
// the bits of dense.h's product with the unpacked matrix. P panels, `size` bytes apart, are gone through together: a chain
// waits for its last sum, and few rows alone are too few chains. out [P][R].
template <class T, int R, int P>
TARGET static __attribute__((noinline)) void float_panels(const uint8_t *codes, int64_t size, int64_t columns,
                                                          const Rounded *rows, Floats *out) {
    constexpr bool e5m2 = T::table == 3;
    const uint8_t *scale = codes + T::codes(columns);
    Floats total[P][R], s[P];
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++) total[p][r] = spread(0.0f);
    for (int64_t b = 0; b < columns / 32; b++) {
        if (b % 4 == 0)
            for (int p = 0; p < P; p++) {
                s[p] = floats_at(reinterpret_cast<const float *>(scale + p * size + T::at(b)));
                if constexpr (!e5m2) s[p] = times(s[p], spread(256.0f));  // a power of two: nothing is rounded by it
            }
        const uint8_t *block = codes + b * T::code_bytes;
        for (int p = 0; p < P; p++)
            for (int line = 0; line < T::code_bytes; line += 64) fetch(block + p * size + FLOATS_AHEAD + line);
        for (int c = 0; c < 32; c++) {
            Floats w[P];
            for (int p = 0; p < P; p++) w[p] = times(small_floats<e5m2>(block + p * size + 16 * c), s[p]);
            for (int r = 0; r < R; r++) {
                Floats x = spread(rows[r].x[b * 32 + c]);
                for (int p = 0; p < P; p++) total[p][r] = fused(w[p], x, total[p][r]);
            }
        }
    }
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++) out[p * R + r] = total[p][r];
}

TARGET static inline void put(float *y, const float *line, int count) { std::memcpy(y, line, count * sizeof(float)); }
// Rounded to nearest even, as torch does; not a number stays one.
TARGET static inline void put(uint16_t *y, const float *line, int count) {
    uint16_t out[16];
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        std::memcpy(&bits, line + i, 4);
        uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even);
    }
    std::memcpy(y, out, count * sizeof(uint16_t));
}

// Sixteen outputs of R rows, from `from` on.
template <int R, class Y>
TARGET static inline void put_rows(const Floats *out, int64_t from, const float *bias, int64_t outs, int64_t width, Y *y) {
    int count = outs - from < 16 ? int(outs - from) : 16;
    for (int r = 0; r < R; r++) {
        alignas(64) float line[16];
        store(line, out[r]);
        if (bias) for (int n = 0; n < count; n++) line[n] += bias[from + n];
        put(y + r * width + from, line, count);
    }
}

// R rows times the panel of outputs [from, from + 16) of `outs`; y: lines of `width`, float32 or bfloat16.
template <class T, int R, class Y>
TARGET static void some_rows(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t from, const float *bias,
                             int64_t outs, int64_t width, Y *y) {
    Floats out[R];
    panel<T, R>(packed, packed + T::codes(columns), columns, rows, out);
    put_rows<R>(out, from, bias, outs, width, y);
}

template <class T, class Y>
TARGET static void one_panel(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t count, int64_t from,
                             const float *bias, int64_t outs, int64_t width, Y *y) {
    int64_t r = 0;
    for (; r + MOST <= count; r += MOST) some_rows<T, MOST>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
    if constexpr (MOST > 4)
        for (; r + 4 <= count; r += 4) some_rows<T, 4>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
    if constexpr (MOST > 2)
        for (; r + 2 <= count; r += 2) some_rows<T, 2>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
    for (; r < count; r++) some_rows<T, 1>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
}

constexpr int TOGETHER = 4;  // panels of FP8 that are gone through together, at most

// R rows times `count` panels, as many together as the registers hold.
template <class T, int R, int P, class Y>
TARGET static void some_float_panels(const uint8_t *packed, int64_t count, int64_t columns, const Rounded *rows, int64_t from,
                                     const float *bias, int64_t outs, int64_t width, Y *y) {
    const int64_t size = int64_t(T::panel(columns));
    for (; count >= P; count -= P, packed += P * size, from += 16 * P) {
        Floats out[P * R];
        float_panels<T, R, P>(packed, size, columns, rows, out);
        for (int p = 0; p < P; p++) put_rows<R>(out + p * R, from + 16 * p, bias, outs, width, y);
    }
    if constexpr (P > 1)
        if (count > 0) some_float_panels<T, R, P / 2>(packed, count, columns, rows, from, bias, outs, width, y);
}

// `panels` of FP8 (up to TOGETHER) times `count` rows.
template <class T, class Y>
TARGET static void some_of_floats(const uint8_t *packed, int64_t panels, int64_t columns, const Rounded *rows, int64_t count,
                                  int64_t from, const float *bias, int64_t outs, int64_t width, Y *y) {
    int64_t r = 0;
    for (; r + MOST <= count; r += MOST) some_float_panels<T, MOST, 2>(packed, panels, columns, rows + r, from, bias, outs, width, y + r * width);
    if constexpr (MOST > 4)
        for (; r + 4 <= count; r += 4) some_float_panels<T, 4, 4>(packed, panels, columns, rows + r, from, bias, outs, width, y + r * width);
    if constexpr (MOST > 2)
        for (; r + 2 <= count; r += 2) some_float_panels<T, 2, TOGETHER>(packed, panels, columns, rows + r, from, bias, outs, width, y + r * width);
    for (; r < count; r++) some_float_panels<T, 1, TOGETHER>(packed, panels, columns, rows + r, from, bias, outs, width, y + r * width);
}

}  // namespace ISA
