"""Loading and saving model directories in the published layout, strictly.

One table maps published parameter names to ours. What a key means is decided by the key and by
`config.json`, never by the spelling of a path. Knows nothing of images or prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from agent.errors import CheckpointMismatch
from agent.model.configuration import VLMFO1Config
from agent.model.vlm_fo1 import ALL_PARTS, VLMFO1, Part

# (published, ours); both directions are derived from this table, first match wins.
_PREFIXES = (
    ("model.vision_tower.image_tower.", "primary_encoder.tower."),
    ("model.vision_tower_aux.image_tower.", "auxiliary_encoder.tower."),
    ("model.object_vp_extractor.simple_fpn.", "region_encoder.simple_fpn."),
    ("model.object_vp_extractor.vt_region_norm.", "region_encoder.primary_norm."),
    ("model.object_vp_extractor.aux_region_norm.", "region_encoder.auxiliary_norm."),
    ("model.mm_projector_aux.", "region_projector."),
    ("model.mm_projector.", "image_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
# Inside DaViT the published tree is Florence-2's original one; ours is transformers'.
_DAVIT = (
    (re.compile(r"^convs\.(\d+)\.proj\."), r"convs.\1.conv."),
    (re.compile(r"\.(conv[12])\.fn\.dw\."), r".\1."),
    (re.compile(r"\.(?:window|channel)_attn\.norm\."), r".norm1."),
    (re.compile(r"\.((?:window|channel)_attn)\.fn\."), r".\1."),
    (re.compile(r"\.ffn\.norm\."), r".norm2."),
    (re.compile(r"\.ffn\.fn\.net\."), r".ffn."),
)
_DAVIT_BACK = (
    (re.compile(r"^convs\.(\d+)\.conv\."), r"convs.\1.proj."),
    (re.compile(r"\.(conv[12])\.(weight|bias)$"), r".\1.fn.dw.\2"),
    (re.compile(r"\.(spatial)_block\.norm1\."), r".spatial_block.window_attn.norm."),
    (re.compile(r"\.(channel)_block\.norm1\."), r".channel_block.channel_attn.norm."),
    (re.compile(r"\.((?:window|channel)_attn)\.(qkv|proj)\."), r".\1.fn.\2."),
    (re.compile(r"\.norm2\."), r".ffn.norm."),
    (re.compile(r"\.ffn\.(fc[12])\."), r".ffn.fn.net.\1."),
)
_AUXILIARY = "auxiliary_encoder.tower."
_PART_PREFIXES = {
    Part.PRIMARY: ("primary_encoder.",),
    Part.AUXILIARY: ("auxiliary_encoder.",),
    Part.LANGUAGE: ("language_model.", "image_projector.", "region_projector."),
}
_SHOWN = 5


def our_name(published: str) -> str:
    """Our parameter name for a published key.

    Raises:
        CheckpointMismatch: the key belongs to no part of the model.
    """
    for theirs, ours in _PREFIXES:
        if published.startswith(theirs):
            rest = published[len(theirs) :]
            return ours + (_substitute(rest, _DAVIT) if ours == _AUXILIARY else rest)
    raise CheckpointMismatch(f"the key {published!r} is not part of a VLM-FO1 checkpoint")


def published_name(name: str) -> str:
    """The published key of our parameter `name`."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            rest = name[len(ours) :]
            return theirs + (_substitute(rest, _DAVIT_BACK) if ours == _AUXILIARY else rest)
    raise CheckpointMismatch(f"the parameter {name!r} has no published name")


