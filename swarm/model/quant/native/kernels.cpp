// What Python calls: packing, unpacking rows, products. Every call says with how many threads it may run; the helpers are
// all that stays from one call to the next.
#include <cmath>
#include <cstdlib>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "helpers.h"
#include "layout.h"
#include "repack.h"

// One row of x as bytes: q [columns], scale [columns / 32], sums [columns / 16] of the bytes; and what a format makes of
// them per `sub` columns: zero = -T::zero * sum(q), mean = scale * sum(q). x: the row itself, for formats of floats.
struct Rounded {
    float *x;
    int8_t *q;
    float *scale, *mean;
    int32_t *sums, *zero;
};

// A call of attention, and one session's part in it, as Python fills them in (native.py). Strides in numbers.
struct AttendJob {
    void *keys, *values;                         // [kv_heads, slots, dim], [kv_heads, slots, value_dim]
    int64_t key_head, value_head;                // from one head to the next
    int64_t key_slot, value_slot;                // from one slot to the next: more than value_dim where values are parts of keys
    int64_t start, rows, scratch;                // rows [start, start + rows) of the call
    const int64_t *write, *prefix, *low;         // per row: its slot; committed positions [low, prefix) are seen
    const int64_t *seen, *slot, *position;       // per row from seen[r] to seen[r + 1]: scratch slots on its path, in order
};
struct AttendCall {
    const void *query, *key, *value;             // [rows] by these strides; no key: nothing is written, no value: keys alone
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    void *out;                                   // [rows, heads, value_dim]
    int64_t heads, kv_heads, dim, value_dim;
    const float *sinks;                          // [heads] or null
    double scale_, cap_;
    float scale, cap;
};
const int64_t TILE = 256;  // queries of a tile, at most

// Rows of one session through a recurrent operator, in the order of their positions (states.h; linear/ordered.py). from: the
// state that a row goes on with: -2 that of the row before it here, -1 the one near the text's end, else a saved one; then
// the entries in the slots replayed[replay[i + 1]] up to replayed[replay[i + 2]] are taken in. The state near the end first
// takes in those from replay[0] to replay[1]. settle: the row behind which it is left, or -1.
struct StateRows {
    int64_t rows, saved, settle;
    const int64_t *row, *slot, *from, *save, *replay, *replayed;
};
// A rule (rule.py); slots: of each of the stores. beta: null where rows correct nothing.
struct RuleCall {
    int64_t key_heads, key_dim, value_heads, value_dim, decays, slots;
    const float *query, *key, *value, *decay, *beta;
    float *out, *state, *keys, *updates;
    double *sums;
};
// A scan (scan.py).
struct ScanCall {
    int64_t channels, states;
    const float *steps, *updates, *decay, *given, *wanted;
    float *out, *state, *given_slots, *update_slots, *step_slots;
};

#define ISA plain
#define TARGET
#include "simd_plain.h"
#include "product.h"
#include "layer.h"
#include "dense.h"
#include "attend.h"
#include "states.h"
#undef ISA
#undef TARGET

// TILES_IN_PLAIN: for tests. The portable instruction set and its tiles in C++ are then all there is.
#if defined(TILES_IN_PLAIN)
#include "tiles_plain.h"
#define HAS_TILES
#define ISA amx
#define BASE plain
#define TARGET
#include "tiles.h"
#undef ISA
#undef BASE
#undef TARGET
#elif defined(__x86_64__)
#define HAS_SIMD
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd_avx2.h"
#include "product.h"
#include "layer.h"
#include "dense.h"
#include "attend.h"
#include "states.h"
#undef ISA
#undef TARGET
#define ISA avx512
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#include "simd_avx512.h"
#include "product.h"
#include "layer.h"
#include "dense.h"
#include "attend.h"
#include "states.h"
#undef ISA
#undef TARGET
#define ISA avx512bf16
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")))
#include "simd_bf16.h"
#include "dense.h"
#include "attend.h"
#undef ISA
#undef TARGET
#if defined(__linux__) && __has_include(<amxint8intrin.h>)
#include <sys/syscall.h>
#include <unistd.h>
#include <cpuid.h>
#define HAS_TILES
#define ISA amx
#define BASE avx512
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")))
#include "tiles.h"
#undef ISA
#undef BASE
#undef TARGET
#endif
#endif

