// Many rows times packed matrix on a matrix unit (AMX); included after product.h, with ISA, TARGET and the operations of
// BASE (an instruction set of product.h) in scope, and with AMX's intrinsics or tiles_plain.h, which does the same in C++.
//
// A block of a panel lies as such a unit wants its second factor: eight lines of 64 bytes, of each of sixteen outputs four
// columns. So one instruction gives the integer sums of R rows, sixteen outputs and all columns of a scale; what then brings
// them to float32 is product.h's own. Integers are exact in any order: the bits are those of every other instruction set.

namespace ISA {
using namespace BASE;

struct alignas(64) TileShapes {  // what LDTILECFG reads
    uint8_t palette, start, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
};

// GCC's intrinsics do not say that they read memory: without this what was just written may not be there.
TARGET static inline __attribute__((always_inline)) void written() { __asm__ volatile("" ::: "memory"); }

// Tiles 0 and 1 are sums, 2 and 3 rows of x, 4 and 5 codes: of the two parts of a block where it has two.
template <class T, int R> TARGET static void shape_tiles() {
    TileShapes shapes = {};
    shapes.palette = 1;
    for (int h = 0; h < 2; h++) {
        shapes.lines[h] = shapes.lines[2 + h] = R, shapes.line_bytes[h] = shapes.line_bytes[4 + h] = 64;
        shapes.line_bytes[2 + h] = T::sub, shapes.lines[4 + h] = T::sub / 4;
    }
    written();
    _tile_loadconfig(&shapes);
}

template <class T> TARGET static inline void unpack(const uint8_t *block, uint8_t *to) {
    keep(to, vector<T, 0>(block)), keep(to + 64, vector<T, 1>(block));
    keep(to + 128, vector<T, 2>(block)), keep(to + 192, vector<T, 3>(block));
    keep(to + 256, vector<T, 4>(block)), keep(to + 320, vector<T, 5>(block));
    keep(to + 384, vector<T, 6>(block)), keep(to + 448, vector<T, 7>(block));
}

// R rows times one panel: out[r] gets sixteen outputs. See `panel` in product.h. stride: bytes from one row of x to the
// next, 0 where they lie anywhere.
template <class T, int R>
TARGET static __attribute__((noinline)) void tile_panel(const uint8_t *codes, const uint8_t *scale, int64_t columns,
                                                        const Rounded *rows, int64_t stride, Floats *out) {
    constexpr int parts = 32 / T::sub;
    constexpr bool bytes = T::bits == 8 && T::table == 0;
    alignas(64) uint8_t unpacked[512];
    alignas(64) int8_t gathered[R * 32];
    alignas(64) int32_t sums[parts][R * 16];
    Floats total[R], d = spread(0.0f), m = d;
    for (int r = 0; r < R; r++) total[r] = spread(0.0f);
    if constexpr (T::scale == E4M3) d = times(floats_at(reinterpret_cast<const float *>(scale)), spread(256.0f));
    const int64_t blocks = columns / 32, ahead = AHEAD / T::code_bytes, size = int64_t(T::panel(columns));
    for (int64_t b = 0; b < blocks; b++) {
        if constexpr (T::super) {
            if (b % 8 == 0) {
                d = halves(scale + T::head(b));
                if constexpr (T::has_min) m = negative(halves(scale + T::head(b) + 32));
            }
        }
        const uint8_t *block = codes + b * T::code_bytes, *w = bytes ? block : unpacked;
        fetch_block<T>(codes, scale, b + ahead, blocks, size);
        if constexpr (!bytes) unpack<T>(block, unpacked);
        const int8_t *x = rows[0].q + b * 32;
        int64_t line = stride;
        if (!stride) {
            for (int r = 0; r < R; r++) std::memcpy(gathered + 32 * r, rows[r].q + b * 32, 32);
            x = gathered, line = 32;
        }
        written();
        _tile_zero(0);
        _tile_loadd(2, x, line);
        _tile_loadd(4, w, 64);
        _tile_dpbsud(0, 2, 4);
        _tile_stored(0, sums[0], 64);
        if constexpr (parts == 2) {
            _tile_zero(1);
            _tile_loadd(3, x + 16, line);
            _tile_loadd(5, w + 256, 64);
            _tile_dpbsud(1, 3, 5);
            _tile_stored(1, sums[parts - 1], 64);
        }
        for (int h = 0; h < parts; h++) {
            Ints sum[R];
            for (int r = 0; r < R; r++) {
                sum[r] = ints_at(sums[h] + 16 * r);
                if constexpr (T::zero != 0) sum[r] = plus(sum[r], spread(rows[r].zero[b * parts + h]));
            }
            add<T, R>(sum, scale + T::at(b), h, d, m, rows, b * parts + h, b, total);
        }
    }
    for (int r = 0; r < R; r++) out[r] = total[r];
}

template <class T, int R, class Y>
TARGET static void tile_rows(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t from, const float *bias,
                             int64_t outs, int64_t width, Y *y) {
    Floats out[R];
    int64_t stride = rows[1].q - rows[0].q;
    for (int r = 2; r < R; r++)
        if (rows[r].q - rows[r - 1].q != stride) stride = 0;
    shape_tiles<T, R>();
    tile_panel<T, R>(packed, packed + T::codes(columns), columns, rows, stride, out);
    _tile_release();  // torch's own kernels shape the tiles of this thread too
    put_rows<R>(out, from, bias, outs, width, y);
}

constexpr int64_t FEWEST_ROWS = 8;  // below it the unit is not worth shaping

// `count` rows times one panel, as in product.h; what is left of eights goes there.
template <class T, class Y>
TARGET static void many_rows(const uint8_t *packed, int64_t columns, const Rounded *rows, int64_t count, int64_t from,
                             const float *bias, int64_t outs, int64_t width, Y *y) {
    int64_t r = 0;
    for (; r + 16 <= count; r += 16) tile_rows<T, 16>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
    for (; r + 8 <= count; r += 8) tile_rows<T, 8>(packed, columns, rows + r, from, bias, outs, width, y + r * width);
    if (r < count) one_panel<T>(packed, columns, rows + r, count - r, from, bias, outs, width, y + r * width);
}

}  // namespace ISA
