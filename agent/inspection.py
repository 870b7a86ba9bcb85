"""What a model directory holds and whether it can be loaded: everything wrong, said at once.

Reads configuration, headers and tokenizer; weights are loaded only of a model that stands on
another's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import CheckpointMismatch
from agent.model.checkpoint import (
    build_empty,
    load_model,
    published_shapes,
    read_config,
    stands_apart,
    stored_sizes,
    without_tied_head,
)
from agent.model.checkpoint_files import StoredTensor, header, read_json, stored_tensors
from agent.model.configuration import VLMFO1Config
from agent.model.strict_weights import compare
from agent.model_tokenizer import model_tokenizer
from agent.tokenizer import PromptTokenizer

_PARTS = (
    ("auxiliary encoder", "model.vision_tower_aux."),
    ("primary encoder", "model.vision_tower."),
    ("region encoder", "model.object_vp_extractor."),
    ("region connector", "model.mm_projector_aux."),
    ("image projector", "model.mm_projector."),
    ("language model", "model."),
    ("language model", "lm_head."),
)
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass
class ModelReport:
    """The findings about one directory; it can be loaded when `problems` is empty."""

    directory: Path
    found: dict[str, str] = field(default_factory=dict)
    """Part of the model to its tensors, numbers and bytes."""
    switches: dict[str, str] = field(default_factory=dict)
    """What configuration and weights say about how the model computes."""
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def inspect_model(directory: Path) -> ModelReport:
    """Look through a directory; nothing is raised, every problem is reported."""
    report = ModelReport(directory)
    if stands_apart(directory):
        return _inspect_apart(report)
    stored = _attempt(report, lambda: stored_tensors(directory)) or {}
    report.found = _sizes(stored)
    raw = _attempt(report, lambda: read_json(directory / "config.json"))
    _attempt(report, lambda: PromptTokenizer.from_directory(directory))
    if raw is not None:
        config = _attempt(report, lambda: read_config(directory, stored))
        report.problems += _disagreements(raw, stored) if stored else []
        if config is not None:
            report.switches = _switches(config, stored, raw)
            report.warnings = _warnings(raw, stored, config, directory)
            if stored:
                wanted = published_shapes(build_empty(config))
                differences = compare(wanted, without_tied_head(stored, config))
                report.problems += differences.lines()
    if not (directory / "proposal" / "config.json").is_file():
        report.warnings.append(
            "no proposal network in proposal/: commands use omlab/omdet-turbo-swin-tiny-hf of the "
            "hub; --proposals names another, or none for requests that bring boxes"
        )
    return report


def _inspect_apart(report: ModelReport) -> ModelReport:
    """A model on a base, or in several files: whether they fit shows when it is loaded."""
    directory = report.directory
    config = _attempt(report, lambda: read_config(directory))
    if config is None:
        return report
    files = [file for _, file in config.weights] + ([config.adapter] if config.adapter else [])
    for file in files:
        stored = _attempt(report, lambda file=file: header(directory / file)) or {}
        numbers = sum(tensor.num_elements for tensor in stored.values())
        report.found[file] = f"{len(stored)} tensors, {numbers / 1e6:.2f} M numbers"
    text = config.text
    report.switches = {
        "language model": f"{config.family}, {text.num_hidden_layers} layers of "
        f"{text.hidden_size}, on {config.base or 'nothing else'}",
        "primary encoder": config.primary,
        "auxiliary features": config.auxiliary,
        "order of a region": config.language_family.order.word,
        "projectors": f"image {config.image_projector}, region {config.region_projector}",
        "trained for": ", ".join(config.tasks).lower() or "all tasks",
    }
    _attempt(report, lambda: load_model(directory, dtype=None))
    _attempt(report, lambda: model_tokenizer(directory, config))
    return report


def _attempt(report: ModelReport, read):  # type: ignore[no-untyped-def]
    try:
        return read()
    except CheckpointMismatch as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
        return None


def _sizes(stored: dict[str, StoredTensor]) -> dict[str, str]:
    parts: dict[str, list[StoredTensor]] = {}
    for key, tensor in stored.items():
        part = next((name for name, prefix in _PARTS if key.startswith(prefix)), "unknown")
        parts.setdefault(part, []).append(tensor)
    return {part: _summed(tensors) for part, tensors in parts.items()}


def _summed(tensors: list[StoredTensor]) -> str:
    numbers = sum(tensor.num_elements for tensor in tensors)
    size = sum(tensor.num_elements * _BYTES.get(tensor.dtype, 1) for tensor in tensors)
    return f"{len(tensors)} tensors, {numbers / 1e6:.2f} M numbers, {size / 2**20:.1f} MiB"


def _has(stored: dict[str, StoredTensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in stored)


def _projector(stored: dict[str, StoredTensor], prefix: str) -> str:
    """The connector the keys make up."""
    if f"{prefix}.weight" in stored:
        return "linear"
    layers = [key for key in stored if key.startswith(f"{prefix}.") and key.endswith(".weight")]
    return f"mlp{len(layers)}x_gelu" if layers else "identity"


def _disagreements(raw: dict[str, object], stored: dict[str, StoredTensor]) -> list[str]:
    """Switches that config.json sets and the weights deny."""
    extractor = "model.object_vp_extractor"
    seen: dict[str, tuple[object, object]] = {
        "mm_use_simpleFPN_for_vt": (
            raw.get("mm_use_simpleFPN_for_vt", False), _has(stored, f"{extractor}.simple_fpn.")
        ),
        "mm_apply_region_layer_norm": (
            raw.get("mm_apply_region_layer_norm", False),
            _has(stored, f"{extractor}.vt_region_norm."),
        ),
        "mm_projector_type": (
            raw.get("mm_projector_type", "identity"), _projector(stored, "model.mm_projector")
        ),
        "mm_projector_aux_type": (
            raw.get("mm_projector_aux_type"), _projector(stored, "model.mm_projector_aux")
        ),
    }  # fmt: skip
    if not raw.get("tie_word_embeddings", False) and "lm_head.weight" not in stored:
        seen["tie_word_embeddings"] = (False, True)
    return [
        f"{key} is {said!r} in config.json, but the weights say {held!r}"
        for key, (said, held) in seen.items()
        if said != held
    ]


def _switches(
    config: VLMFO1Config, stored: dict[str, StoredTensor], raw: dict[str, object]
) -> dict[str, str]:
    region, sizes = config.region, stored_sizes(stored)
    extra = raw.get("groundstream")
    source = "config.json" if isinstance(extra, dict) and "davit" in extra else "weights"
    davit = f"depths {config.davit.depths}, widths {config.davit.widths} (from {source})"
    types = sorted({tensor.dtype for tensor in stored.values()})
    return {
        "stored type": ", ".join(types) or "nothing stored",
        "language model": f"{config.text.num_hidden_layers} layers of {config.text.hidden_size}, "
        f"head {'tied' if config.tie_word_embeddings else 'untied'}",
        "primary encoder": f"{config.vision.depth} blocks of {config.vision.hidden_size}, "
        f"tapped after {list(config.vision.fullatt_block_indexes)}",
        "auxiliary encoder": davit if "davit" in sizes else f"not stored; {davit}",
        "auxiliary image": config.image.auxiliary_aspect,
        "region features": "primary only" if region.primary_only else region.combination,
        "feature pyramid": f"width {region.pyramid_width}" if region.use_feature_pyramid else "no",
        "positions": region.position_strategy if region.apply_position else "none",
        "region norms": "yes" if region.layer_norm else "no",
        "RoI bins": f"{region.roi_size} x {region.roi_size}",
        "projectors": f"image {config.image_projector}, region {config.region_projector}",
        "rotary tables": "bfloat16 (published loader)" if config.bf16_rotary else "float32",
        "image area": f"{config.image.min_pixels} to {config.image.max_pixels} square pixels",
    }


def _warnings(
    raw: dict[str, object],
    stored: dict[str, StoredTensor],
    config: VLMFO1Config,
    directory: Path,
) -> list[str]:
    warnings = []
    if raw.get("tokenizer_padding_side", "right") != "right":
        warnings.append(
            "config.json asks for left padding; it is ignored (see docs/decisions/model.md)"
        )
    if "mm_roi_output_size" not in raw:
        warnings.append(
            "config.json does not state mm_roi_output_size and weights cannot tell: 7 is assumed, "
            "the published default"
        )
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        warnings.append("lm_head.weight is stored but tied: the embeddings are used")
    if not (directory / "preprocessor_config.json").is_file():
        warnings.append("no preprocessor_config.json: Qwen2.5-VL's image area limits are assumed")
    return warnings