namespace {

helpers::Pool pool;

typedef void (*Gomp)(void (*)(void *), void *, unsigned, unsigned);

template <class W> struct Shared {
    const W *work;
    int64_t count;
    std::atomic<int64_t> next;

    static void run(void *self) {
        auto *shared = static_cast<Shared *>(self);
        for (int64_t i; (i = shared->next.fetch_add(1, std::memory_order_relaxed)) < shared->count;) (*shared->work)(i);
    }
};

// Who else works: `threads` with the caller, ours or (gomp) those of the OpenMP library that torch computes with.
struct Crew {
    int threads;
    Gomp gomp;
};

// Runs work(i) for i in [0, count), each taken by whichever thread is free. wake: whether ours are to be woken for it.
template <class W> void each(int64_t count, Crew crew, bool wake, const W &work) {
    if (crew.gomp && crew.threads > 1 && count > 1) {
        Shared<W> shared{&work, count, {0}};
        crew.gomp(Shared<W>::run, &shared, unsigned(crew.threads), 0);
        return;
    }
    pool.run(count, crew.threads, wake, [](const void *w, int64_t i) { (*static_cast<const W *>(w))(i); }, &work);
}

enum { PLAIN, AVX2, AVX512, AVX512BF16, AMX };

const int64_t CACHE = 384 << 10;    // bytes of rounded rows that stay in a core's second cache beside a panel
const int64_t TASK = 64 << 10;      // bytes of matrices that one thread takes at a time, at least
const int64_t SMALL = 128 << 10;    // bytes times rows below which handing out costs more than it saves
const int64_t WAKE = 1 << 20;       // the same for helpers that sleep

#if defined(HAS_SIMD)
#define BY_ISA(isa, call)                    \
    do {                                     \
        if (isa >= AVX512) avx512::call;     \
        else if (isa == AVX2) avx2::call;    \
        else plain::call;                    \
    } while (0)
#define BY_DENSE(isa, call)                  \
    do {                                     \
        if (isa >= AVX512BF16) avx512bf16::call; \
        else BY_ISA(isa, call);              \
    } while (0)
#else
#define BY_ISA(isa, call) plain::call
#define BY_DENSE(isa, call) plain::call
#endif

// A matrix of a call, as Python fills it in (native.py).
struct Item {
    const uint8_t *packed;
    const float *bias;  // or null
    void *y;            // [rows, out_features]
    int64_t out_features, kind;
};

// A matrix, the rows of the call that it multiplies, [first, first + count), and where their results go: lines of `width`
// from y on. Python fills it in for experts; an Item is one whose rows are all of them.
struct Part {
    const uint8_t *packed;
    const float *bias;
    void *y;
    int64_t out_features, kind, width, first, count;
};

struct Plan {
    int64_t panels, size, first, together;  // panels of `size` bytes; the first of its tasks; panels of a task
    int64_t step;                           // panels that are gone through together
    Rounded *rows;                          // of the call, as the matrix's format wants them
    void (*multiply)(int isa, const Part &part, int64_t columns, const Rounded *rows, int64_t at, int64_t count,
                     int64_t panel, int64_t panels, bool narrow);
};

// What the formats of a call make of its rows, once for each format.
struct Kind {
    int64_t number;
    Rounded *rows;
    void (*prepare)(int isa, int64_t columns, Rounded row);
};

struct Scratch {  // freed when a call ends
    void *at[8] = {};
    int count = 0;
    template <class E> E *take(int64_t n) { return static_cast<E *>(at[count++] = std::malloc(size_t(n) * sizeof(E))); }
    ~Scratch() { for (void *p : at) std::free(p); }
};

template <class T> void prepare(int isa, int64_t columns, Rounded row) { BY_ISA(isa, prepare_row<T>(columns, row)); }

// Rows [at, at + count) of a part times one panel, of FP8 `panels` of them.
template <class T>
void multiply(int isa, const Part &part, int64_t columns, const Rounded *rows, int64_t at, int64_t count, int64_t panel,
              int64_t panels, bool narrow) {
    const uint8_t *packed = part.packed + panel * int64_t(T::panel(columns));
    int64_t width = part.width, outs = part.out_features;
    auto to = [&](auto *y) {
        y += at * width;
#if defined(HAS_TILES)
        if constexpr (!T::floats)
            if (isa == AMX && count >= amx::FEWEST_ROWS)
                return amx::many_rows<T>(packed, columns, rows + at, count, panel * 16, part.bias, outs, width, y);
#endif
        if constexpr (T::floats)
            BY_ISA(isa, some_of_floats<T>(packed, panels, columns, rows + at, count, panel * 16, part.bias, outs, width, y));
        else BY_ISA(isa, one_panel<T>(packed, columns, rows + at, count, panel * 16, part.bias, outs, width, y));
    };
    if (narrow) to(static_cast<uint16_t *>(part.y));
    else to(static_cast<float *>(part.y));
}

int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

enum { DENSE_F32 = 0, DENSE_BF16 = 30 };  // ggml's numbers
const int64_t AS_USUAL = 1000;             // added to them: no panels, but the matrix as it always lies

bool is_dense(int64_t kind) { return kind % AS_USUAL == DENSE_F32 || kind % AS_USUAL == DENSE_BF16; }

const int64_t ROW_BLOCK = 256;   // rows of a task: what they are laid out to stays in the second cache
const int64_t LAID_OUT = 8;      // rows that are laid out by one thread at a time: no fewer than a tile's

// Products with matrices of plain numbers, all of one kind. W: how numbers are stored, in x and y too.
template <class W>
int dense_products(int isa, const Item *items, int64_t many, int64_t columns, const W *x, int64_t rows, Crew crew) {
    const int64_t steps = columns * int64_t(sizeof(W)) / 4, panel = steps * 64, groups = 24;
    int64_t panels = 0;
    for (int64_t m = 0; m < many; m++) panels += (items[m].out_features + 15) / 16;
    if (panels * panel * rows < SMALL) crew.threads = 1;
    int64_t together = panels / (8 * crew.threads) / groups * groups;
    int64_t most = TASK * 16 / panel / groups * groups;  // with few rows no less than is worth handing out
    together = together > most && most > 0 ? most : together;
    together = together > 0 ? together : groups;
    int64_t firsts[9] = {}, blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    for (int64_t m = 0; m < many; m++) firsts[m + 1] = firsts[m] + ((items[m].out_features + 15) / 16 + together - 1) / together;
    auto *laid = static_cast<uint32_t *>(std::malloc(size_t(rows * steps) * 4));
    if (!laid) return -2;
    std::atomic<bool> failed{false};
    each((rows + LAID_OUT - 1) / LAID_OUT, rows < 8 ? Crew{1, nullptr} : crew, true, [&](int64_t i) {
        int64_t r = i * LAID_OUT, n = rows - r < LAID_OUT ? rows - r : LAID_OUT;
        BY_DENSE(isa, lay_out(x + r * columns, columns, n, steps, laid + r * steps));
    });
    each(firsts[many] * blocks, crew, panels * panel * rows >= WAKE, [&](int64_t i) {
        int64_t r = i / firsts[many] * ROW_BLOCK, n = rows - r < ROW_BLOCK ? rows - r : ROW_BLOCK, m = many - 1;
        i %= firsts[many];
        while (firsts[m] > i) m--;
        const Item &item = items[m];
        int64_t all = (item.out_features + 15) / 16, first = (i - firsts[m]) * together;
        int64_t count = all - first < together ? all - first : together;
        bool usual = item.kind >= AS_USUAL;
        int64_t room = usual ? 16 * 1024 * 16 : 0;  // group_of(n) panels of DEPTH
        auto *sums = static_cast<float *>(std::malloc(size_t(n * count * 16 + room) * 4));
        if (!sums) {
            failed = true;
            return;
        }
        auto *turned = usual ? reinterpret_cast<uint32_t *>(sums + n * count * 16) : nullptr;
        const uint8_t *matrix = usual ? item.packed : item.packed + first * panel;
        W *y = static_cast<W *>(item.y) + r * item.out_features;
        BY_DENSE(isa, dense_rows(matrix, count, steps, laid + r * steps, n, sums, item.bias, first * 16, item.out_features, y,
                                 turned));
        std::free(sums);
    });
    std::free(laid);
    return failed ? -2 : 0;
}

int products(int isa, const Item *items, int64_t many, int64_t columns, const void *x, int64_t rows, bool narrow,
             Crew crew);

// Matrices of several sorts, one after the other.
int mixed_products(int isa, const Item *items, int64_t many, int64_t columns, const void *x, int64_t rows, bool narrow,
                   Crew crew) {
    for (int64_t m = 0; m < many; m++)
        if (int code = products(isa, items + m, 1, columns, x, rows, narrow, crew)) return code;
    return 0;
}

const int KINDS = 24;  // at least as many as there are formats

// x [rows, columns]; picks: which of them each of the `picked` rows that the parts speak of is, null: row i is row i.
int compute(int isa, const Part *parts, int64_t many, int64_t columns, const void *x, int64_t rows, const int64_t *picks,
            int64_t picked, bool narrow, Crew crew) {
    const int64_t blocks = columns / 32;
    Scratch scratch;
    auto *plans = scratch.take<Plan>(many);
    Kind kinds[KINDS];
    int different = 0;
    bool floats = false;
    int64_t bytes = 0, work = 0, tasks = 0, longest = 0;
    if (!plans) return -2;
    for (int64_t m = 0; m < many; m++) {
        Plan &plan = plans[m];
        Kind kind{parts[m].kind, nullptr, nullptr};
        bool known = layout::with_type(int(kind.number), [&](auto t) {
            using T = decltype(t);
            kind.prepare = prepare<T>, plan.multiply = multiply<T>, plan.size = int64_t(T::panel(columns));
            floats |= T::floats, plan.step = T::floats ? 4 : 1;
        });
        if (!known) return -1;
        plan.panels = (parts[m].out_features + 15) / 16;
        bytes += plan.panels * plan.size, work += plan.panels * plan.size * parts[m].count;
        longest = parts[m].count > longest ? parts[m].count : longest;
        int k = 0;
        while (k < different && kinds[k].number != kind.number) k++;
        if (k == different) kinds[different++] = kind;
    }
    if (work < SMALL) crew.threads = 1;
    // Large matrices in larger tasks: what is asked for ahead of its time should be read by the same thread.
    int64_t task = bytes / (16 * crew.threads) > TASK ? bytes / (16 * crew.threads) : TASK;
    for (int64_t m = 0; m < many; m++) {
        Plan &plan = plans[m];
        plan.together = task / plan.size > 0 ? task / plan.size : 1;
        plan.first = tasks;
        tasks += (plan.panels + plan.together - 1) / plan.together;
    }
    // A row's bytes, scales and sums are there once, what a format makes of them once for each format.
    const int64_t whole = lines(columns) + lines(blocks * 4) + lines(blocks * 8);
    int64_t shared = whole + (floats ? lines(columns * 4) : 0), own = 2 * lines(blocks * 8);
    int64_t row_bytes = shared + different * own, each_kind = rows + (picks ? picked : 0);
    auto *memory = scratch.take<uint8_t>(rows * row_bytes + 64);
    auto *rounded = scratch.take<Rounded>(each_kind * different);
    if (!memory || !rounded) return -2;
    uint8_t *base = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
    for (int k = 0; k < different; k++) kinds[k].rows = rounded + k * each_kind;
    each(rows, rows < 8 ? Crew{1, nullptr} : crew, true, [&](int64_t r) {
        uint8_t *p = base + r * row_bytes, *q = p + shared;
        auto *scale = reinterpret_cast<float *>(p + lines(columns));
        auto *sums = reinterpret_cast<int32_t *>(p + lines(columns) + lines(blocks * 4));
        Rounded row{reinterpret_cast<float *>(p + whole), reinterpret_cast<int8_t *>(p), scale, nullptr, sums, nullptr};
        if (floats && narrow) BY_ISA(isa, keep_row(static_cast<const uint16_t *>(x) + r * columns, columns, row.x));
        if (floats && !narrow) BY_ISA(isa, keep_row(static_cast<const float *>(x) + r * columns, columns, row.x));
        if (narrow) BY_ISA(isa, round_row(static_cast<const uint16_t *>(x) + r * columns, columns, row));
        else BY_ISA(isa, round_row(static_cast<const float *>(x) + r * columns, columns, row));
        for (int k = 0; k < different; k++, q += own) {
            row.mean = reinterpret_cast<float *>(q), row.zero = reinterpret_cast<int32_t *>(q + own / 2);
            kinds[k].prepare(isa, columns, row);
            kinds[k].rows[r] = row;
        }
    });
    for (int k = 0; picks && k < different; k++) {
        for (int64_t i = 0; i < picked; i++) kinds[k].rows[rows + i] = kinds[k].rows[picks[i]];
        kinds[k].rows += rows;
    }
    for (int64_t m = 0; m < many; m++) {
        int k = 0;
        while (kinds[k].number != parts[m].kind) k++;
        plans[m].rows = kinds[k].rows + parts[m].first;
    }
    int64_t some = CACHE / row_bytes / 8 * 8;
    some = some < 8 ? 8 : some;
    for (int64_t r = 0; r < longest; r += some) {
        each(tasks, crew, work >= WAKE, [&](int64_t i) {
            int64_t m = 0;
            for (int64_t end = many; end - m > 1;) {
                int64_t half = (m + end) / 2;
                (plans[half].first <= i ? m : end) = half;
            }
            const Plan &plan = plans[m];
            int64_t count = parts[m].count - r < some ? parts[m].count - r : some;
            int64_t panel = (i - plan.first) * plan.together, last = panel + plan.together;
            if (count <= 0) return;
            for (last = last < plan.panels ? last : plan.panels; panel < last; panel += plan.step) {
                int64_t left = last - panel < plan.step ? last - panel : plan.step;
                plan.multiply(isa, parts[m], columns, plan.rows, r, count, panel, left, narrow);
            }
        });
    }
    return 0;
}

int products(int isa, const Item *items, int64_t many, int64_t columns, const void *x, int64_t rows, bool narrow,
             Crew crew) {
    const int64_t most = 8;
    Part parts[most];
    if (many < 1 || many > most) return -1;
    int64_t plain_ones = 0;
    for (int64_t m = 0; m < many; m++) {
        plain_ones += is_dense(items[m].kind);
        if (is_dense(items[m].kind) && (items[m].kind % AS_USUAL == DENSE_BF16) != narrow) return -1;
    }
    if (plain_ones && plain_ones < many) return mixed_products(isa, items, many, columns, x, rows, narrow, crew);
    if (plain_ones)
        return narrow ? dense_products(isa, items, many, columns, static_cast<const uint16_t *>(x), rows, crew)
                      : dense_products(isa, items, many, columns, static_cast<const float *>(x), rows, crew);
    for (int64_t m = 0; m < many; m++) {
        const Item &item = items[m];
        parts[m] = {item.packed, item.bias, item.y, item.out_features, item.kind, item.out_features, 0, rows};
    }
    return compute(isa, parts, many, columns, x, rows, nullptr, rows, narrow, crew);
}

// A decoder layer as Python fills it in (layer.py); matrices without results, which a call names.
struct Layer {
    const void *first_norm, *second_norm, *q_norm, *k_norm;  // the last two: null, or for each head
    int64_t hidden, inner, heads, kv_heads, dim;
    Item q, k, v, o, gate, up, down;
    double first_eps, second_eps, q_eps, k_eps;
};

template <class F> void rowwise(int64_t rows, Crew crew, const F &work) {
    each(rows, rows < 8 ? Crew{1, nullptr} : crew, true, work);
}

template <class E>
int before(int isa, const Layer &l, const E *x, int64_t rows, const E *cos, const E *sin, E *q, E *k, E *v, Crew crew) {
    constexpr bool narrow = sizeof(E) == 2;
    Scratch scratch;
    E *normed = scratch.take<E>(rows * l.hidden);
    if (!normed) return -2;
    rowwise(rows, crew, [&](int64_t r) {
        BY_ISA(isa, norm_row(x + r * l.hidden, static_cast<const E *>(l.first_norm), float(l.first_eps), l.hidden,
                             normed + r * l.hidden));
    });
    Item items[3] = {l.q, l.k, l.v};
    items[0].y = q, items[1].y = k, items[2].y = v;
    if (int code = products(isa, items, 3, l.hidden, normed, rows, narrow, crew)) return code;
    rowwise(rows, crew, [&](int64_t r) {
        E *heads = q + r * l.heads * l.dim, *keys = k + r * l.kv_heads * l.dim;
        for (int64_t h = 0; l.q_norm && h < l.heads; h++)
            BY_ISA(isa, norm_row(heads + h * l.dim, static_cast<const E *>(l.q_norm), float(l.q_eps), l.dim, heads + h * l.dim));
        for (int64_t h = 0; l.k_norm && h < l.kv_heads; h++)
            BY_ISA(isa, norm_row(keys + h * l.dim, static_cast<const E *>(l.k_norm), float(l.k_eps), l.dim, keys + h * l.dim));
        BY_ISA(isa, rotate_row(heads, l.heads, l.dim, cos + r * l.dim, sin + r * l.dim));
        BY_ISA(isa, rotate_row(keys, l.kv_heads, l.dim, cos + r * l.dim, sin + r * l.dim));
    });
    return 0;
}

template <class E> int after(int isa, const Layer &l, const E *x, const E *seen, int64_t rows, E *y, Crew crew) {
    constexpr bool narrow = sizeof(E) == 2;
    Scratch scratch;
    E *sum = scratch.take<E>(rows * l.hidden), *normed = scratch.take<E>(rows * l.hidden);
    E *gate = scratch.take<E>(rows * l.inner), *up = scratch.take<E>(rows * l.inner);
    if (!sum || !normed || !gate || !up) return -2;
    Item o = l.o, wide[2] = {l.gate, l.up}, down = l.down;
    o.y = sum, wide[0].y = gate, wide[1].y = up, down.y = y;
    if (int code = products(isa, &o, 1, l.heads * l.dim, seen, rows, narrow, crew)) return code;
    rowwise(rows, crew, [&](int64_t r) {
        int64_t at = r * l.hidden;
        BY_ISA(isa, add_row(x + at, sum + at, l.hidden, sum + at));
        BY_ISA(isa, norm_row(sum + at, static_cast<const E *>(l.second_norm), float(l.second_eps), l.hidden, normed + at));
    });
    if (int code = products(isa, wide, 2, l.hidden, normed, rows, narrow, crew)) return code;
    rowwise(rows, crew, [&](int64_t r) { BY_ISA(isa, activate_row(gate + r * l.inner, up + r * l.inner, l.inner)); });
    if (int code = products(isa, &down, 1, l.inner, gate, rows, narrow, crew)) return code;
    rowwise(rows, crew, [&](int64_t r) {
        int64_t at = r * l.hidden;
        BY_ISA(isa, add_row(sum + at, y + at, l.hidden, y + at));
    });
    return 0;
}

// One product of many alike (a head's): x [rows, columns], y [rows, outs].
struct Batch {
    const void *x;
    const uint8_t *matrix;
    void *y;
};

// Each of the products by itself. usual: matrices lie as usual, [outs, columns]; else in panels.
template <class W>
int batched(int isa, const Batch *items, int64_t many, int64_t columns, int64_t rows, int64_t outs, bool usual, Crew crew) {
    const int64_t steps = columns * int64_t(sizeof(W)) / 4, panels = (outs + 15) / 16, work = many * panels * steps * 64 * rows;
    const int64_t block = rows < ROW_BLOCK ? rows : ROW_BLOCK, room = usual ? 16 * 1024 * 16 : 0;
    if (columns * int64_t(sizeof(W)) % 4) return -1;
    if (work < SMALL) crew.threads = 1;
    std::atomic<bool> failed{false};
    each(many, crew, work >= WAKE, [&](int64_t i) {
        auto *sums = static_cast<float *>(std::malloc(size_t(block * (panels * 16 + steps) + room) * 4));
        if (!sums) {
            failed = true;
            return;
        }
        auto *laid = reinterpret_cast<uint32_t *>(sums + block * panels * 16), *turned = usual ? laid + block * steps : nullptr;
        for (int64_t r = 0; r < rows; r += block) {
            const int64_t n = rows - r < block ? rows - r : block;
            BY_DENSE(isa, lay_out(static_cast<const W *>(items[i].x) + r * columns, columns, n, steps, laid));
            BY_DENSE(isa, dense_rows(items[i].matrix, panels, steps, laid, n, sums, nullptr, 0, outs,
                                     static_cast<W *>(items[i].y) + r * outs, turned));
        }
        std::free(sums);
    });
    return failed ? -2 : 0;
}

// Rows of a tile of attention: its queries share what is fetched of a chunk.
int64_t tile_rows(const AttendCall &call) {
    int64_t groups = call.heads / call.kv_heads, rows = 64 / groups;
    return rows > 0 ? rows : 1;
}

template <class E> int attend(int isa, const AttendCall &call, const AttendJob *jobs, int64_t many, Crew crew) {
    const int64_t groups = call.heads / call.kv_heads, rows = tile_rows(call), queries = rows * groups;
    const int64_t steps = call.dim * int64_t(sizeof(E)) / 4, line = (call.value_dim + 15) / 16 * 16;
    if (call.heads % call.kv_heads || queries > TILE || call.dim * int64_t(sizeof(E)) % 4) return -1;
    int64_t tasks = 0, work = 0;
    for (int64_t j = 0; j < many; j++) {
        const AttendJob &job = jobs[j];
        for (int64_t h = 0; call.key && h < call.kv_heads; h++)
            for (int64_t r = 0; r < job.rows; r++) {
                const E *key = static_cast<const E *>(call.key) + (job.start + r) * call.key_row + h * call.key_head;
                std::memcpy(static_cast<E *>(job.keys) + h * job.key_head + job.write[r] * job.key_slot, key, size_t(call.dim) * sizeof(E));
                if (!call.value) continue;
                const E *value = static_cast<const E *>(call.value) + (job.start + r) * call.value_row + h * call.value_head;
                std::memcpy(static_cast<E *>(job.values) + h * job.value_head + job.write[r] * job.value_slot, value, size_t(call.value_dim) * sizeof(E));
            }
        tasks += (job.rows + rows - 1) / rows * call.kv_heads;
        work += job.rows * (job.prefix[job.rows - 1] + 64) * call.heads * call.dim;
    }
    if (work < (1 << 17)) crew.threads = 1;
    std::atomic<bool> failed{false};
    each(tasks, crew, work >= (1 << 20), [&](int64_t i) {
        const AttendJob *job = jobs;
        while (i >= (job->rows + rows - 1) / rows * call.kv_heads) i -= (job->rows + rows - 1) / rows * call.kv_heads, job++;
        int64_t head = i % call.kv_heads, begin = i / call.kv_heads * rows, end = begin + rows < job->rows ? begin + rows : job->rows;
        int64_t words = 64 * (steps + line) + queries * (steps + line + 2) + 16;
        auto *memory = static_cast<uint32_t *>(std::aligned_alloc(64, size_t(lines(words * 4))));
        if (!memory) {
            failed = true;
            return;
        }
        typedef std::conditional_t<std::is_same_v<E, float>, float, uint16_t> Number;
        BY_DENSE(isa, run_tile<Number>(call, *job, head, begin, end, memory));
        std::free(memory);
    });
    return failed ? -2 : 0;
}

// A whole layer. attention: what stays the same from call to call; its rows and strides are filled in here.
template <class E>
int whole(int isa, const Layer &l, const void *given, int64_t rows, const void *cos, const void *sin, AttendCall attention,
          const AttendJob *jobs, int64_t many, void *y, Crew crew) {
    const E *x = static_cast<const E *>(given);
    const int64_t width = l.heads * l.dim, narrower = l.kv_heads * l.dim;
    Scratch scratch;
    E *q = scratch.take<E>(rows * width), *k = scratch.take<E>(rows * narrower), *v = scratch.take<E>(rows * narrower);
    E *seen = scratch.take<E>(rows * width);
    if (!q || !k || !v || !seen) return -2;
    if (int code = before(isa, l, x, rows, static_cast<const E *>(cos), static_cast<const E *>(sin), q, k, v, crew)) return code;
    attention.query = q, attention.key = k, attention.value = v, attention.out = seen;
    attention.query_row = width, attention.key_row = attention.value_row = narrower;
    attention.query_head = attention.key_head = attention.value_head = l.dim;
    attention.heads = l.heads, attention.kv_heads = l.kv_heads, attention.dim = attention.value_dim = l.dim;
    if (int code = attend<E>(isa, attention, jobs, many, crew)) return code;
    return after(isa, l, x, seen, rows, static_cast<E *>(y), crew);
}

// Columns of a state that one task takes: half of a core's first cache for 128 rows of keys.
const int64_t COLUMNS = 64;

int rule(int isa, const RuleCall &c, const StateRows &r, Crew crew) {
    const int64_t parts = (c.value_dim + COLUMNS - 1) / COLUMNS, work = r.rows * c.value_heads * c.key_dim * c.value_dim;
    if (c.key_heads < 1 || c.value_heads % c.key_heads || (c.decays != 1 && c.decays != c.key_dim)) return -1;
    std::atomic<bool> failed{false};
    if (work < (1 << 16)) crew.threads = 1;
    each(c.value_heads * parts, crew, work >= (1 << 20), [&](int64_t i) {
        const int64_t head = i / parts, from = i % parts * COLUMNS;
        const int64_t panels = ((c.value_dim - from < COLUMNS ? c.value_dim - from : COLUMNS) + 15) / 16;
        const int64_t words = (2 + r.saved) * c.key_dim * 16 * panels + lines(c.key_dim * 4) / 4 + 48 * panels;
        auto *memory = static_cast<float *>(std::aligned_alloc(64, size_t(lines(words * 4))));
        if (!memory) {
            failed = true;
            return;
        }
        if (panels == 1) BY_ISA(isa, rule_part<1>(c, r, head, from, memory));
        else if (panels == 2) BY_ISA(isa, rule_part<2>(c, r, head, from, memory));
        else if (panels == 3) BY_ISA(isa, rule_part<3>(c, r, head, from, memory));
        else BY_ISA(isa, rule_part<4>(c, r, head, from, memory));
        std::free(memory);
    });
    return failed ? -2 : 0;
}

int scan(int isa, const ScanCall &c, const StateRows &r, Crew crew) {
    const int64_t work = r.rows * c.channels * c.states;
    std::atomic<bool> failed{false};
    if (work < (1 << 14)) crew.threads = 1;
    each((c.channels + 15) / 16, crew, work >= (1 << 18), [&](int64_t i) {
        auto *memory = static_cast<float *>(std::aligned_alloc(64, size_t(lines((3 + r.saved) * c.states * 64))));
        if (!memory) {
            failed = true;
            return;
        }
        BY_ISA(isa, scan_part(c, r, i * 16, memory));
        std::free(memory);
    });
    return failed ? -2 : 0;
}

void in_huge_pages(uint8_t *from, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t huge = 2 << 20;
    uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + huge - 1) / huge * huge;
    uintptr_t end = (reinterpret_cast<uintptr_t>(from) + uintptr_t(bytes)) / huge * huge;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);  // else as it was
