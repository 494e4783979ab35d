// Rows times matrix of plain numbers (bfloat16 or float32), once per instruction set; included after product.h.
//
// A panel holds sixteen outputs: for each step 64 bytes, of every output two neighbouring columns (bfloat16, the first in
// the low half) or one (float32). An output is one chain of fused multiply-adds in float32 in the order of the columns, of
// a pair the second column first: what AVX512-BF16's instruction does, and what the others do in two. So the bits of an
// output depend on its row of x and its row of the matrix alone, however many rows there are, in which tile a row lies and
// who computes it. (One exception: that instruction takes numbers below 1e-38 for zero.)

namespace ISA {

// R rows times P panels, `steps` steps. x [steps][R]: 4 bytes of each row. sum [R][width] is gone on with, or begun.
template <class W, int R, int P>
TARGET static __attribute__((noinline)) void tile(const uint8_t *w, int64_t panel, int64_t steps, const uint32_t *x,
                                                  float *sum, int64_t width, bool begin) {
    Floats total[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) total[r][p] = begin ? spread(0.0f) : floats_at(sum + r * width + 16 * p);
    for (int64_t s = 0; s < steps; s++) {
        if constexpr (std::is_same_v<W, uint16_t>) {
            Pairs v[P];
            for (int p = 0; p < P; p++) {
                v[p] = pairs_at(w + p * panel + 64 * s);
                if constexpr (R < 8) fetch(w + p * panel + 64 * s + NEXT);
            }
            for (int r = 0; r < R; r++)
                for (int p = 0; p < P; p++) total[r][p] = pairs(total[r][p], v[p], x[s * R + r]);
        } else {
            Floats v[P];
            for (int p = 0; p < P; p++) {
                v[p] = floats_at(reinterpret_cast<const float *>(w + p * panel + 64 * s));
                if constexpr (R < 8) fetch(w + p * panel + 64 * s + NEXT);
            }
            for (int r = 0; r < R; r++) {
                float one;
                std::memcpy(&one, x + s * R + r, 4);
                for (int p = 0; p < P; p++) total[r][p] = fused(v[p], spread(one), total[r][p]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) store(sum + r * width + 16 * p, total[r][p]);
}

// Panels of R rows that are read together: enough chains to hide the latency of one, few enough for the registers.
template <int R> constexpr int panels_of() { return ACCUMULATORS / R > 8 ? 8 : ACCUMULATORS / R > 0 ? ACCUMULATORS / R : 1; }

// Sums [R][width] of `count` panels.
template <class W, int R, int P>
TARGET static void some_panels(const uint8_t *w, int64_t panel, int64_t count, int64_t steps, const uint32_t *x,
                               float *sum, int64_t width, bool begin) {
    for (; count >= P; count -= P, w += P * panel, sum += 16 * P) tile<W, R, P>(w, panel, steps, x, sum, width, begin);
    if constexpr (P > 1) if (count > 0) some_panels<W, R, P / 2>(w, panel, count, steps, x, sum, width, begin);
}

// Rows [n] as the tiles read them: 8, 4, 2 or 1 of them (as many as fit, up to ROWS) side by side. to: n * steps words.
template <class W> TARGET static void lay_out(const W *x, int64_t stride, int64_t n, int64_t steps, uint32_t *to) {
    for (int64_t r = 0; r < n;) {
        int64_t together = ROWS;
        while (together > n - r) together /= 2;
        for (int64_t k = 0; k < together; k++) {
            const W *row = x + (r + k) * stride;
            for (int64_t s = 0; s < steps; s++) std::memcpy(to + s * together + k, row + s * (4 / sizeof(W)), 4);
        }
        to += together * steps, r += together;
    }
}

constexpr int64_t DEPTH = 1024;  // steps for which panels stay in the second cache while tiles pass by

// Sixteen lines of `steps` words each, as a panel; null lines as zeros.
TARGET static inline void turn(const uint32_t *const *lines, int64_t steps, uint32_t *panel) {
    int64_t s = turn_whole(lines, steps, panel);
    for (; s < steps; s++)
        for (int k = 0; k < 16; k++) panel[s * 16 + k] = lines[k] ? lines[k][s] : 0;
}

// Steps [at, at + deep) of `count` panels of a matrix that lies as usual, [outputs][steps] words, outputs from `from` on.
TARGET static void turn_panels(const uint8_t *matrix, int64_t from, int64_t outputs, int64_t steps, int64_t at, int64_t deep,
                               int64_t count, uint32_t *panels) {
    for (int64_t p = 0; p < count; p++) {
        const uint32_t *lines[16];
        for (int64_t k = 0; k < 16; k++) {
            int64_t row = from + 16 * p + k;
            lines[k] = row < outputs ? reinterpret_cast<const uint32_t *>(matrix) + row * steps + at : nullptr;
        }
        turn(lines, deep, panels + p * deep * 16);
    }
}

// Panels that are gone through for all rows before the next ones.
constexpr int64_t group_of(int64_t n) { return n < ROWS ? 8 : 2 * panels_of<ROWS>(); }

// `count` panels (outputs from `from` on) times n rows laid out in x; y [n, width]. sums: n * 16 * count floats. turned: null
// where w points to these panels; else w is the whole matrix as usual, and there is room for group_of(n) panels of DEPTH.
template <class W>
TARGET static void dense_rows(const uint8_t *w, int64_t count, int64_t steps, const uint32_t *x, int64_t n, float *sums,
                              const float *bias, int64_t from, int64_t width, W *y, uint32_t *turned) {
    const int64_t line = 16 * count, together_most = turned || n >= ROWS ? group_of(n) : count;
    for (int64_t group = 0; group < count; group += together_most) {
        int64_t some = count - group < together_most ? count - group : together_most;
        for (int64_t at = 0; at < steps; at += DEPTH) {
            int64_t deep = steps - at < DEPTH ? steps - at : DEPTH, panel = turned ? deep * 64 : steps * 64;
            const uint8_t *block = turned ? reinterpret_cast<const uint8_t *>(turned) : w + group * panel + at * 64;
            if (turned) turn_panels(w, from + group * 16, width, steps, at, deep, some, turned);
            const uint32_t *rows = x;
            for (int64_t r = 0; r < n;) {
                float *sum = sums + r * line + group * 16;
                int64_t together = ROWS;
                while (together > n - r) together /= 2;
                const uint32_t *here = rows + at * together;
                bool begin = at == 0;
                if constexpr (ROWS >= 8) if (together == 8) some_panels<W, 8, panels_of<8>()>(block, panel, some, deep, here, sum, line, begin);
                if constexpr (ROWS >= 4) if (together == 4) some_panels<W, 4, panels_of<4>()>(block, panel, some, deep, here, sum, line, begin);
                if (together == 2) some_panels<W, 2, panels_of<2>()>(block, panel, some, deep, here, sum, line, begin);
                if (together == 1) some_panels<W, 1, panels_of<1>()>(block, panel, some, deep, here, sum, line, begin);
                rows += together * steps, r += together;
            }
        }
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t p = 0; p < count; p++) {
            alignas(64) float out[16];
            int64_t first = from + 16 * p;
            if (first >= width) break;
            int some = width - first < 16 ? int(width - first) : 16;
            std::memcpy(out, sums + r * line + 16 * p, sizeof out);
            if (bias) for (int k = 0; k < some; k++) out[k] += bias[first + k];
            put(y + r * width + first, out, some);
        }
}

}  // namespace ISA
