// Recurrent layers over slots, once per instruction set; included after attend.h.
//
// A row's state is that of the row before it on its own path, one step further: the same steps whether rows come one by one
// or many at once, from the state near the text's end or made again from slots. So a row's bits depend on its path alone.
// Each task goes through all rows with a part of the state that no other reads: columns of a head, or sixteen channels.

namespace ISA {

// state [dim][16 P] takes a row in: state = decay * state + key x update.
template <int P>
TARGET static void take_in(float *state, int64_t dim, const float *decay, const float *key, const float *update) {
    Floats u[P];
    for (int p = 0; p < P; p++) u[p] = floats_at(update + 16 * p);
    for (int64_t d = 0; d < dim; d++)
        for (int p = 0; p < P; p++) {
            float *at = state + (d * P + p) * 16;
            store(at, fused(spread(key[d]), u[p], times(floats_at(at), spread(decay[d]))));
        }
}

// A row: update = rate * (value - key . (decay * state)) or value, state takes it in, out = query . state.
template <int P>
TARGET static void rule_row(float *state, int64_t dim, const float *decay, const float *key, const float *query, const float *value,
                            const float *rate, float *update, float *out) {
    Floats u[P], o[P];
    for (int p = 0; p < P; p++) u[p] = floats_at(value + 16 * p), o[p] = spread(0.0f);
    if (rate) {
        Floats sum[P];
        for (int p = 0; p < P; p++) sum[p] = spread(0.0f);
        for (int64_t d = 0; d < dim; d++)
            for (int p = 0; p < P; p++) {
                float *at = state + (d * P + p) * 16;
                Floats left = times(floats_at(at), spread(decay[d]));
                store(at, left), sum[p] = fused(spread(key[d]), left, sum[p]);
            }
        for (int p = 0; p < P; p++) u[p] = times(spread(*rate), plus(u[p], negative(sum[p])));
    }
    for (int64_t d = 0; d < dim; d++)
        for (int p = 0; p < P; p++) {
            float *at = state + (d * P + p) * 16;
            Floats left = rate ? floats_at(at) : times(floats_at(at), spread(decay[d]));
            Floats next = fused(spread(key[d]), u[p], left);
            store(at, next), o[p] = fused(spread(query[d]), next, o[p]);
        }
    for (int p = 0; p < P; p++) store(update + 16 * p, u[p]), store(out + 16 * p, o[p]);
}

// Columns [from, from + 16 P) of a head's state, as they lie in [dim][width], to and from a task's own; what is beyond: zeros.
TARGET static inline void columns_in(const float *state, int64_t dim, int64_t width, int64_t from, int64_t some, int64_t line, float *to) {
    for (int64_t d = 0; d < dim; d++, to += line) {
        std::memset(to, 0, size_t(line) * 4);
        std::memcpy(to, state + d * width + from, size_t(some) * 4);
    }
}
TARGET static inline void columns_out(const float *own, int64_t dim, int64_t width, int64_t from, int64_t some, int64_t line, float *state) {
    for (int64_t d = 0; d < dim; d++, own += line) std::memcpy(state + d * width + from, own, size_t(some) * 4);
}

// One head's columns [from, from + 16 P) for all rows. memory: (3 + saved) states of [dim][16 P], then dim + 48 P numbers.
template <int P> TARGET static void rule_part(const RuleCall &c, const StateRows &r, int64_t head, int64_t from, float *memory) {
    const int64_t dim = c.key_dim, width = c.value_dim, line = 16 * P, size = dim * line;
    const int64_t some = width - from < line ? width - from : line, key_head = head * c.key_heads / c.value_heads;
    float *state = memory, *near = state + size, *saved = near + size, *decay = saved + r.saved * size, *value = decay + dim;
    float *update = value + line, *out = update + line, *settled = c.state + head * dim * width;
    auto decays = [&](auto log_decay) TARGET {
        for (int64_t d = 0; d < dim; d++)
            decay[d] = d && c.decays == 1 ? decay[0] : power(LOG2_E * float(log_decay[c.decays == 1 ? 0 : d]));
    };
    auto follow = [&](float *to, int64_t first, int64_t last) TARGET {
        for (int64_t i = first; i < last; i++) {
            const int64_t slot = r.replayed[i];
            decays(c.sums + (head * c.slots + slot) * c.decays);
            std::memset(update, 0, size_t(line) * 4);
            std::memcpy(update, c.updates + (head * c.slots + slot) * width + from, size_t(some) * 4);
            take_in<P>(to, dim, decay, c.keys + (key_head * c.slots + slot) * dim, update);
        }
    };
    columns_in(settled, dim, width, from, some, line, near);
    follow(near, r.replay[0], r.replay[1]);
    if (r.settle < 0 && r.replay[0] < r.replay[1]) columns_out(near, dim, width, from, some, line, settled);
    for (int64_t i = 0; i < r.rows; i++) {
        if (r.from[i] > -2) std::memcpy(state, r.from[i] < 0 ? near : saved + r.from[i] * size, size_t(size) * 4);
        follow(state, r.replay[i + 1], r.replay[i + 2]);
        const int64_t row = r.row[i], slot = r.slot[i];
        const float *log_decay = c.decay + (row * c.value_heads + head) * c.decays;
        const float *key = c.key + (row * c.key_heads + key_head) * dim;
        decays(log_decay);
        std::memset(value, 0, size_t(line) * 4);
        std::memcpy(value, c.value + (row * c.value_heads + head) * width + from, size_t(some) * 4);
        rule_row<P>(state, dim, decay, key, c.query + (row * c.key_heads + key_head) * dim, value,
                    c.beta ? c.beta + row * c.value_heads + head : nullptr, update, out);
        std::memcpy(c.out + (row * c.value_heads + head) * width + from, out, size_t(some) * 4);
        std::memcpy(c.updates + (head * c.slots + slot) * width + from, update, size_t(some) * 4);
        if (from == 0) {
            for (int64_t d = 0; d < c.decays; d++) c.sums[(head * c.slots + slot) * c.decays + d] = log_decay[d];
            if (head * c.key_heads % c.value_heads == 0)
                std::memcpy(c.keys + (key_head * c.slots + slot) * dim, key, size_t(dim) * 4);
        }
        if (r.save[i] >= 0) std::memcpy(saved + r.save[i] * size, state, size_t(size) * 4);
        if (r.settle == i) columns_out(state, dim, width, from, some, line, settled);
    }
}

// Sixteen channels of a scan for all rows. memory: (2 + saved) states of [states][16], then the decays as large as one.
TARGET static void scan_part(const ScanCall &c, const StateRows &r, int64_t from, float *memory) {
    const int64_t n = c.states, size = n * 16, some = c.channels - from < 16 ? c.channels - from : 16;
    float *state = memory, *near = state + size, *saved = near + size, *decay = saved + r.saved * size;
    auto turn_in = [&](const float *lines, float *to) TARGET {
        for (int64_t k = 0; k < 16; k++)
            for (int64_t d = 0; d < n; d++) to[d * 16 + k] = k < some ? lines[(from + k) * n + d] : 0.0f;
    };
    auto turn_out = [&](const float *own) TARGET {
        for (int64_t k = 0; k < some; k++)
            for (int64_t d = 0; d < n; d++) c.state[(from + k) * n + d] = own[d * 16 + k];
    };
    auto some_of = [&](const float *line) TARGET {
        alignas(64) float lanes[16] = {};
        std::memcpy(lanes, line + from, size_t(some) * 4);
        return floats_at(lanes);
    };
    auto advance = [&](float *to, const float *step, const float *update, const float *given, const float *wanted) TARGET {
        const Floats dt = some_of(step), u = some_of(update);
        Floats out = spread(0.0f);
        for (int64_t d = 0; d < n; d++) {
            Floats left = power(times(times(floats_at(decay + d * 16), dt), spread(LOG2_E)));
            Floats next = fused(u, spread(given[d]), times(left, floats_at(to + d * 16)));
            store(to + d * 16, next);
            if (wanted) out = fused(next, spread(wanted[d]), out);
        }
        return out;
    };
    auto follow = [&](float *to, int64_t first, int64_t last) TARGET {
        for (int64_t i = first; i < last; i++) {
            const int64_t slot = r.replayed[i];
            advance(to, c.step_slots + slot * c.channels, c.update_slots + slot * c.channels, c.given_slots + slot * n, nullptr);
        }
    };
    turn_in(c.decay, decay), turn_in(c.state, near);
    follow(near, r.replay[0], r.replay[1]);
    if (r.settle < 0 && r.replay[0] < r.replay[1]) turn_out(near);
    for (int64_t i = 0; i < r.rows; i++) {
        if (r.from[i] > -2) std::memcpy(state, r.from[i] < 0 ? near : saved + r.from[i] * size, size_t(size) * 4);
        follow(state, r.replay[i + 1], r.replay[i + 2]);
        const int64_t row = r.row[i], slot = r.slot[i];
        const float *step = c.steps + row * c.channels, *update = c.updates + row * c.channels, *given = c.given + row * n;
        alignas(64) float out[16];
        store(out, advance(state, step, update, given, c.wanted + row * n));
        std::memcpy(c.out + row * c.channels + from, out, size_t(some) * 4);
        std::memcpy(c.step_slots + slot * c.channels + from, step + from, size_t(some) * 4);
        std::memcpy(c.update_slots + slot * c.channels + from, update + from, size_t(some) * 4);
        if (from == 0) std::memcpy(c.given_slots + slot * n, given, size_t(n) * 4);
        if (r.save[i] >= 0) std::memcpy(saved + r.save[i] * size, state, size_t(size) * 4);
        if (r.settle == i) turn_out(state);
    }
}

}  // namespace ISA