#else
    (void)from, (void)bytes;
#endif
}

#if defined(HAS_SIMD)
// Whether the processor has AMX for bytes, the system keeps its tiles, and it gives them to this process: Linux wants to be
// asked, once for all threads.
bool may_use_tiles() {
#if defined(HAS_TILES)
    const unsigned tile = 1u << 24, bytes = 1u << 25, kept = 3u << 17, saved = 1u << 27;
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & saved)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kept) != kept) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (tile | bytes)) != (tile | bytes)) return false;
    const int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask, tile_data) == 0;
#else
    return false;
#endif
}
#endif

}  // namespace

extern "C" {

int swarm_quant_version() { return 11; }

// The best instruction set of this processor: 0 plain, 1 AVX2, 2 AVX-512 with VNNI, 3 also with bfloat16, 4 also with AMX.
int swarm_quant_isa() {
#if defined(TILES_IN_PLAIN)
    return AMX;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c"))
        return !__builtin_cpu_supports("avx512bf16") ? AVX512 : may_use_tiles() ? AMX : AVX512BF16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return AVX2;
#endif
    return PLAIN;
}

// Bytes of a packed matrix; 0 where the type or the shape has no layout.
int64_t swarm_quant_bytes(int kind, int64_t rows, int64_t columns) {
    int64_t bytes = 0;
    if (kind == DENSE_F32 && columns > 0) return (rows + 15) / 16 * columns * 64;
    if (kind == DENSE_BF16 && columns > 0 && columns % 2 == 0) return (rows + 15) / 16 * columns * 32;
    layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        if (columns > 0 && columns % (T::super ? 256 : 32) == 0) bytes = (rows + 15) / 16 * int64_t(T::panel(columns));
    });
    return bytes;
}

