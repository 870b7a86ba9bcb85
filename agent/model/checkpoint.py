"""Loading, saving and comparing model directories in the published layout, strictly.

A directory is compared with its configuration by the headers of its files, so every mismatch is
known before a weight is read. Knows nothing of images or prompts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from agent.errors import CheckpointMismatch
from agent.model.bases import based_weights, find_base
from agent.model.checkpoint_files import StoredTensor, header, read_json, stored_tensors, tensors
from agent.model.checkpoint_names import our_name, published_name
from agent.model.configuration import ADDITIONS, VLMFO1Config
from agent.model.int8 import int8_layers, quantise_layers, quantised
from agent.model.strict_weights import compare, refuse
from agent.model.vlm_fo1 import ALL_PARTS, VLMFO1, Part
from groundstream.errors import SettingsError

PART_PREFIXES = {
    Part.PRIMARY: ("primary_encoder.",),
    Part.AUXILIARY: ("auxiliary_encoder.",),
    Part.LANGUAGE: ("language_model.", "image_projector.", "region_projector."),
    Part.CONNECTORS: ("image_projector.", "region_projector."),
}
_TIED_HEAD = "lm_head.weight"
_OF_THE_BASE = ("primary_encoder.", "language_model.")
_FLOAT32_ALWAYS = ("region_encoder.primary_norm.", "region_encoder.auxiliary_norm.")
"""The published code runs the region norms in float32 whatever the model's type."""


def published_shapes(model: VLMFO1) -> dict[str, tuple[int, ...]]:
    """Published key to shape of everything the model holds."""
    return {published_name(name): tuple(t.shape) for name, t in model.state_dict().items()}


def without_tied_head(
    stored: dict[str, StoredTensor], config: VLMFO1Config
) -> dict[str, StoredTensor]:
    """The stored tensors less a head that the embeddings replace (tied weights store it twice)."""
    if not config.tie_word_embeddings:
        return stored
    return {key: tensor for key, tensor in stored.items() if key != _TIED_HEAD}


def load_model(
    directory: Path,
    *,
    parts: frozenset[Part] = ALL_PARTS,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    config: VLMFO1Config | None = None,
    as_published: bool = False,
) -> VLMFO1:
    """The model (or parts of it) of a directory, in evaluation mode.

    The module is built without memory; each tensor goes from its file to `device` and `dtype`
    before the next is read, so no second copy of the model ever exists.

    Args:
        directory: `config.json` and weights in the published layout.
        parts: what to load.
        device: where to.
        dtype: type of the weights; None keeps the stored one. int8 is that of large linear layers
            alone (`agent.model.int8`); what else there is has the type that suits the device.
        config: use this instead of the directory's own.
        as_published: have rotary tables in bfloat16, as the published loader leaves them.

    Raises:
        CheckpointMismatch: files, keys, shapes or types do not fit the configuration.
    """
    config = config or read_config(directory)
    if as_published:
        config = replace(config, bf16_rotary=True)
    if config.base or config.weights:
        return _load_from_files(directory, config, parts, device, dtype)
    skipped = _prefixes_beside(parts)
    stored = {
        key: tensor
        for key, tensor in without_tied_head(stored_tensors(directory), config).items()
        if not (skipped and our_name(key).startswith(skipped))
    }
    model = build_empty(config, parts, device=device)
    refuse(directory, compare(published_shapes(model), stored))
    scales = _quantise(model, config) if dtype is torch.int8 else {}
    loaded: dict[str, Tensor] = {}
    by_file: dict[Path, list[str]] = {}
    for key, entry in stored.items():
        by_file.setdefault(entry.file, []).append(key)
    for path, keys in by_file.items():
        for key, tensor in tensors(path, keys, device=device):
            name = our_name(key)
            if name in scales:
                loaded[name], loaded[scales[name]] = quantised(tensor)
                continue
            wide = name.startswith(_FLOAT32_ALWAYS)
            own = _beside_int8(name, device) if dtype is torch.int8 else dtype
            loaded[name] = tensor.to(torch.float32 if wide else own or tensor.dtype)
    model.load_state_dict(loaded, assign=True)
    return model.eval()


