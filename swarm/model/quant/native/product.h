// Rows times packed matrix, once per instruction set: included with ISA (a namespace), TARGET (an attribute) and the
// vector operations of simd.h in scope.
//
// Rows are first rounded to signed bytes in blocks of 32 (scale = largest / 127). For each output the sum over a block's
// columns of code x byte is an integer, hence exact in any order; it is brought to float32 and added, block after
// block, by fused multiply-adds. So the bits of an output depend on its row of x and its row of the matrix alone: not on
// other rows, threads or the instruction set.

namespace ISA {
using namespace layout;

constexpr int AHEAD = 8192;  // bytes; 4 to 16 KiB are alike, none costs a third of the speed from memory

TARGET static void round_row(const float *x, int64_t columns, int sub, int zero, Rounded o) {
    for (int64_t b = 0; b < columns / 32; b++) {
        const float *v = x + b * 32;
        int32_t bits[32], largest = 0;
        std::memcpy(bits, v, sizeof bits);
        for (int i = 0; i < 32; i++) {
            int32_t magnitude = bits[i] & 0x7fffffff;  // ordered like the numbers, NaN above all
            largest = magnitude > largest ? magnitude : largest;
        }
        float top, back;
        std::memcpy(&top, &largest, 4);
        float scale = top / 127.0f;
        back = scale > 0 ? 1.0f / scale : 0.0f;
        if (back > 3.0e38f) back = 0.0f, scale = 0.0f;  // numbers below 1e-36: none
        if (!(top <= 3.4028235e38f)) back = 0.0f, scale = __builtin_nanf("");  // infinite or not a number: say so
        int32_t sums[2] = {0, 0};
        for (int i = 0; i < 32; i++) {
            float shifted = v[i] * back + 12582912.0f;  // 1.5 x 2^23: rounds to nearest even in the low bits
            int32_t word;
            std::memcpy(&word, &shifted, 4);
            int32_t r = word - 0x4b400000;
            r = r > 127 ? 127 : r < -127 ? -127 : r;
            o.q[b * 32 + i] = int8_t(r);
            sums[i / 16] += r;
        }
        o.scale[b] = scale;
        if (sub == 32) {
            int32_t sum = sums[0] + sums[1];
            o.zero[b] = -zero * sum, o.mean[b] = scale * float(sum);
        } else {
            for (int h = 0; h < 2; h++) o.zero[2 * b + h] = -zero * sums[h], o.mean[2 * b + h] = scale * float(sums[h]);
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
TARGET static void panel(const uint8_t *codes, const uint8_t *scale, int64_t columns, const Rounded *rows, Floats *out) {
    constexpr int parts = 32 / T::sub;
    Floats total[R], d = spread(0.0f), m = d;
    for (int r = 0; r < R; r++) total[r] = spread(0.0f);
    int64_t blocks = columns / 32;
    for (int64_t b = 0; b < blocks; b++) {
        if constexpr (T::super) {
            if (b % 8 == 0) {
                d = halves(scale + T::head(b));
                if constexpr (T::has_min) m = negative(halves(scale + T::head(b) + 32));
            }
        }
        const uint8_t *block = codes + b * T::code_bytes, *s = scale + T::at(b);
        // Panels follow each other, so what lies ahead is wanted next; the processor's own reading ahead ends at each page.
        for (int line = 0; line < T::code_bytes; line += 64) fetch(block + AHEAD + line);
        if (b % 2 == 0) fetch(s + AHEAD);
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

// Rows [first, first + R) times panels; y [rows, width] float32.
template <class T, int R>
TARGET static void some_rows(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t from, const float *bias,
                             int64_t width, float *y) {
    Floats out[R];
    panel<T, R>(packed, packed + T::codes(columns), columns, rows, out);
    int count = width - from < 16 ? int(width - from) : 16;
    for (int r = 0; r < R; r++) {
        alignas(64) float line[16];
        store(line, out[r]);
        if (bias) for (int n = 0; n < count; n++) line[n] += bias[from + n];
        std::memcpy(y + r * width + from, line, count * sizeof(float));
    }
}

template <class T>
TARGET static void one_panel(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t count, int64_t from,
                             const float *bias, int64_t width, float *y) {
    int64_t r = 0;
    for (; r + MOST <= count; r += MOST) some_rows<T, MOST>(packed, columns, rows + r, from, bias, width, y + r * width);
    if constexpr (MOST > 4)
        for (; r + 4 <= count; r += 4) some_rows<T, 4>(packed, columns, rows + r, from, bias, width, y + r * width);
    if constexpr (MOST > 2)
        for (; r + 2 <= count; r += 2) some_rows<T, 2>(packed, columns, rows + r, from, bias, width, y + r * width);
    for (; r < count; r++) some_rows<T, 1>(packed, columns, rows + r, from, bias, width, y + r * width);
}

}  // namespace ISA