// Rows [first, last) of a matrix, first a multiple of 16 and last one or the end. With the first of them the panels of all
// are asked for in huge pages where the system has them and they are not touched yet: only blocks that lie within them
// altogether, so nothing grows by it. (Zen 4 in a virtual machine, one row: 22 to 24 GB/s.)
int swarm_quant_pack(int kind, const uint8_t *stored, const int32_t *order, int64_t rows, int64_t columns,
                     uint8_t *packed, int64_t first, int64_t last, int threads) {
    if (first < 0 || first % 16 || last > rows || (last % 16 && last < rows)) return -1;
    if (!first) in_huge_pages(packed, swarm_quant_bytes(kind, rows, columns));
    const int64_t begin = first / 16, count = (last + 15) / 16 - begin;
    if (is_dense(kind)) {  // words of four bytes: a float32 or two bfloat16
        int64_t words = kind == DENSE_F32 ? columns : columns / 2;
        auto *from = reinterpret_cast<const uint32_t *>(stored);
        auto *to = reinterpret_cast<uint32_t *>(packed);
        each(count, Crew{threads, nullptr}, true, [&](int64_t i) {
            int64_t panel = begin + i;
            for (int64_t n = 0; n < 16; n++) {
                int64_t row = panel * 16 + n, source = row < rows && order ? order[row] : row;
                for (int64_t s = 0; s < words; s++)
                    to[(panel * words + s) * 16 + n] = row < rows ? from[source * words + s] : 0;
            }
        });
        return 0;
    }
    return layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        each(count, Crew{threads, nullptr}, true, [&](int64_t i) {
            repack::panels<T>(kind, stored, order, rows, columns, packed, begin + i, begin + i + 1);
        });
    }) ? 0 : -1;
}

