// What Python calls: packing, unpacking rows, products. No state; every call says with how many threads and through
// which GOMP_parallel (that of the OpenMP library which the process has loaded already) it may run, or none.
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "layout.h"
#include "repack.h"

// One row of x as bytes: q [columns], scale [columns / 32]; per `sub` columns zero = -T::zero * sum(q) and
// mean = scale * sum(q).
struct Rounded {
    int8_t *q;
    float *scale, *mean;
    int32_t *zero;
};

#define ISA plain
#define TARGET
#include "simd_plain.h"
#include "product.h"
#undef ISA
#undef TARGET

#if defined(__x86_64__)
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd_avx2.h"
#include "product.h"
#undef ISA
#undef TARGET
#define ISA avx512
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#include "simd_avx512.h"
#include "product.h"
#undef ISA
#undef TARGET
#endif

typedef void (*Gomp)(void (*)(void *), void *, unsigned, unsigned);

namespace {

// Runs work(i) for i in [0, count), each taken by whichever thread is free.
template <class W> struct Shared {
    const W *work;
    int64_t count;
    std::atomic<int64_t> next;

    static void run(void *self) {
        auto *shared = static_cast<Shared *>(self);
        for (int64_t i; (i = shared->next.fetch_add(1, std::memory_order_relaxed)) < shared->count;) (*shared->work)(i);
    }
};

template <class W> void each(int64_t count, int threads, void *gomp, const W &work) {
    if (threads < 2 || count < 2 || !gomp) {
        for (int64_t i = 0; i < count; i++) work(i);
        return;
    }
    Shared<W> shared{&work, count, {0}};
    reinterpret_cast<Gomp>(gomp)(Shared<W>::run, &shared, unsigned(threads), 0);
}

enum { PLAIN, AVX2, AVX512 };

const int64_t CACHE = 384 << 10;  // bytes of rounded rows that stay in a core's second cache beside a panel
const int64_t TASK = 64 << 10;    // bytes of the matrix that one thread takes at a time
const int64_t SMALL = 1 << 20;    // bytes times rows below which waking threads costs more than they save

#if defined(__x86_64__)
#define BY_ISA(isa, call)                    \
    do {                                     \
        if (isa == AVX512) avx512::call;     \
        else if (isa == AVX2) avx2::call;    \
        else plain::call;                    \
    } while (0)
#else
#define BY_ISA(isa, call) plain::call
#endif

template <class T>
int product(int isa, const uint8_t *packed, int64_t out_features, int64_t columns, const float *x, int64_t rows,
            const float *bias, float *y, int threads, void *gomp) {
    int64_t subs = columns / T::sub, blocks = columns / 32;
    int64_t row_bytes = (columns + blocks * 4 + subs * 8 + 63) / 64 * 64;
    auto *memory = static_cast<uint8_t *>(std::malloc(size_t(rows * row_bytes + 64)));
    auto *rounded = static_cast<Rounded *>(std::malloc(size_t(rows) * sizeof(Rounded)));
    if (!memory || !rounded) {
        std::free(memory), std::free(rounded);
        return -2;
    }
    uint8_t *base = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *p = base + r * row_bytes;
        rounded[r].q = reinterpret_cast<int8_t *>(p);
        rounded[r].scale = reinterpret_cast<float *>(p + columns);
        rounded[r].mean = rounded[r].scale + blocks;
        rounded[r].zero = reinterpret_cast<int32_t *>(rounded[r].mean + subs);
    }
    each(rows, rows < 8 ? 1 : threads, gomp, [&](int64_t r) {
        BY_ISA(isa, round_row(x + r * columns, columns, T::sub, T::zero, rounded[r]));
    });
    int64_t panels = (out_features + 15) / 16, size = int64_t(T::panel(columns));
    int64_t together = TASK / size > 0 ? TASK / size : 1, tasks = (panels + together - 1) / together;
    if (panels * size * rows < SMALL) threads = 1;
    int64_t some = CACHE / row_bytes / 8 * 8;
    some = some < 8 ? 8 : some;
    for (int64_t r = 0; r < rows; r += some) {
        int64_t count = rows - r < some ? rows - r : some;
        each(tasks, threads, gomp, [&](int64_t task) {
            int64_t last = (task + 1) * together < panels ? (task + 1) * together : panels;
            for (int64_t p = task * together; p < last; p++)
                BY_ISA(isa, one_panel<T>(packed + p * size, columns, rounded + r, count, p * 16, bias,
                                         out_features, y + r * out_features));
        });
    }
    std::free(memory), std::free(rounded);
    return 0;
}

}  // namespace

extern "C" {

int swarm_quant_version() { return 1; }

// The best instruction set of this processor: 0 plain, 1 AVX2, 2 AVX-512 with VNNI.
int swarm_quant_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return AVX2;
#endif
    return PLAIN;
}

// Bytes of a packed matrix; 0 where the type or the shape has no layout.
int64_t swarm_quant_bytes(int kind, int64_t rows, int64_t columns) {
    int64_t bytes = 0;
    layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        if (columns > 0 && columns % (T::super ? 256 : 32) == 0) bytes = (rows + 15) / 16 * int64_t(T::panel(columns));
    });
    return bytes;
}

int swarm_quant_pack(int kind, const uint8_t *stored, const int32_t *order, int64_t rows, int64_t columns,
                     uint8_t *packed, int threads, void *gomp) {
    return layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        each((rows + 15) / 16, threads, gomp, [&](int64_t panel) {
            repack::panels<T>(kind, stored, order, rows, columns, packed, panel, panel + 1);
        });
    }) ? 0 : -1;
}

// Chosen rows as float32 [count, columns].
int swarm_quant_numbers(int kind, const uint8_t *packed, int64_t columns, const int64_t *rows, int64_t count, float *out,
                        int threads, void *gomp) {
    return layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        each(count, count < 8 ? 1 : threads, gomp,
             [&](int64_t i) { repack::numbers<T>(packed, columns, rows[i], out + i * columns); });
    }) ? 0 : -1;
}

// y [rows, out_features] = x [rows, columns] W^T + bias (or null), float32.
int swarm_quant_product(int isa, int kind, const uint8_t *packed, int64_t out_features, int64_t columns, const float *x,
                        int64_t rows, const float *bias, float *y, int threads, void *gomp) {
    int code = -1;
    layout::with_type(kind, [&](auto t) {
        code = product<decltype(t)>(isa, packed, out_features, columns, x, rows, bias, y, threads, gomp);
    });
    return code;
}
}
