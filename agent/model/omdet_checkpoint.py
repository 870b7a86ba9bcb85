"""The published OmDet-Turbo weights (`omlab/omdet-turbo-swin-tiny-hf`) on a native Swin backbone.

Published with transformers 4.4x around timm's Swin; this module maps configuration and keys to
what `ProposalNetwork` builds without timm. Strict: every published key is used, every parameter
has a source. Equal to the published computation on random weights (tests/golden/omdet).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer, OmDetTurboConfig, SwinConfig

from agent.errors import CheckpointMismatch
from agent.model.proposal_network import (
    CLASS_WORDS,
    DEFAULT_PROMPT,
    TASK_WORDS,
    ProposalNetwork,
    read_config,
)

_TIMM_SWINS: Mapping[str, dict[str, Any]] = {
    f"swin_{size}_patch4_window{window}_{side}": {
        "embed_dim": width,
        "depths": depths,
        "num_heads": [heads, 2 * heads, 4 * heads, 8 * heads],
        "window_size": window,
    }
    for size, width, depths, heads, window, side in (
        ("tiny", 96, [2, 2, 6, 2], 3, 7, 224),
        ("small", 96, [2, 2, 18, 2], 3, 7, 224),
        ("base", 128, [2, 2, 18, 2], 4, 7, 224),
        ("base", 128, [2, 2, 18, 2], 4, 12, 384),
        ("large", 192, [2, 2, 18, 2], 6, 7, 224),
        ("large", 192, [2, 2, 18, 2], 6, 12, 384),
    )
}
_SHAPE_KEYS = ("embed_dim", "depths", "num_heads", "window_size")
_TIMM_KEYS = {"out_indices", "img_size", "always_partition", *_SHAPE_KEYS}
_NATIVE, _TIMM = (
    "vision_backbone.vision_backbone.swin.",
    "vision_backbone.vision_backbone._backbone.",
)
# (native, published) inside the Swin backbone; the first match wins.
_SWIN_RULES = (
    (re.compile(r"^embeddings\.patch_embeddings\.projection\."), r"patch_embed.proj."),
    (re.compile(r"^embeddings\.norm\."), r"patch_embed.norm."),
    (re.compile(r"^(encoder\.layers\.\d+\.blocks\.\d+)\.layernorm_before\."), r"\1.norm1."),
    (re.compile(r"^(encoder\.layers\.\d+\.blocks\.\d+)\.layernorm_after\."), r"\1.norm2."),
    (re.compile(r"\.attention\.[qkv]_proj\."), r".attn.qkv."),
    (re.compile(r"\.attention\.o_proj\."), r".attn.proj."),
    (re.compile(r"\.attention\.relative_position_bias\."), r".attn."),
)
_NORM = re.compile(r"vision_backbone\.vision_backbone\.hidden_states_norms\.(\w+)\.(\w+)")
_COMPUTED = re.compile(r"(relative_position_index|attn_mask|position_ids)$")
"""Tables that older library versions stored; they follow from the configuration."""
_THIRD = {"q": 0, "k": 1, "v": 2}
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SHOWN = 5


@dataclass(frozen=True)
class _Source:
    """Where a native parameter comes from."""

    key: str
    third: int | None = None
    """Which third of the rows, where timm keeps query, key and value in one matrix."""


def is_published_omdet(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes OmDet-Turbo around a timm backbone."""
    if raw.get("model_type") != "omdet-turbo":
        return False
    backbone = raw.get("backbone_config")
    return backbone is None or backbone.get("model_type") == "timm_backbone"


def load_published_omdet(directory: Path, *, prompt: str = DEFAULT_PROMPT) -> ProposalNetwork:
    """The network of a published folder: `config.json`, `model.safetensors`, CLIP tokenizer files.

    Raises:
        CheckpointMismatch: a file is missing or unreadable, the configuration describes something
            else, or keys are missing, unexpected or of another shape.
    """
    raw = read_config(directory)
    ids = raw.get("prompt_ids") or prompt_ids(directory, prompt)
    network = ProposalNetwork(native_config(raw, ids))
    published = _read(directory / "model.safetensors")
    network.detector.load_state_dict(native_state(network, published, directory))
    return network.eval()


def native_config(raw: Mapping[str, Any], prompt: Mapping[str, list[int]]) -> OmDetTurboConfig:
    """The same network in the words of a native Swin backbone.

    Raises:
        CheckpointMismatch: an option that the native backbone does not have.
    """
    name, options = _backbone_options(raw)
    unknown = sorted(options.keys() - _TIMM_KEYS)
    if unknown:
        raise CheckpointMismatch(f"backbone_kwargs has the unknown key {unknown[0]!r}")
    shape = _TIMM_SWINS.get(name, {}) | {k: options[k] for k in _SHAPE_KEYS if k in options}
    if len(shape) != len(_SHAPE_KEYS):
        known = ", ".join(_TIMM_SWINS)
        raise CheckpointMismatch(f"the backbone {name!r} is unknown; supported: {known}")
    if not options.get("always_partition", True):
        raise CheckpointMismatch("backbone_kwargs: always_partition must be true")
    if not raw.get("apply_layernorm_after_vision_backbone", True):
        raise CheckpointMismatch("apply_layernorm_after_vision_backbone must be true")
    side = options.get("img_size", raw.get("image_size", 640))
    swin = SwinConfig(
        image_size=side,
        # timm counts stages from 0, transformers counts the patch embedding too.
        out_indices=[index + 1 for index in options.get("out_indices", (1, 2, 3))],
        drop_path_rate=0.0,
        **shape,
    )
    own = {"backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone", "prompt_ids",
           "use_pretrained_backbone", "apply_layernorm_after_vision_backbone"}  # fmt: skip
    return OmDetTurboConfig(
        backbone_config=swin,
        apply_layernorm_after_vision_backbone=False,
        shift_before_padding=True,
        prompt_ids=dict(prompt),
        **{key: value for key, value in raw.items() if key not in own},
    )