// Chosen rows as float32 [count, columns].
int swarm_quant_numbers(int kind, const uint8_t *packed, int64_t columns, const int64_t *rows, int64_t count, float *out,
                        int threads) {
    if (is_dense(kind)) {
        int64_t words = kind == DENSE_F32 ? columns : columns / 2;
        auto *from = reinterpret_cast<const uint32_t *>(packed);
        each(count, Crew{count < 8 ? 1 : threads, nullptr}, true, [&](int64_t i) {
            const uint32_t *at = from + rows[i] / 16 * words * 16 + rows[i] % 16;
            for (int64_t s = 0; s < words; s++) {
                uint32_t word = at[s * 16], low = word << 16, high = word & 0xffff0000u;
                if (kind == DENSE_F32) std::memcpy(out + i * columns + s, &word, 4);
                else std::memcpy(out + i * columns + 2 * s, &low, 4), std::memcpy(out + i * columns + 2 * s + 1, &high, 4);
            }
        });
        return 0;
    }
    return layout::with_type(kind, [&](auto t) {
        using T = decltype(t);
        each(count, Crew{count < 8 ? 1 : threads, nullptr}, true,
             [&](int64_t i) { repack::numbers<T>(packed, columns, rows[i], out + i * columns); });
    }) ? 0 : -1;
}

