// AMX's tiles in C++, for tests of tiles.h on processors without them. What each instruction does to a tile, by Intel's
// manual: lines and bytes beyond its shape are zero; a product is of signed bytes (first) and unsigned ones.
#pragma once
#include <cstdint>
#include <cstring>

// A test sets it to see that a unit which computes something else is found out.
extern "C" {
__attribute__((weak, visibility("default"))) int tiles_fault = 0;
}

namespace tiles_plain {

struct Unit {
    uint8_t shapes[64];
    uint8_t tile[8][16][64];
    int lines(int t) const { return shapes[48 + t]; }
    int line_bytes(int t) const { return shapes[16 + 2 * t] | shapes[17 + 2 * t] << 8; }
};
inline Unit &unit() {
    static thread_local Unit own;
    return own;
}

inline void configure(const void *shapes) {
    unit() = Unit();
    std::memcpy(unit().shapes, shapes, 64);
}
inline void release() { unit() = Unit(); }
inline void zero(int t) { std::memset(unit().tile[t], 0, sizeof unit().tile[t]); }
inline void load(int t, const void *from, int64_t stride) {
    zero(t);
    for (int i = 0; i < unit().lines(t); i++)
        std::memcpy(unit().tile[t][i], static_cast<const uint8_t *>(from) + i * stride, unit().line_bytes(t));
}
inline void store(int t, void *to, int64_t stride) {
    for (int i = 0; i < unit().lines(t); i++)
        std::memcpy(static_cast<uint8_t *>(to) + i * stride, unit().tile[t][i], unit().line_bytes(t));
}
inline void signed_by_unsigned(int sum, int a, int b) {
    Unit &u = unit();
    for (int m = 0; m < u.lines(sum); m++)
        for (int n = 0; n < u.line_bytes(sum) / 4; n++) {
            int32_t total;
            std::memcpy(&total, &u.tile[sum][m][4 * n], 4);
            for (int k = 0; k < u.line_bytes(a) / 4; k++)
                for (int i = 0; i < 4; i++) total += int8_t(u.tile[a][m][4 * k + i]) * u.tile[b][k][4 * n + i];
            if (m == 5 && n == 11) total += tiles_fault;
            std::memcpy(&u.tile[sum][m][4 * n], &total, 4);
        }
}

}  // namespace tiles_plain

#if defined(TILES_IN_PLAIN)
#define _tile_loadconfig tiles_plain::configure
#define _tile_release tiles_plain::release
#define _tile_zero tiles_plain::zero
#define _tile_loadd tiles_plain::load
#define _tile_stored tiles_plain::store
#define _tile_dpbsud tiles_plain::signed_by_unsigned
#endif