def _substitute(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def load_model(
    directory: Path,
    *,
    parts: frozenset[Part] = ALL_PARTS,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: VLMFO1Config | None = None,
) -> VLMFO1:
    """The model (or parts of it) of a directory, in evaluation mode.

    Tensors go straight from the file to `device` and `dtype`; the module itself is built without
    memory.

    Raises:
        CheckpointMismatch: files, keys or shapes do not fit the configuration.
    """
    config = config or VLMFO1Config.from_file(directory / "config.json")
    model = build_empty(config, parts, device=device)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    loaded: dict[str, Tensor] = {}
    unexpected: list[str] = []
    wrong_shape: list[str] = []
    for key, tensor in _tensors(directory, device, parts):
        name = our_name(key)
        if name not in wanted:
            unexpected.append(key)
        elif tuple(tensor.shape) != wanted[name]:
            wrong_shape.append(f"{key} is {tuple(tensor.shape)}, expected {wanted[name]}")
        else:
            loaded[name] = tensor.to(dtype)
    missing = [published_name(name) for name in wanted if name not in loaded]
    missing = [key for key in missing if not any(w.startswith(key + " is") for w in wrong_shape)]
    _refuse(directory, missing=missing, unexpected=unexpected, wrong_shape=wrong_shape)
    model.load_state_dict(loaded, assign=True)
    return model.eval()


def build_empty(
    config: VLMFO1Config, parts: frozenset[Part] = ALL_PARTS, *, device: str = "cpu"
) -> VLMFO1:
    """The module with parameters on the meta device and rotary tables on `device`."""
    with torch.device("meta"):
        model = VLMFO1(config, parts)
    # Rotary tables are computed, not stored, so they must be made again where they will live.
    if model.primary_encoder is not None:
        tower = model.primary_encoder.tower
        tower.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(config.vision).to(device)
    if model.language_model is not None:
        text = model.language_model.model
        text.rotary_emb = Qwen2_5_VLRotaryEmbedding(config.text).to(device)
    return model


def save_model(model: VLMFO1, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` in the published layout."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        published_name(name): (tensor if dtype is None else tensor.to(dtype)).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (directory / "config.json").write_text(text)


def load_weights_into(module: nn.Module, path: Path) -> None:
    """Load a plain safetensors file whose keys are the module's own names, strictly.

    Raises:
        CheckpointMismatch: unreadable file, missing, unexpected or wrongly shaped keys.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    loaded = {key: tensor.float() if tensor.is_floating_point() else tensor
              for key, tensor in _file_tensors(path, "cpu", lambda _: True)}  # fmt: skip
    wrong = [
        f"{key} is {tuple(tensor.shape)}, expected {wanted[key]}"
        for key, tensor in loaded.items()
        if key in wanted and tuple(tensor.shape) != wanted[key]
    ]
    _refuse(
        path,
        missing=[key for key in wanted if key not in loaded],
        unexpected=[key for key in loaded if key not in wanted],
        wrong_shape=wrong,
    )
    module.load_state_dict(loaded)


def _tensors(directory: Path, device: str, parts: frozenset[Part]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of every weight that belongs to `parts`, one file at a time."""
    skipped = tuple(prefix for part in ALL_PARTS - parts for prefix in _PART_PREFIXES[part])

    def belongs(key: str) -> bool:
        return not our_name(key).startswith(skipped) if skipped else True

    for path in _weight_files(directory):
        yield from _file_tensors(path, device, belongs)


def _file_tensors(path: Path, device: str, belongs):  # type: ignore[no-untyped-def]
    try:
        with safe_open(path, framework="pt", device=device) as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is not iterable)
                if belongs(key):
                    yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatch(f"{path} cannot be read ({error}); download it again") from error


def _weight_files(directory: Path) -> list[Path]:
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        raise CheckpointMismatch(f"{directory} holds neither {single.name} nor {index.name}")
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise CheckpointMismatch(f"{index} names {absent[0]}, which does not exist")
    return [directory / name for name in names]


def _refuse(
    where: Path, *, missing: list[str], unexpected: list[str], wrong_shape: list[str]
) -> None:
    problems = [
        f"{len(keys)} {what}: {', '.join(sorted(keys)[:_SHOWN])}"
        + (", ..." if len(keys) > _SHOWN else "")
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong_shape),
        )
        if keys
    ]
    if problems:
        raise CheckpointMismatch(f"{where} does not fit its configuration; " + "; ".join(problems))