// For each of `many` (up to 8) matrices with `columns` columns: y = x W^T + bias. x [rows, columns]; x and all y are
// bfloat16 (`narrow`) or float32. gomp: GOMP_parallel of a library to use the threads of, or null.
int swarm_quant_products(int isa, const void *items, int64_t many, int64_t columns, const void *x, int64_t rows,
                         int narrow, int threads, void *gomp) {
    return products(isa, static_cast<const Item *>(items), many, columns, x, rows, narrow != 0,
                    Crew{threads, reinterpret_cast<Gomp>(gomp)});
}

// Products with experts: each of `many` parts (struct Part) multiplies its own of the `picked` rows, which are rows
// picks[i] of x [rows, columns] (i itself without picks). A row that several parts multiply is rounded once.
int swarm_quant_grouped(int isa, const void *parts, int64_t many, int64_t columns, const void *x, int64_t rows,
                        const int64_t *picks, int64_t picked, int narrow, int threads, void *gomp) {
    return compute(isa, static_cast<const Part *>(parts), many, columns, x, rows, picks, picked, narrow != 0,
                   Crew{threads, reinterpret_cast<Gomp>(gomp)});
}

// `many` products of one shape (struct Batch) with matrices of plain numbers, bfloat16 (`narrow`) or float32: the bits that
// swarm_quant_products gives of each.
int swarm_batched(int isa, const void *items, int64_t many, int64_t columns, int64_t rows, int64_t outs, int usual, int narrow,
                  int threads, void *gomp) {
    const auto *each_item = static_cast<const Batch *>(items);
    Crew crew{threads, reinterpret_cast<Gomp>(gomp)};
    if (narrow) return batched<uint16_t>(isa, each_item, many, columns, rows, outs, usual != 0, crew);
    return batched<float>(isa, each_item, many, columns, rows, outs, usual != 0, crew);
}

