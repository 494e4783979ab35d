// Attention over slots, once per instruction set; included after dense.h and layer.h.
//
// Positions are taken in chunks of 64, counted from position 0, in rising order. A position has its place in its chunk,
// wherever its key lies; a chunk's share of the softmax is worked out over all 64 places, those that a row does not see
// having no weight, and joined to what came before (Milakov and Gimelshein 2018, arXiv:1805.02867). So a row's bits depend
// on its query and on the keys and values at the positions that it sees: not on slots, other rows, sessions or threads.

namespace ISA {

constexpr int64_t CHUNK = 64;
constexpr int LANES = 16, KEYS = CHUNK / LANES;  // a chunk's keys are four panels of sixteen
constexpr int FEW = 4;                           // queries that share each load of keys and values
template <class E> constexpr int64_t STEP = 4 / int64_t(sizeof(E));  // positions in one word: two of bfloat16

// R queries times P panels: sums [R][width] of the steps [from, upto) of w, whose panels have `panel` words each. x: a line
// of words for each query. Every word of w that is read serves all R queries. begin: sums are begun instead of gone on with.
template <class E, int R, int P>
TARGET static inline void share_panels(const uint32_t *w, int64_t panel, int64_t from, int64_t upto, const uint32_t *x, int64_t line,
                                       float *sums, int64_t width, bool begin) {
    Floats total[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) total[r][p] = begin ? spread(0.0f) : floats_at(sums + r * width + LANES * p);
    for (int64_t s = from; s < upto; s++) {
        if constexpr (std::is_same_v<E, uint16_t>) {
            Pairs v[P];
            for (int p = 0; p < P; p++) v[p] = pairs_at(reinterpret_cast<const uint8_t *>(w + p * panel + LANES * s));
            for (int r = 0; r < R; r++)
                for (int p = 0; p < P; p++) total[r][p] = pairs(total[r][p], v[p], x[r * line + s]);
        } else {
            Floats v[P];
            for (int p = 0; p < P; p++) v[p] = floats_at(reinterpret_cast<const float *>(w + p * panel + LANES * s));
            for (int r = 0; r < R; r++) {
                float one;
                std::memcpy(&one, x + r * line + s, 4);
                for (int p = 0; p < P; p++) total[r][p] = fused(v[p], spread(one), total[r][p]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) store(sums + r * width + LANES * p, total[r][p]);
}

template <int R> constexpr int chunk_panels() { return panels_of<R>() < KEYS ? panels_of<R>() : KEYS; }

// The same for any number of panels.
template <class E, int R>
TARGET static void share_all(const uint32_t *w, int64_t panel, int64_t panels, int64_t from, int64_t upto, const uint32_t *x,
                             int64_t line, float *sums, int64_t width, bool begin) {
    constexpr int P = chunk_panels<R>();
    int64_t p = 0;
    for (; p + P <= panels; p += P) share_panels<E, R, P>(w + p * panel, panel, from, upto, x, line, sums + LANES * p, width, begin);
    for (; p < panels; p++) share_panels<E, R, 1>(w + p * panel, panel, from, upto, x, line, sums + LANES * p, width, begin);
}

// `share_all` for 1 to FEW queries.
template <class E>
TARGET static void share_few(int64_t queries, const uint32_t *w, int64_t panel, int64_t panels, int64_t from, int64_t upto,
                             const uint32_t *x, int64_t line, float *sums, int64_t width, bool begin) {
    if (from >= upto) return;
    if (queries == 4) share_all<E, 4>(w, panel, panels, from, upto, x, line, sums, width, begin);
    else if (queries == 3) share_all<E, 3>(w, panel, panels, from, upto, x, line, sums, width, begin);
    else if (queries == 2) share_all<E, 2>(w, panel, panels, from, upto, x, line, sums, width, begin);
    else share_all<E, 1>(w, panel, panels, from, upto, x, line, sums, width, begin);
}

// Scratch of one task, in words and floats.
struct Desk {
    uint32_t *keys;     // [KEYS][steps][LANES]: a word of sixteen keys side by side
    uint32_t *values;   // [line / LANES][CHUNK / STEP][LANES]: STEP positions of sixteen columns side by side
    uint32_t *queries;  // [count][steps]
    float *sums;        // [count][line]; line: a row of values, filled up to whole vectors
    float *largest, *total;
};

// What a query sees of the chunk at hand: places [low, high); of those, where slots is not null, only the ones whose slot is not below 0.
struct View {
    int64_t low, high;
    const int64_t *slots;

    bool sees(int64_t i) const { return i >= low && i < high && !(slots && slots[i] < 0); }
    bool all() const { return low == 0 && high == CHUNK && !slots; }
};

constexpr float LOG2_E = 1.44269504f;

// 2^v for v in [-126, 0], off by two units in the last place at most; less is taken for -126. 2^k times a polynomial on
// [-1/2, 1/2] (the first terms of the series, their last one fitted).
TARGET static inline Floats power(Floats v) {
    const float shift = 12582912.0f + 127.0f;  // brings the nearest whole number to the low bits, as an exponent
    v = greater(v, spread(-126.0f));
    Floats shifted = plus(v, spread(shift)), r = plus(v, negative(plus(shifted, spread(-shift))));
    Floats p = fused(spread(1.5403530e-4f), r, spread(1.3333558e-3f));
    p = fused(p, r, spread(9.6181291e-3f));
    p = fused(p, r, spread(5.5504109e-2f));
    p = fused(p, r, spread(2.4022651e-1f));
    p = fused(p, r, spread(6.9314718e-1f));
    return exponent(fused(p, r, spread(1.0f)), shifted);
}
TARGET static inline float power(float v) {
    alignas(64) float lanes[LANES];
    store(lanes, power(spread(v)));
    return lanes[0];
}

TARGET static inline void put_shares(Floats v, float *to) { store(to, v); }
TARGET static inline void put_shares(Floats v, uint16_t *to) {
    alignas(64) float lanes[LANES];
    store(lanes, v);
    for (int k = 0; k < LANES; k++) {  // rounded to the nearest, to even between two
        uint32_t bits;
        std::memcpy(&bits, lanes + k, 4);
        to[k] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

// Scores [queries][CHUNK] become weights (`shares`, as numbers are stored); the scores are spoilt. What was added up so far is
// brought to the new largest score. Scores count in powers of two. Sums of a chunk are joined in halves: lane k and k + 8, ...
template <class E>
TARGET static void weigh(int64_t queries, float *scores, const AttendCall &call, const View *view, E *shares, float *largest,
                         float *total, float *sums, int64_t line) {
    const float nothing = -__builtin_inff();
    const Floats scale = spread(call.cap > 0 ? call.scale : call.scale * LOG2_E);
    alignas(64) float top[LANES] = {}, kept[LANES] = {};
    for (int64_t q = 0; q < queries; q++) {
        float *score = scores + q * CHUNK;
        Floats most = times(floats_at(score), scale);
        store(score, most);
        for (int64_t i = LANES; i < CHUNK; i += LANES) {
            Floats part = times(floats_at(score + i), scale);
            store(score + i, part), most = greater(most, part);
        }
        if (call.cap > 0)
            for (int64_t i = 0; i < CHUNK; i++) {
                float twice = exponential(2.0f * (score[i] / call.cap));  // tanh(v) = 1 - 2 / (e^(2 v) + 1)
                score[i] = LOG2_E * call.cap * (1.0f - 2.0f / (twice + 1.0f));
            }
        if (!view[q].all())
            for (int64_t i = 0; i < CHUNK; i++) score[i] = view[q].sees(i) ? score[i] : nothing;
        if (call.cap > 0 || !view[q].all()) {
            most = floats_at(score);
            for (int64_t i = LANES; i < CHUNK; i += LANES) most = greater(most, floats_at(score + i));
        }
        alignas(64) float lanes[LANES];
        store(lanes, most);
        float found = greatest_of(lanes);
        top[q] = found > largest[q] ? found : largest[q];
        kept[q] = largest[q] - top[q];
    }
    store(kept, power(floats_at(kept)));
    for (int64_t q = 0; q < queries; q++) {
        float *score = scores + q * CHUNK;
        const Floats less = spread(-top[q]);
        Floats share[KEYS];
        for (int k = 0; k < KEYS; k++) share[k] = power(plus(floats_at(score + LANES * k), less));
        if (!view[q].all()) {
            for (int k = 0; k < KEYS; k++) store(score + LANES * k, share[k]);
            for (int64_t i = 0; i < CHUNK; i++) score[i] = view[q].sees(i) ? score[i] : 0.0f;
            for (int k = 0; k < KEYS; k++) share[k] = floats_at(score + LANES * k);
        }
        alignas(64) float lanes[LANES];
        store(lanes, plus(plus(share[0], share[1]), plus(share[2], share[3])));
        if (largest[q] == nothing) kept[q] = 0.0f;
        total[q] = total[q] * kept[q] + sum_of(lanes), largest[q] = top[q];
        for (int k = 0; k < KEYS; k++) put_shares(share[k], shares + q * CHUNK + LANES * k);
        if (kept[q] != 1.0f)
            for (int64_t i = 0; i < line; i += LANES)
                store(sums + q * line + i, times(floats_at(sums + q * line + i), spread(kept[q])));
    }
}

// sums [line] += what one query sees in one step: `half` of the word's positions, the others counting as zeros.
template <class E>
TARGET static void add_half(const uint32_t *values, int64_t panels, int64_t s, uint32_t half, uint32_t share, float *sums) {
    alignas(64) uint32_t word[LANES];
    for (int64_t p = 0; p < panels; p++) {
        for (int k = 0; k < LANES; k++) word[k] = values[(p * CHUNK / STEP<E> + s) * LANES + k] & half;
        share_panels<E, 1, 1>(word, LANES, 0, 1, &share, 0, sums + LANES * p, 0, false);
    }
}

// One query's part of the chunk outside the steps [first, last), before them or (`behind`) after them.
template <class E>
TARGET static void add_rest(const View &view, bool behind, int64_t first, int64_t last, const uint32_t *values, int64_t panels,
                            const uint32_t *shares, float *sums) {
    const int64_t panel = CHUNK / STEP<E> * LANES, whole = (view.low + STEP<E> - 1) / STEP<E>, done = view.high / STEP<E>;
    if (!behind) {
        int64_t s = view.low / STEP<E>;
        if (view.low % STEP<E>) add_half<E>(values, panels, s, 0xffff0000u, shares[s], sums);
        share_few<E>(1, values, panel, panels, whole, first < done ? first : done, shares, 0, sums, 0, false);
    } else {
        share_few<E>(1, values, panel, panels, whole > last ? whole : last, done, shares, 0, sums, 0, false);
        if (view.high % STEP<E> && view.high > view.low) add_half<E>(values, panels, done, 0x0000ffffu, shares[done], sums);
    }
}

// One chunk for the queries [first, first + count) of a tile, which see `view` of it.
template <class E>
TARGET static void chunk_rows(const AttendCall &call, const Desk &desk, int64_t first, int64_t count, const View *view) {
    const int64_t steps = call.dim / STEP<E>, line = (call.value_dim + LANES - 1) / LANES * LANES, panels = line / LANES;
    const int64_t words = CHUNK / STEP<E>;
    for (int64_t i = first, together; i < first + count; i += together) {
        together = 1;
        if (view[i].low >= view[i].high) continue;
        while (together < FEW && i + together < first + count && view[i + together].low < view[i + together].high) together++;
        alignas(64) float scores[FEW * CHUNK];
        alignas(64) uint32_t shares[FEW * CHUNK];
        float *sums = desk.sums + i * line;
        share_few<E>(together, desk.keys, steps * LANES, KEYS, 0, steps, desk.queries + i * steps, steps, scores, CHUNK, true);
        weigh<E>(together, scores, call, view + i, reinterpret_cast<E *>(shares), desk.largest + i, desk.total + i, sums, line);
        int64_t begin = 0, end = words;
        for (int64_t k = 0; k < together; k++) {
            int64_t from = (view[i + k].low + STEP<E> - 1) / STEP<E>, upto = view[i + k].high / STEP<E>;
            begin = from > begin ? from : begin, end = upto < end ? upto : end;
        }
        if (begin == 0 && end == words) {
            share_few<E>(together, desk.values, words * LANES, panels, 0, words, shares, words, sums, line, false);
            continue;
        }
        if (begin > end) begin = end = words;  // nothing that all of them see
        for (int64_t k = 0; k < together; k++)
            add_rest<E>(view[i + k], false, begin, end, desk.values, panels, shares + k * words, sums + k * line);
        share_few<E>(together, desk.values, words * LANES, panels, begin, end, shares, words, sums, line, false);
        for (int64_t k = 0; k < together; k++)
            add_rest<E>(view[i + k], true, begin, end, desk.values, panels, shares + k * words, sums + k * line);
    }
}

TARGET static inline void side_by_side(const float *one, const float *, int64_t n, uint32_t *to) { std::memcpy(to, one, size_t(n) * 4); }
TARGET static inline void side_by_side(const uint16_t *one, const uint16_t *next, int64_t n, uint32_t *to) {
    for (int64_t k = 0; k < n; k++) to[k] = uint32_t(one[k]) | uint32_t(next[k]) << 16;
}

template <class E> static const E *desk_of_zeros() {
    alignas(64) static const E zeros[LANES] = {};
    return zeros;
}

// Keys and values of a chunk on the desk; slots [64], -1 where nobody looks. next: whether the chunk behind it, in slots that
// follow, is asked for ahead of its time.
template <class E>
TARGET static void fetch_chunk(const AttendCall &call, const AttendJob &job, int64_t head, const int64_t *slots, bool next, const Desk &desk) {
    const int64_t steps = call.dim / STEP<E>, line = (call.value_dim + LANES - 1) / LANES * LANES, words = CHUNK / STEP<E>;
    const E *keys = static_cast<const E *>(job.keys) + head * job.key_head;
    const E *values = static_cast<const E *>(job.values) + head * job.value_head;
    if (next) {
        const auto *key = reinterpret_cast<const uint8_t *>(keys + (slots[0] + CHUNK) * job.key_slot);
        const auto *value = reinterpret_cast<const uint8_t *>(values + (slots[0] + CHUNK) * job.value_slot);
        for (int64_t at = 0; at < CHUNK * job.key_slot * int64_t(sizeof(E)); at += 64) fetch(key + at);
        if (job.values != job.keys)
            for (int64_t at = 0; at < CHUNK * job.value_slot * int64_t(sizeof(E)); at += 64) fetch(value + at);
    }
    for (int64_t part = 0; part < KEYS; part++) {
        const uint32_t *from[LANES];
        for (int k = 0; k < LANES; k++) {
            int64_t slot = slots[part * LANES + k];
            from[k] = slot < 0 ? nullptr : reinterpret_cast<const uint32_t *>(keys + slot * job.key_slot);
        }
        turn(from, steps, desk.keys + part * LANES * steps);
    }
    for (int64_t s = 0; s < words; s++) {
        int64_t one = slots[s * STEP<E>], two = slots[s * STEP<E> + STEP<E> - 1];
        const E *first = one < 0 ? desk_of_zeros<E>() : values + one * job.value_slot;
        const E *second = two < 0 ? desk_of_zeros<E>() : values + two * job.value_slot;
        for (int64_t at = 0; at < line; at += LANES) {
            int64_t n = call.value_dim - at < LANES ? call.value_dim - at : LANES, from_one = one < 0 ? 0 : at, from_two = two < 0 ? 0 : at;
            uint32_t *to = desk.values + (at * words + s * LANES);
            if (n == LANES) {
                side_by_side(first + from_one, second + from_two, LANES, to);
            } else {
                std::memset(to, 0, LANES * 4);
                side_by_side(first + from_one, second + from_two, n, to);
            }
        }
    }
}

// Rows [begin, end) of a job through one key head: all its query heads.
template <class E>
TARGET static void attend_tile(const AttendCall &call, const AttendJob &job, int64_t head, int64_t begin, int64_t end, const Desk &desk) {
    const int64_t steps = call.dim / STEP<E>, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const int64_t groups = call.heads / call.kv_heads, rows = end - begin, count = rows * groups;
    int64_t from[TILE], upto[TILE], slots[CHUNK];
    View view[TILE];
    int64_t least = INT64_MAX, most = 0;
    // Query i of the tile: row begin + i / groups, head `head` * groups + i % groups.
    for (int64_t i = 0; i < count; i++) {
        int64_t row = begin + i / groups, drafts = job.seen[row + 1] - job.seen[row];
        from[i] = job.low[row], upto[i] = drafts ? job.prefix[row] / CHUNK * CHUNK : job.prefix[row];
        if (from[i] < upto[i]) {
            least = from[i] < least ? from[i] : least;
            most = upto[i] > most ? upto[i] : most;
        }
        desk.largest[i] = -__builtin_inff(), desk.total[i] = 0;
        const E *query = static_cast<const E *>(call.query) + (job.start + row) * call.query_row + (head * groups + i % groups) * call.query_head;
        std::memcpy(desk.queries + i * steps, query, size_t(steps) * 4);
    }
    std::memset(desk.sums, 0, size_t(count * line) * sizeof(float));
    for (int64_t at = least == INT64_MAX ? 0 : least / CHUNK * CHUNK; at < most; at += CHUNK) {
        for (int64_t j = 0; j < CHUNK; j++) slots[j] = at + j < most && at + j >= least ? job.scratch + at + j : -1;
        fetch_chunk<E>(call, job, head, slots, slots[0] >= 0 && at + 2 * CHUNK <= most, desk);
        for (int64_t i = 0; i < count; i++) {
            int64_t low = from[i] > at ? from[i] - at : 0, high = upto[i] - at < CHUNK ? upto[i] - at : CHUNK;
            view[i] = {low, high < low ? low : high, nullptr};
        }
        chunk_rows<E>(call, desk, 0, count, view);
    }
    // Rows with drafts on their path: what is left of the committed positions, and those, each row by itself.
    for (int64_t r = 0; r < rows; r++) {
        int64_t row = begin + r, next = job.seen[row], last = job.seen[row + 1];
        if (next == last) continue;
        int64_t place = job.prefix[row] / CHUNK * CHUNK;
        while (next < last || place < job.prefix[row]) {
            int64_t first = CHUNK, stop = 0, at = place < job.prefix[row] ? place : job.position[next] / CHUNK * CHUNK;
            for (int64_t j = 0; j < CHUNK; j++) {
                bool seen = at + j < job.prefix[row] && at + j >= place;
                slots[j] = seen && at + j >= job.low[row] ? job.scratch + at + j : -1;
                if (slots[j] >= 0) first = j < first ? j : first, stop = j + 1;
            }
            if (place < job.prefix[row]) place = job.prefix[row];
            for (; next < last && job.position[next] / CHUNK * CHUNK == at; next++) {
                int64_t j = job.position[next] - at;
                if (job.position[next] < job.low[row]) continue;
                slots[j] = job.slot[next], first = j < first ? j : first, stop = j + 1 > stop ? j + 1 : stop;
            }
            if (first >= stop) continue;
            fetch_chunk<E>(call, job, head, slots, false, desk);
            for (int64_t g = 0; g < groups; g++) view[r * groups + g] = {first, stop, slots};
            chunk_rows<E>(call, desk, r * groups, groups, view);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        float *sums = desk.sums + i * line, total = desk.total[i];
        int64_t query_head = head * groups + i % groups;
        if (call.sinks) {  // one more logit, that takes a share and adds nothing
            float sink = LOG2_E * call.sinks[query_head], top = sink > desk.largest[i] ? sink : desk.largest[i];
            float kept = power(desk.largest[i] - top);
            total = total * kept + power(sink - top);
            for (int64_t v = 0; v < call.value_dim; v++) sums[v] *= kept;
        }
        E *out = static_cast<E *>(call.out) + ((job.start + begin + i / groups) * call.heads + query_head) * call.value_dim;
        for (int64_t v = 0; v < call.value_dim; v++) out[v] = Round<E>::store(sums[v] / total);
    }
}

// `attend_tile` on a desk in this memory.
template <class E>
TARGET static void run_tile(const AttendCall &call, const AttendJob &job, int64_t head, int64_t begin, int64_t end, uint32_t *words) {
    const int64_t steps = call.dim / STEP<E>, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const int64_t count = (end - begin) * (call.heads / call.kv_heads);
    uint32_t *values = words + CHUNK * steps, *queries = values + CHUNK / STEP<E> * line;
    auto *sums = reinterpret_cast<float *>(queries + (count * steps + LANES - 1) / LANES * LANES);
    float *largest = sums + count * line;
    attend_tile<E>(call, job, head, begin, end, Desk{words, values, queries, sums, largest, largest + count});
}

}  // namespace ISA