def _load_from_files(
    directory: Path,
    config: VLMFO1Config,
    parts: frozenset[Part],
    device: str,
    dtype: torch.dtype | None,
) -> VLMFO1:
    """A model whose language model is others', or whose parts have files of their own."""
    is_int8 = dtype is torch.int8
    if is_int8:
        dtype = _beside_int8("language_model.", device)
    loaded: dict[str, Tensor] = {}
    skipped = _prefixes_beside(parts)

    def is_wanted(name: str) -> bool:
        return not (skipped and name.startswith(skipped))

    for beginning, file in config.weights:
        if not is_wanted(beginning):
            continue
        path = directory / file
        keys = [key for key in header(path) if is_wanted(beginning + key)]
        for key, tensor in tensors(path, keys, device=device):
            name = beginning + key
            wide = config.primary_kind.is_precise and name.startswith(PART_PREFIXES[Part.PRIMARY])
            loaded[name] = tensor.to(torch.float32 if wide else dtype or tensor.dtype)
    if config.base:
        adapter = directory / config.adapter if config.adapter else None
        base = find_base(config.base, directory)
        loaded |= based_weights(base, adapter, dtype, is_wanted)
    model = build_empty(config, parts, device=device)
    here = {
        name: StoredTensor(tuple(tensor.shape), "F32", directory) for name, tensor in loaded.items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    refuse(directory, compare(shapes, here))
    if is_int8:
        for name, scale in _quantise(model, config).items():
            loaded[name], loaded[scale] = quantised(loaded[name])
    model.load_state_dict({name: t.to(device) for name, t in loaded.items()}, assign=True)
    return model.eval()


def _quantise(model: VLMFO1, config: VLMFO1Config) -> dict[str, str]:
    """Make the large linear layers of towers and decoder int8, on the meta device.

    Returns:
        Names of their weights and of the scales that belong to these.
    """
    if model.language_model is not None:
        quantise_layers(model.language_model.model)
    if model.primary_encoder is not None and not config.primary_kind.is_precise:
        quantise_layers(model.primary_encoder)
    if model.auxiliary_encoder is not None:
        quantise_layers(model.auxiliary_encoder)
    return {f"{name}.weight": f"{name}.scale" for name in int8_layers(model)}


def _beside_int8(name: str, device: str) -> torch.dtype | None:
    """The type of what is not made int8; None: the stored one."""
    if device != "cpu":
        return None
    is_language = name.startswith(PART_PREFIXES[Part.LANGUAGE])
    return _suited_to_cpu(Part.LANGUAGE if is_language else Part.PRIMARY)


def _prefixes_beside(parts: frozenset[Part]) -> tuple[str, ...]:
    """Beginnings of the names that belong to other parts alone."""
    of_all, wanted = (
        {prefix for part in some for prefix in PART_PREFIXES[part]} for some in (ALL_PARTS, parts)
    )
    return tuple(of_all - wanted)


def read_config(directory: Path, stored: dict[str, StoredTensor] | None = None) -> VLMFO1Config:
    """The configuration of a directory; sizes that only the weights know are read from them.

    Raises:
        CheckpointMismatch: a file is missing, damaged, or lacks a key.
    """
    raw = read_json(directory / "config.json")
    stated = raw.get("groundstream")
    preprocessor = directory / "preprocessor_config.json"
    if stored is None:
        stored = {} if stands_apart(directory) else stored_tensors(directory)
    extra = {**stored_sizes(stored), **(stated if isinstance(stated, dict) else {})}
    return VLMFO1Config.from_dict(
        {**raw, "groundstream": extra},
        read_json(preprocessor) if preprocessor.is_file() else None,
    )


def stands_apart(directory: Path) -> bool:
    """Whether a model stands on another's weights, or has files for its parts."""
    try:
        stated = read_json(directory / "config.json").get("groundstream")
    except CheckpointMismatch:
        return False  # whoever reads it will say why
    return isinstance(stated, dict) and bool(stated.get("base") or stated.get("weights"))


def stored_sizes(stored: dict[str, StoredTensor]) -> dict[str, object]:
    """DaViT's shape and the pyramid's width, which published configurations do not state.

    Heads are a thirty-second of a stage's width, as in every published DaViT.
    """
    tower = "model.vision_tower_aux.image_tower"
    sizes: dict[str, object] = {}
    widths: list[int] = []
    depths: list[int] = []
    while (proj := stored.get(f"{tower}.convs.{len(widths)}.proj.weight")) is not None:
        stage = f"{tower}.blocks.{len(widths)}."
        widths.append(proj.shape[0])
        depths.append(len({key[len(stage):].split(".")[0] for key in stored
                           if key.startswith(stage)}))  # fmt: skip
    if widths:
        heads = [max(1, width // 32) for width in widths]
        sizes["davit"] = {"depths": depths, "widths": widths, "num_heads": heads}
    last = stored.get("model.object_vp_extractor.simple_fpn.simfp_3.0.weight")
    if last is not None:
        sizes["pyramid_width"] = last.shape[0]
    return sizes


def weight_type(name: str, device: str, part: Part) -> torch.dtype | None:
    """The type that `dtype: name` of the settings means for a part; None keeps the stored one.

    `auto` is resolved here and nowhere else. On a CPU it is float32, but for the language part
    where the processor multiplies bfloat16 by itself: reading weights is what a word costs there,
    and half of them is half the memory. Encoders gain little from it. Elsewhere it is the stored
    type.

    Raises:
        SettingsError: no such type.
    """
    types = {
        "auto": _suited_to_cpu(part) if device == "cpu" else None,
        "stored": None,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "int8": torch.int8,
    }
    if name not in types:
        raise SettingsError(f"dtype {name!r} is unknown; known: {', '.join(types)}")
    return types[name]


def _suited_to_cpu(part: Part) -> torch.dtype:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if part is Part.LANGUAGE and native else torch.float32


def build_empty(
    config: VLMFO1Config, parts: frozenset[Part] = ALL_PARTS, *, device: str = "cpu"
) -> VLMFO1:
    """The module with parameters on the meta device and rotary tables on `device`."""
    with torch.device("meta"):
        model = VLMFO1(config, parts)
    # Rotary tables are computed, not stored, so they must be made again where they will live.
    for part in (model.primary_encoder, model.language_model):
        renew = getattr(part, "renew_tables", None)
        if renew is not None:
            renew(device, rounded=config.bf16_rotary)
    return model


def save_additions(model: VLMFO1, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and what a model adds to the folder it stands on."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor if dtype is None else tensor.to(dtype)).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(_OF_THE_BASE)
    }
    save_file(state, directory / ADDITIONS, metadata={"format": "pt"})
    _write_config(model.config, directory)


def save_language(model: VLMFO1, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a trained language model into a folder that holds the other parts already.

    Of a model that stands on a base all its weights become what it adds; the connector's stay
    float32.
    """
    config = model.config
    if not config.adapter:
        save_model(model, directory, dtype=dtype)
        return
    connector, state = PART_PREFIXES[Part.LANGUAGE][-1], {}
    for name, tensor in model.state_dict().items():
        if name.startswith(connector):
            state["connector." + name[len(connector) :]] = tensor.float().contiguous()
        elif name.startswith(PART_PREFIXES[Part.LANGUAGE]):
            state[published_name(name)] = tensor.to(dtype or tensor.dtype).contiguous()
    save_file(state, directory / config.adapter, metadata={"format": "pt"})
    _write_config(config, directory)


def save_model(model: VLMFO1, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` in the published layout."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        published_name(name): (tensor if dtype is None else tensor.to(dtype)).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    _write_config(model.config, directory)


def _write_config(config: VLMFO1Config, directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