// The part of a decoder layer before its attention: norm, queries, keys, values, rotation. x [rows, hidden], cos and sin
// [rows, dim]; q [rows, heads * dim], k and v [rows, kv_heads * dim]. All bfloat16 (`narrow`) or float32.
int swarm_layer_before(int isa, const void *layer, const void *x, int64_t rows, const void *cos, const void *sin, void *q,
                       void *k, void *v, int narrow, int threads, void *gomp) {
    const Layer &l = *static_cast<const Layer *>(layer);
    Crew crew{threads, reinterpret_cast<Gomp>(gomp)};
    if (!narrow) {
        typedef float E;
        return before(isa, l, static_cast<const E *>(x), rows, static_cast<const E *>(cos), static_cast<const E *>(sin),
                      static_cast<E *>(q), static_cast<E *>(k), static_cast<E *>(v), crew);
    }
    typedef uint16_t E;
    return before(isa, l, static_cast<const E *>(x), rows, static_cast<const E *>(cos), static_cast<const E *>(sin),
                  static_cast<E *>(q), static_cast<E *>(k), static_cast<E *>(v), crew);
}

// The part behind it: output, sum, norm, gated layers, sum. seen [rows, heads * dim]: what attention gave; y [rows, hidden].
int swarm_layer_after(int isa, const void *layer, const void *x, const void *seen, int64_t rows, void *y, int narrow,
                      int threads, void *gomp) {
    const Layer &l = *static_cast<const Layer *>(layer);
    Crew crew{threads, reinterpret_cast<Gomp>(gomp)};
    if (!narrow)
        return after(isa, l, static_cast<const float *>(x), static_cast<const float *>(seen), rows,
                     static_cast<float *>(y), crew);
    return after(isa, l, static_cast<const uint16_t *>(x), static_cast<const uint16_t *>(seen), rows,
                 static_cast<uint16_t *>(y), crew);
}

