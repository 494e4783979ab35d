// Attention over slots, once per instruction set; included after dense.h and layer.h.
//
// Positions are taken in chunks of 64, counted from position 0, in rising order. A position has its place in its chunk,
// wherever its key lies; a chunk's share of the softmax is worked out over all 64 places, those that a row does not see
// having no weight, and joined to what came before (Milakov and Gimelshein 2018, arXiv:1805.02867). So a row's bits depend
// on its query and on the keys and values at the positions that it sees: not on slots, other rows, sessions or threads.

namespace ISA {

constexpr int64_t CHUNK = 64;
constexpr int LANES = 16, KEYS = CHUNK / LANES;  // a chunk's keys are four panels of sixteen

struct Weights {  // a row's weights in the chunk at hand, for the places [low, high) that it sees
    alignas(64) float share[CHUNK];
    int64_t low, high;
};

// A chunk's scores [64] become weights; they are spoilt. What was added up so far is brought to the new largest score. slots:
// null, or below 0 at places between low and high that the row does not see.
TARGET static void weigh(float *scores, const AttendCall &call, const int64_t *slots, Weights &w, float &largest, float &total,
                         float *sums, int64_t width) {
    for (int64_t i = 0; i < CHUNK; i++) scores[i] *= call.scale;
    if (call.cap > 0)
        for (int64_t i = 0; i < CHUNK; i++) {
            float twice = exponential(2.0f * (scores[i] / call.cap));  // tanh(v) = 1 - 2 / (e^(2 v) + 1)
            scores[i] = call.cap * (1.0f - 2.0f / (twice + 1.0f));
        }
    const float nothing = -__builtin_inff();
    const int32_t low = int32_t(w.low), high = int32_t(w.high);
    for (int32_t i = 0; i < CHUNK; i++) scores[i] = i >= low && i < high ? scores[i] : nothing;
    if (slots) for (int64_t i = 0; i < CHUNK; i++) scores[i] = slots[i] < 0 ? nothing : scores[i];
    alignas(64) float lanes[LANES];
    for (int k = 0; k < LANES; k++) lanes[k] = largest;
    for (int64_t i = 0; i < CHUNK; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] = scores[i + k] > lanes[k] ? scores[i + k] : lanes[k];
    float top = largest;
    for (int k = 0; k < LANES; k++) top = lanes[k] > top ? lanes[k] : top;
    float kept = largest == nothing ? 0.0f : exponential(largest - top);
    for (int64_t i = 0; i < CHUNK; i++) w.share[i] = scores[i] == nothing ? 0.0f : exponential(scores[i] - top);
    for (int k = 0; k < LANES; k++) lanes[k] = 0;
    for (int64_t i = 0; i < CHUNK; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] += w.share[i + k];
    float sum = 0;
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    total = total * kept + sum, largest = top;
    if (kept != 1.0f)
        for (int64_t i = 0; i < width; i++) sums[i] *= kept;
}

template <int R> constexpr int chunk_panels() { return panels_of<R>() < KEYS ? panels_of<R>() : KEYS; }

// sums += share[j] * values[j] for j in [low, high), for R rows and V vectors of values.
template <int R, int V>
TARGET static inline void add_values(const Weights *w, const float *values, int64_t line, int64_t low, int64_t high, float *const *sums, int64_t at) {
    Floats total[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) total[r][v] = floats_at(sums[r] + at + LANES * v);
    for (int64_t j = low; j < high; j++) {
        Floats value[V];
        for (int v = 0; v < V; v++) value[v] = floats_at(values + j * line + at + LANES * v);
        for (int r = 0; r < R; r++) {
            Floats share = spread(w[r].share[j]);
            for (int v = 0; v < V; v++) total[r][v] = fused(share, value[v], total[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(sums[r] + at + LANES * v, total[r][v]);
}

template <int R>
TARGET static void add_all(const Weights *w, const float *values, int64_t line, int64_t low, int64_t high, float *const *sums) {
    if (low >= high) return;
    int64_t at = 0;
    for (; at + 4 * LANES <= line; at += 4 * LANES) add_values<R, 4>(w, values, line, low, high, sums, at);
    for (; at < line; at += LANES) add_values<R, 1>(w, values, line, low, high, sums, at);
}

TARGET static inline void widen_row(const float *from, int64_t n, float *to) { std::memcpy(to, from, size_t(n) * 4); }
TARGET static inline void widen_row(const uint16_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) to[i] = wide(from[i]);
}

// Scratch of one task. fours: queries [count / 4][steps][4], the last four filled up with zeros; singles [count][steps].
struct Desk {
    uint32_t *panels, *fours, *singles;
    float *values, *sums;  // [64][line], [count][line]; line: a row of values, filled up to whole vectors
    float *largest, *total;
};

// One chunk for the queries [first, first + count) of a tile, which see places low[i] to high[i] of it.
template <class E>
TARGET static void chunk_rows(const AttendCall &call, const Desk &desk, int64_t first, int64_t count, const int64_t *low,
                              const int64_t *high, const int64_t *slots) {
    const int64_t steps = call.dim * int64_t(sizeof(E)) / 4, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const auto *panels = reinterpret_cast<const uint8_t *>(desk.panels);
    for (int64_t i = first; i < first + count; i += 4) {
        int64_t together = first + count - i < 4 ? first + count - i : 4;
        bool any = false, all = true;
        for (int64_t k = 0; k < together; k++) any |= low[i + k] < high[i + k], all &= low[i + k] < high[i + k];
        if (!any) continue;
        alignas(64) float scores[4 * CHUNK];
        if (i % 4 == 0 && together > 1) {
            some_panels<E, 4, chunk_panels<4>()>(panels, steps * 64, KEYS, steps, desk.fours + i * steps, scores, CHUNK, true);
        } else {
            for (int64_t k = 0; k < together; k++)
                some_panels<E, 1, KEYS>(panels, steps * 64, KEYS, steps, desk.singles + (i + k) * steps, scores + k * CHUNK, CHUNK, true);
        }
        Weights w[4];
        float *sums[4];
        int64_t begin = 0, end = CHUNK;
        for (int64_t k = 0; k < together; k++) {
            w[k].low = low[i + k], w[k].high = high[i + k], sums[k] = desk.sums + (i + k) * line;
            if (w[k].low < w[k].high) weigh(scores + k * CHUNK, call, slots, w[k], desk.largest[i + k], desk.total[i + k], sums[k], line);
            begin = w[k].low > begin ? w[k].low : begin, end = w[k].high < end ? w[k].high : end;
        }
        if (together == 1 || !all || begin >= end) {
            for (int64_t k = 0; k < together; k++) add_all<1>(w + k, desk.values, line, w[k].low, w[k].high, sums + k);
            continue;
        }
        for (int64_t k = 0; k < together; k++) add_all<1>(w + k, desk.values, line, w[k].low, begin, sums + k);
        if (together == 4) add_all<4>(w, desk.values, line, begin, end, sums);
        else add_all<2>(w, desk.values, line, begin, end, sums);
        if (together == 3) add_all<1>(w + 2, desk.values, line, begin, end, sums + 2);
        for (int64_t k = 0; k < together; k++) add_all<1>(w + k, desk.values, line, end, w[k].high, sums + k);
    }
}

// Keys and values of a chunk on the desk; slots [64], -1 where nobody looks.
template <class E>
TARGET static void fetch_chunk(const AttendCall &call, const AttendJob &job, int64_t head, const int64_t *slots, const Desk &desk) {
    const int64_t steps = call.dim * int64_t(sizeof(E)) / 4, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const E *keys = static_cast<const E *>(job.keys) + head * job.key_head;
    const E *values = static_cast<const E *>(job.values) + head * job.value_head;
    for (int64_t part = 0; part < KEYS; part++) {
        const uint32_t *from[LANES];
        for (int k = 0; k < LANES; k++) {
            int64_t slot = slots[part * LANES + k];
            from[k] = slot < 0 ? nullptr : reinterpret_cast<const uint32_t *>(keys + slot * call.dim);
        }
        turn(from, steps, desk.panels + part * LANES * steps);
    }
    for (int64_t j = 0; j < CHUNK; j++) {
        float *to = desk.values + j * line;
        if (slots[j] >= 0) widen_row(values + slots[j] * call.value_dim, call.value_dim, to);
        else std::memset(to, 0, size_t(line) * 4);
    }
}

// Rows [begin, end) of a job through one key head: all its query heads.
template <class E>
TARGET static void attend_tile(const AttendCall &call, const AttendJob &job, int64_t head, int64_t begin, int64_t end, const Desk &desk) {
    const int64_t steps = call.dim * int64_t(sizeof(E)) / 4, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const int64_t groups = call.heads / call.kv_heads, rows = end - begin, count = rows * groups;
    int64_t low[TILE], high[TILE], from[TILE], upto[TILE], slots[CHUNK];
    int64_t least = INT64_MAX, most = 0;
    std::memset(desk.fours, 0, size_t((count + 3) / 4 * 4 * steps) * 4);
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
        uint32_t *four = desk.fours + i / 4 * 4 * steps + i % 4;
        std::memcpy(desk.singles + i * steps, query, size_t(steps) * 4);
        for (int64_t s = 0; s < steps; s++) four[4 * s] = desk.singles[i * steps + s];
    }
    std::memset(desk.sums, 0, size_t(count * line) * sizeof(float));
    for (int64_t at = least == INT64_MAX ? 0 : least / CHUNK * CHUNK; at < most; at += CHUNK) {
        for (int64_t j = 0; j < CHUNK; j++) slots[j] = at + j < most && at + j >= least ? job.scratch + at + j : -1;
        fetch_chunk<E>(call, job, head, slots, desk);
        for (int64_t i = 0; i < count; i++) {
            low[i] = from[i] > at ? from[i] - at : 0, high[i] = upto[i] - at < CHUNK ? upto[i] - at : CHUNK;
            if (high[i] < low[i]) high[i] = low[i];
        }
        chunk_rows<E>(call, desk, 0, count, low, high, nullptr);
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
            fetch_chunk<E>(call, job, head, slots, desk);
            for (int64_t g = 0; g < groups; g++) low[r * groups + g] = first, high[r * groups + g] = stop;
            chunk_rows<E>(call, desk, r * groups, groups, low, high, slots);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        float *sums = desk.sums + i * line, total = desk.total[i];
        int64_t query_head = head * groups + i % groups;
        if (call.sinks) {  // one more logit, that takes a share and adds nothing
            float sink = call.sinks[query_head], top = sink > desk.largest[i] ? sink : desk.largest[i];
            float kept = exponential(desk.largest[i] - top);
            total = total * kept + exponential(sink - top);
            for (int64_t v = 0; v < call.value_dim; v++) sums[v] *= kept;
        }
        E *out = static_cast<E *>(call.out) + ((job.start + begin + i / groups) * call.heads + query_head) * call.value_dim;
        for (int64_t v = 0; v < call.value_dim; v++) out[v] = Round<E>::store(sums[v] / total);
    }
}

// `attend_tile` on a desk in these two pieces of memory.
template <class E>
TARGET static void run_tile(const AttendCall &call, const AttendJob &job, int64_t head, int64_t begin, int64_t end, uint32_t *words, float *reals) {
    const int64_t steps = call.dim * int64_t(sizeof(E)) / 4, line = (call.value_dim + LANES - 1) / LANES * LANES;
    const int64_t count = (end - begin) * (call.heads / call.kv_heads);
    uint32_t *fours = words + CHUNK * steps, *singles = fours + (count + 3) / 4 * 4 * steps;
    float *sums = reals + CHUNK * line, *largest = sums + count * line;
    attend_tile<E>(call, job, head, begin, end, Desk{words, fours, singles, reals, sums, largest, largest + count});
}

}  // namespace ISA