def _backbone_options(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's model name and arguments, from either layout transformers has written."""
    config = raw.get("backbone_config")
    if config is None:
        return raw.get("backbone") or "swin_tiny_patch4_window7_224", raw.get("backbone_kwargs", {})
    return config["backbone"], {key: config[key] for key in _TIMM_KEYS if key in config}


def native_state(
    network: ProposalNetwork, published: Mapping[str, Tensor], where: Path
) -> dict[str, Tensor]:
    """Tensors under the names of `network.detector`.

    Raises:
        CheckpointMismatch: names every key that is missing, unexpected or of another shape.
    """
    wanted = network.detector.state_dict()
    stages = list(network.config.backbone_config.out_features)
    sources = {name: _source(name, stages) for name in wanted}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, source in sources.items():
        if source is not None:
            rows, *rest = wanted[name].shape or (None,)
            whole = () if rows is None else (rows * (1 if source.third is None else 3), *rest)
            shapes[source.key] = whole
    _compare(shapes, {key: tuple(tensor.shape) for key, tensor in published.items()}, where)
    state = {}
    for name, source in sources.items():
        if source is None:
            state[name] = wanted[name]
            continue
        tensor = published[source.key]
        state[name] = tensor if source.third is None else tensor.chunk(3)[source.third]
    return state


def _source(name: str, stages: list[str]) -> _Source | None:
    """The published key of a native parameter; None for one that never acts."""
    if name.startswith(_NATIVE + "layernorm."):
        return None  # behind the last stage; a backbone discards it
    if name.startswith(_NATIVE):
        rest = name.removeprefix(_NATIVE)
        third = re.search(r"\.attention\.([qkv])_proj\.", rest)
        for pattern, replacement in _SWIN_RULES:
            rest = pattern.sub(replacement, rest)
        # timm halves the map where a stage begins, transformers where the one before it ends.
        rest = re.sub(
            r"^encoder\.layers\.(\d+)\.downsample\.",
            lambda found: f"layers_{int(found[1]) + 1}.downsample.",
            rest,
        )
        rest = re.sub(r"^encoder\.layers\.(\d+)\.", r"layers_\1.", rest)
        return _Source(_TIMM + rest, None if third is None else _THIRD[third[1]])
    if norm := _NORM.fullmatch(name):
        return _Source(f"vision_backbone.layer_norms.{stages.index(norm[1])}.{norm[2]}")
    return _Source(name.replace("language_backbone.model.", "language_backbone.model.text_model."))


def _compare(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    problems: dict[str, list[str]] = defaultdict(list)
    for key, shape in wanted.items():
        if key not in found:
            problems["missing"].append(key)
        elif found[key] != shape:
            problems["of another shape"].append(f"{key} is {found[key]}, expected {shape}")
    problems["unexpected"] = [k for k in found if k not in wanted and not _COMPUTED.search(k)]
    texts = [
        f"{len(keys)} {what}: {', '.join(sorted(keys)[:_SHOWN])}"
        + (", ..." if len(keys) > _SHOWN else "")
        for what, keys in problems.items()
        if keys
    ]
    if texts:
        raise CheckpointMismatch(f"{where} does not fit its configuration; " + "; ".join(texts))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatch(f"{path} cannot be read ({error}); download it again") from error
    return {k: t.to(torch.float32) if t.is_floating_point() else t for k, t in tensors.items()}


def prompt_ids(directory: Path, prompt: str = DEFAULT_PROMPT) -> dict[str, list[int]]:
    """Token ids of what the detector is asked for, by the folder's CLIP tokenizer.

    Raises:
        CheckpointMismatch: the folder holds no tokenizer, or not CLIP's.
    """
    # Without its files transformers makes up a tokenizer that knows nothing.
    if not any(all((directory / f).is_file() for f in files) for files in _TOKENIZER_FILES):
        raise CheckpointMismatch(
            f"{directory} lacks the CLIP tokenizer's files (tokenizer.json or vocab.json and "
            "merges.txt); copy them from where the weights come from"
        )
    tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    words = {"class": CLASS_WORDS.format(prompt), "task": TASK_WORDS.format(prompt)}
    ids = {kind: list(tokenizer(text)["input_ids"]) for kind, text in words.items()}
    # The network reads a text's meaning off its largest id, so that must be the end token.
    if any(len(found) < 3 or found.index(max(found)) != len(found) - 1 for found in ids.values()):
        raise CheckpointMismatch(f"the tokenizer in {directory} is not CLIP's: {ids['class']}")
    return ids
