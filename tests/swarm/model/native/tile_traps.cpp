// Carries out AMX's instructions where the processor has none: each ends in an illegal instruction, whose handler does what
// it would have done (tiles_plain.h) and goes on behind it. So the kernels' own machine code is what is tested.
#include <csignal>
#include <ucontext.h>

#include "tiles_plain.h"

namespace {

struct sigaction before;
int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

int64_t taken(const uint8_t *p, int bytes) {
    int32_t wide = 0;
    if (bytes == 1) return int8_t(*p);
    std::memcpy(&wide, p, 4);
    return wide;
}

// Whether what stands at the instruction pointer is one of them; it is then done.
bool carry_out(greg_t *g) {
    const auto *at = reinterpret_cast<const uint8_t *>(g[REG_RIP]), *p = at + 5;
    if (at[0] != 0xc4 || (at[1] & 31) != 2) return false;
    const int x = at[1] & 0x40 ? 0 : 8, b = at[1] & 0x20 ? 0 : 8, prefix = at[2] & 3, third = ~at[2] >> 3 & 15;
    const int op = at[3], mode = at[4] >> 6, reg = at[4] >> 3 & 7, rm = at[4] & 7;
    int64_t where = 0, index = 0;
    if (mode != 3) {
        bool none = false;
        if (rm == 4) {
            const int sib = *p++, i = (sib >> 3 & 7) | x, base = sib & 7;
            index = i == 4 ? 0 : g[order[i]] << (sib >> 6);
            none = base == 5 && mode == 0;
            where = none ? 0 : g[order[base | b]];
        } else if (rm == 5 && mode == 0) {
            where = g[REG_RIP] + 9, none = true;
        } else {
            where = g[order[rm | b]];
        }
        const int bytes = mode == 1 ? 1 : mode == 2 || none ? 4 : 0;
        if (bytes) where += taken(p, bytes), p += bytes;
    }
    auto *memory = reinterpret_cast<void *>(where);
    if (op == 0x49 && mode == 3 && prefix == 0) tiles_plain::release();
    else if (op == 0x49 && mode == 3 && prefix == 3) tiles_plain::zero(reg);
    else if (op == 0x49 && prefix == 0) tiles_plain::configure(memory);
    else if (op == 0x4b && prefix == 3) tiles_plain::load(reg, memory, index);
    else if (op == 0x4b && prefix == 2) tiles_plain::store(reg, memory, index);
    else if (op == 0x5e && prefix == 2) tiles_plain::signed_by_unsigned(reg, rm, third);
    else return false;
    g[REG_RIP] = reinterpret_cast<greg_t>(p);
    return true;
}

void handle(int number, siginfo_t *, void *context) {
    if (!carry_out(static_cast<ucontext_t *>(context)->uc_mcontext.gregs)) sigaction(number, &before, nullptr);
}

}  // namespace

extern "C" {

void tile_traps_on() {
    struct sigaction ours = {};
    ours.sa_sigaction = handle, ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &ours, &before);
}
void tile_traps_off() { sigaction(SIGILL, &before, nullptr); }
}
