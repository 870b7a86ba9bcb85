"""Attention for many short continuations at once, each with its own past and perhaps a shared one.

Runs inside transformers' own decoder layers as an attention function: the layers see one packed
row of tokens, so projections are done for all of them together, and only here does it matter
which token belongs to whom. Nothing is padded. Knows no scheduler and no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agent.progress import layer_done

RAGGED = "groundstream_ragged"
_LONG = 48
"""Continuations of this many tokens are worth a fused kernel of their own."""


class KeyValues:
    """Keys and values of one run of tokens, layer by layer; grows, and can forget its end."""

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (kv_heads, added, width) behind what is there; all of it, the added included.

        `length` counts tokens that every layer has, so it grows with `advance`.
        """
        end = self.length + keys.shape[1]
        held = self._layers[layer]
        if held is None or held[0].shape[1] < end:
            held = (_grown(held and held[0], keys, end), _grown(held and held[1], values, end))
            self._layers[layer] = held
        held[0][:, self.length : end] = keys
        held[1][:, self.length : end] = values
        return held[0][:, :end], held[1][:, :end]

    def advance(self, added: int) -> None:
        """All layers have seen `added` more tokens."""
        self.length += added

    def keep(self, kept: list[int], added: int) -> None:
        """Of the last `added` tokens only those at `kept` stay, in that order."""
        start = self.length - added
        if kept != list(range(len(kept))):
            rows = torch.tensor(kept, dtype=torch.long) + start
            for held in self._layers:
                assert held is not None
                for tensor in held:
                    tensor[:, start : start + len(kept)] = tensor[:, rows.to(tensor.device)]
        self.length = start + len(kept)

    def during(self, layer: int, added: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer once it has seen the `added` tokens of the present pass."""
        held = self._layers[layer]
        assert held is not None
        end = self.length + added
        return held[0][:, :end], held[1][:, :end]

    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """(keys, values) of each layer, (kv_heads, length, width), without spare room."""
        return tuple(
            (held[0][:, : self.length].clone(), held[1][:, : self.length].clone())
            for held in self._layers
            if held is not None
        )


def _grown(held: Tensor | None, like: Tensor, length: int) -> Tensor:
    """Room for twice `length` tokens with what was held at its beginning."""
    room = like.new_empty(like.shape[0], max(32, 2 * length), like.shape[2])
    if held is not None:
        room[:, : held.shape[1]] = held
    return room


@dataclass(frozen=True)
class Prefix:
    """Keys and values that several continuations share; never changed."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(keys, values) of each layer, (kv_heads, length, width)."""
    next_position: int

    @property
    def length(self) -> int:
        """Tokens in the prefix."""
        return int(self.layers[0][0].shape[1])

    @property
    def num_bytes(self) -> int:
        """Memory the prefix holds."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer)

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of one layer."""
        return self.layers[layer]


@dataclass(frozen=True)
class UnfinishedPrefix:
    """A prefix whose last tokens are in the present pass.

    Each layer sees them before it sees the continuations, so these need no pass of their own.
    """

    past: KeyValues
    before: Prefix | None
    """What it continues."""
    added: int
    """Its tokens in the present pass."""
    next_position: int

    @property
    def length(self) -> int:
        """Tokens in the prefix, those of the present pass included."""
        return (self.before.length if self.before else 0) + self.past.length + self.added

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of one layer that has seen the prefix' last tokens."""
        keys, values = self.past.during(layer, self.added)
        if self.before is None:
            return keys, values
        earlier = self.before.at(layer)
        return torch.cat([earlier[0], keys], 1), torch.cat([earlier[1], values], 1)


@dataclass
class Segment:
    """Some consecutive tokens of the packed row, and what they may look at."""

    start: int
    stop: int
    past: KeyValues
    prefix: Prefix | UnfinishedPrefix | None
    mask: Tensor | None = None
    """(tokens, tokens) True where a new token may look at a new one; None is causal."""
    _among: Tensor | None = field(default=None, init=False)

    def among(self, device: torch.device) -> Tensor:
        """`mask` written out on a device; made once for all layers."""
        if self._among is None:
            new = self.stop - self.start
            mask = self.mask
            if mask is None:
                mask = torch.ones(new, new, dtype=torch.bool).tril()
            self._among = mask.to(device)
        return self._among


@dataclass
class SegmentGroup:
    """Segments that are attended together."""

    segments: list[Segment]
    rows: Tensor
    """(tokens,) their places in the packed row."""
    _hidden: Tensor | None = field(default=None, init=False)

    def hidden(self, device: torch.device) -> Tensor:
        """(tokens, longest) True where a token may not look at its segment's tokens, past and new.

        Made once for all layers.
        """
        if self._hidden is None:
            longest = max(s.past.length + s.stop - s.start for s in self.segments)
            hidden = torch.ones(len(self.rows), longest, dtype=torch.bool)
            first = 0
            for segment in self.segments:
                new, old = segment.stop - segment.start, segment.past.length
                hidden[first : first + new, :old] = False
                hidden[first : first + new, old : old + new] = ~segment.among(hidden.device)
                first += new
            self._hidden = hidden.to(device)
        return self._hidden

    @classmethod
    def of(cls, segments: list[Segment]) -> SegmentGroup:
        """The group of some segments, in their order."""
        return cls(segments, torch.cat([torch.arange(s.start, s.stop) for s in segments]))


@dataclass
class RaggedBatch:
    """The segments of one forward pass, grouped by the prefix they share."""

    segments: list[Segment]
    """Those of a prefix come before those that continue it."""
    groups: list[SegmentGroup] = field(init=False)
    num_tokens: int = field(init=False)
    """Without filling."""

    def __post_init__(self) -> None:
        self.num_tokens = max(segment.stop for segment in self.segments)
        by_prefix: dict[int, list[Segment]] = {}
        for number, segment in enumerate(self.segments):
            # Long continuations are attended one by one.
            alone = segment.prefix is None or segment.stop - segment.start > _LONG
            key = -1 - number if alone else id(segment.prefix)
            by_prefix.setdefault(key, []).append(segment)
        self.groups = [SegmentGroup.of(segments) for segments in by_prefix.values()]

    def advance(self) -> None:
        """After the last layer: every past is longer by its segment."""
        for segment in self.segments:
            segment.past.advance(segment.stop - segment.start)


@torch.compiler.disable
def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    ragged: RaggedBatch | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface; without a batch it is ordinary fused attention.

    Args:
        module: the attention layer (its `layer_idx` says which).
        query: (1, heads, tokens, width); key, value: (1, kv_heads, tokens, width).
        ragged: the segments of this pass; tokens behind the last are filling.

    Returns:
        (1, tokens, heads, width) and None.
    """
    if ragged is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = torch.empty_like(query)
    # Filling gets numbers, too: there is no telling what lies in fresh memory.
    output[:, :, ragged.num_tokens :] = 0.0
    for group in ragged.groups:
        first = group.segments[0]
        if len(group.segments) == 1 and first.stop - first.start > _LONG:
            _attend_alone(output, query, key, value, layer, first, scale)
        else:
            _attend_group(output, query, key, value, layer, group, scale)
    layer_done()
    return output.transpose(1, 2), None


def _attend_alone(
    output: Tensor, query: Tensor, key: Tensor, value: Tensor,
    layer: int, segment: Segment, scale: float,
) -> None:  # fmt: skip
    here = slice(segment.start, segment.stop)
    keys, values = segment.past.append(layer, key[0, :, here], value[0, :, here])
    if segment.prefix is not None:
        shared = segment.prefix.at(layer)
        keys, values = torch.cat([shared[0], keys], 1), torch.cat([shared[1], values], 1)
    new = segment.stop - segment.start
    old = keys.shape[1] - new
    mask = None
    if old or segment.mask is not None:
        among = segment.among(query.device)
        mask = torch.cat([among.new_ones(new, old), among], dim=1)
    output[0, :, here] = nn.functional.scaled_dot_product_attention(
        query[:, :, here], keys[None], values[None], attn_mask=mask, scale=scale,
        is_causal=mask is None and new > 1, enable_gqa=query.shape[1] != keys.shape[0],
    )[0]  # fmt: skip


def _attend_group(
    output: Tensor, query: Tensor, key: Tensor, value: Tensor,
    layer: int, group: SegmentGroup, scale: float,
) -> None:  # fmt: skip
    """Short continuations of one prefix: what they share is one product for all of them.

    Scores of all stand in one table, those of each continuation's own tokens behind the shared
    ones, filled up to the longest: one softmax serves the group.
    """
    rows = group.rows.to(query.device)
    kv_heads, width = key.shape[1], query.shape[-1]
    repeat = query.shape[1] // kv_heads
    # (kv_heads, repeat, tokens, width): query heads beside the key head they read.
    asked = (query[0, :, rows] * scale).view(kv_heads, repeat, len(rows), width)
    prefix = group.segments[0].prefix
    shared = None if prefix is None else prefix.at(layer)
    hidden = group.hidden(query.device)
    own = query.new_empty(kv_heads, repeat, *hidden.shape)
    parts, first = [], 0
    for segment in group.segments:
        here = slice(segment.start, segment.stop)
        mine = slice(first, first + segment.stop - segment.start)
        keys, values = segment.past.append(layer, key[0, :, here], value[0, :, here])
        own[:, :, mine, : keys.shape[1]] = asked[:, :, mine] @ keys.transpose(1, 2)[:, None]
        parts.append((mine, values))
        first = mine.stop
    scores, num_shared = own.masked_fill_(hidden, -torch.inf), 0
    if shared is not None:
        num_shared = shared[0].shape[1]
        of_shared = asked.flatten(1, 2) @ shared[0].transpose(1, 2)
        scores = torch.cat([of_shared.view(kv_heads, repeat, len(rows), -1), own], dim=-1)
    weights = scores.float().softmax(-1).to(value.dtype)
    mixed = [
        weights[:, :, mine, num_shared : num_shared + values.shape[1]] @ values[:, None]
        for mine, values in parts
    ]
    result = torch.cat(mixed, dim=2)
    if shared is not None:
        of_shared = weights[..., :num_shared].flatten(1, 2) @ shared[1]
        result = result + of_shared.view_as(result)
    output[0, :, rows] = result.flatten(0, 1)


AttentionInterface.register(RAGGED, ragged_attention)
AttentionMaskInterface.register(RAGGED, sdpa_mask)
