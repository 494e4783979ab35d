"""Recurrent layers of transformers' classes, computed over slots.

transformers writes every such layer as projections and gates of its own around two functions: a short convolution and a
rule. The layer's `forward` stays its own code; those two names in it mean ours. Without a cache at hand it takes the
path of whole passes, so one form serves passes of one row and of many.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from swarm.base.errors import ModelError
from swarm.model.attention import Attending, JobPlan, Plan
from swarm.model.linear.conv import run_conv
from swarm.model.linear.ordered import run_rule_in_order, run_scan_in_order
from swarm.model.linear.paths import Paths
from swarm.model.linear.rule import run_rule
from swarm.model.linear.scan import run_scan
from swarm.model.linear.shapes import ConvShape, RuleShape, ScanShape, StateShape


@dataclass(frozen=True)
class StateCall:
    """One call of an operator, as the trial forward at loading saw it."""

    layer: int
    shape: StateShape


@dataclass(frozen=True)
class Operator:
    """What the functions put into a layer's `forward` know of it."""

    layer: int
    attending: Attending

    def conv(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[1, channels, T] and [channels, width] -> float32 [1, channels, T]."""
        shape = ConvShape(inputs.shape[1], weight.shape[-1])
        if self._tried(shape):
            return inputs.float()
        rows = inputs[0].T
        parts = []
        for job in self.attending.jobs:
            paths = _paths(job)
            parts.append(run_conv(job.kv.conv(self.layer), paths, rows[job.start : job.stop], weight))
        return torch.cat(parts).T[None]

    def rule(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `rule.run_rule`, float32, for the rows [T, ...] of all jobs."""
        shape = RuleShape(key.shape[1], key.shape[2], value.shape[1], value.shape[2], decay.shape[2])
        if self._tried(shape):
            return torch.zeros_like(value)
        parts = []
        for job in self.attending.jobs:
            one = slice(job.start, job.stop)
            given = None if beta is None else beta[one]
            paths = _paths(job)
            rows = query[one], key[one], value[one], decay[one], given
            store, lib = job.kv.rule(self.layer), self.attending.lib
            if lib is not None:
                parts.append(run_rule_in_order(lib, store, paths, *rows))
                continue
            with self.attending.by_slot():
                parts.append(run_rule(store, paths, *rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def scan(
        self, steps: torch.Tensor, updates: torch.Tensor, decay: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """As `scan.run_scan`, float32, for the rows [T, ...] of all jobs."""
        if self._tried(ScanShape(*decay.shape)):
            return torch.zeros_like(updates)
        parts = []
        for job in self.attending.jobs:
            one = slice(job.start, job.stop)
            rows = steps[one], updates[one], decay, given[one], wanted[one]
            store, lib, paths = job.kv.scan(self.layer), self.attending.lib, _paths(job)
            if lib is not None:
                parts.append(run_scan_in_order(lib, store, paths, *rows))
                continue
            with self.attending.by_slot():
                parts.append(run_scan(store, paths, *rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _tried(self, shape: StateShape) -> bool:
        if self.attending.trial is None:
            return False
        self.attending.kept.append(StateCall(self.layer, shape))
        return True


def _paths(job: Plan) -> Paths:
    if not isinstance(job, JobPlan) or job.paths is None:
        raise ModelError("a model with recurrent layers runs without recorded graphs")
    return job.paths


def take_over(inner: nn.Module, attending: Attending) -> set[int]:
    """Put our functions into every recurrent module of an inner model. Returns the layers that have one."""
    found: set[int] = set()
    for module in inner.modules():
        layer = getattr(module, "layer_idx", None)
        forward = replaced(module)
        if forward is not None and isinstance(layer, int):
            module.forward = MethodType(forward(Operator(layer, attending)), module)
            found.add(layer)
    return found


def replaced(module: nn.Module) -> Callable[[Operator], Callable[..., Any]] | None:
    """What makes a module's `forward` of an operator; None where it calls none of the functions that we know."""
    own = inspect.unwrap(type(module).forward)
    if type(module).__name__ in _WHOLE:
        return partial(_whole, _WHOLE[type(module).__name__])
    code = getattr(own, "__code__", None)
    if not isinstance(own, FunctionType) or not isinstance(code, CodeType):
        return None
    names = set(code.co_names)
    mine = {name: make for name, make in _FUNCTIONS.items() if name in names}
    if not mine:
        return None

    def make(operator: Operator) -> Callable[..., Any]:
        known = own.__globals__ | {name: partial(function, operator) for name, function in mine.items()}
        fresh = FunctionType(code, known, own.__name__, own.__defaults__, own.__closure__)
        fresh.__kwdefaults__ = own.__kwdefaults__
        return fresh

    return make


def _whole(function: Callable[..., Any], operator: Operator) -> Callable[..., Any]:
    def forward(module: nn.Module, *args: Any, **named: Any) -> Any:
        return function(operator, module, *args, **named)

    return forward


def _causal_conv(
    operator: Operator,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    out = operator.conv(hidden_states, weight)
    out = (out if bias is None else out + bias.float()[:, None]).to(weight.dtype)
    out = out if activation is None else ACT2FN[activation](out)
    return out.to(hidden_states.dtype)


def _delta_rule(
    operator: Operator,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The gated delta rule, and Kimi's with a decay for each key dimension: all [1, T, heads, ...]."""
    q, k, v, decay = (x[0].float().contiguous() for x in (query, key, value, g))
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    decay = decay if decay.dim() == 3 else decay[..., None]
    out = operator.rule(q * q.shape[-1] ** -0.5, k, v, decay, beta[0].float())
    return out[None].to(query.dtype), None


def _mamba2(
    operator: Operator,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_: Any,
) -> torch.Tensor:
    """A Mamba-2 state space, float32 [1, T, heads, dim]."""
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = torch.clamp(functional.softplus(dt) if dt_softplus else dt, min=dt_limit[0], max=dt_limit[1])[0].float()
    x = hidden_states[0].float()
    out = operator.rule(C[0].float(), B[0].float(), x * dt[..., None], (A.float() * dt)[..., None], None)
    return (out if D is None else out + D.float()[:, None] * x)[None]


def _mamba1(
    operator: Operator,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> torch.Tensor:
    """Mamba-1's selective scan: hidden_states, dt, z and what it gives [1, channels, T], B and C [1, states, T]."""
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None]
    steps = (functional.softplus(dt) if delta_softplus else dt)[0].T.float()
    x = hidden_states[0].T.float()
    given, wanted = (part[0].T.float().contiguous() for part in (B, C))
    out = operator.scan(steps.contiguous(), steps * x, A.float(), given, wanted).T[None].to(hidden_states.dtype)
    out = out if D is None else out + hidden_states * D[None, :, None]
    return out if z is None else out * functional.silu(z)


def _lightning(
    operator: Operator, module: Any, hidden_states: torch.Tensor, *others: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    """MiniMax's layer: its decay belongs to the head and the layer alone, its blocks are written into its `forward`."""
    heads, dim = module.num_attention_heads, module.head_dim
    mixed = module.act_fn(module.qkv_proj(hidden_states))[0]
    q, k, v = torch.split(mixed.float().unflatten(-1, (heads, 3 * dim)), dim, dim=2)
    decay = -module.slope_rate.float().reshape(1, heads, 1).expand(len(mixed), heads, 1)
    out = operator.rule(q, k, v, decay, None).to(hidden_states.dtype).flatten(1)[None]
    gate = torch.sigmoid(module.output_gate(hidden_states))
    return module.out_proj(gate * module.norm(out)), None


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_conv,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _mamba2,
    "mamba_selective_scan": _mamba1,
}

_WHOLE: dict[str, Callable[..., Any]] = {"MiniMaxLightningAttention": _lightning}