// Attention of the rows of several sessions (attend.h): their keys and values are written to their slots, then each row
// reads. All numbers bfloat16 (`narrow`) or float32; no session is there twice.
int swarm_attend(int isa, const void *call, const void *jobs, int64_t many, int narrow, int threads, void *gomp) {
    AttendCall c = *static_cast<const AttendCall *>(call);
    c.scale = float(c.scale_), c.cap = float(c.cap_);
    Crew crew{threads, reinterpret_cast<Gomp>(gomp)};
    const auto *each_job = static_cast<const AttendJob *>(jobs);
    return narrow ? attend<uint16_t>(isa, c, each_job, many, crew) : attend<float>(isa, c, each_job, many, crew);
}

// Layers that follow each other, `count` of them (struct Layer each), whole: before, attention and behind it. x [rows, hidden]
// goes to the first one and its rows to the next; outs[i] [rows, hidden]: what layer i gives. Angles as above, of all layers.
// calls and jobs as in `swarm_attend`: of each layer one call, which needs to say scale, cap and sinks alone, and `many`
// jobs, whose rows are among the `rows`; all of these are of one.
int swarm_layers_whole(int isa, const void *layers, int64_t count, const void *x, int64_t rows, const void *cos, const void *sin,
                       const void *calls, const void *jobs, int64_t many, void *const *outs, int narrow, int threads,
                       void *gomp) {
    Crew crew{threads, reinterpret_cast<Gomp>(gomp)};
    for (int64_t i = 0; i < count; i++) {
        const Layer &l = static_cast<const Layer *>(layers)[i];
        AttendCall c = static_cast<const AttendCall *>(calls)[i];
        c.scale = float(c.scale_), c.cap = float(c.cap_);
        const AttendJob *each_job = static_cast<const AttendJob *>(jobs) + i * many;
        const void *given = i ? outs[i - 1] : x;
        int code = narrow ? whole<uint16_t>(isa, l, given, rows, cos, sin, c, each_job, many, outs[i], crew)
                          : whole<float>(isa, l, given, rows, cos, sin, c, each_job, many, outs[i], crew);
        if (code) return code;
    }
    return 0;
}

// Rows of a session through a recurrent operator (states.h): their entries are written to their slots.
int swarm_rule(int isa, const void *call, const void *rows, int threads, void *gomp) {
    return rule(isa, *static_cast<const RuleCall *>(call), *static_cast<const StateRows *>(rows),
                Crew{threads, reinterpret_cast<Gomp>(gomp)});
}
int swarm_scan(int isa, const void *call, const void *rows, int threads, void *gomp) {
    return scan(isa, *static_cast<const ScanCall *>(call), *static_cast<const StateRows *>(rows),
                Crew{threads, reinterpret_cast<Gomp>(gomp)});
}
}
