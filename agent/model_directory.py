"""Where a model's files are and what they are called: names to folders, folders to digests.

Reads files, never tensors, so the ingress can describe a model without loading torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.answer_rules import AnswerRules
from agent.base_package import PACKAGES
from agent.errors import CheckpointMismatch
from agent.hub import HubName, cached, local_or_fetched, name_of_snapshot
from agent.model_identity import model_identity

EMBEDDED = ("pocket",)
"""Models that the package brings, by name; the first is the default everywhere."""
DEFAULT_MODEL = EMBEDDED[0]
_WEIGHTS = Path(__file__).parent / "weights"
_CONFIG = "config.json"
_LONGEST, _LONGEST_PUBLISHED = 256, 4096
NO_NETWORK, OWN_NETWORK = "none", "proposal"
"""In place of a proposal network's name: there is none; the folder inside the model's own."""


@dataclass(frozen=True)
class ModelDirectory:
    """A model on disk: `config.json`, safetensors, tokenizer files."""

    path: Path
    name: str
    digest: str
    """BLAKE2b-256 over configuration and what stands for the weights (`agent.model_identity`); part
    of every cache key. Of a language model that others bring, name, size and version do."""

    def config(self) -> dict[str, object]:
        """The parsed `config.json`."""
        loaded: dict[str, object] = json.loads((self.path / _CONFIG).read_text())
        return loaded

    @property
    def rules(self) -> AnswerRules:
        """How it is asked, and how its answers are read."""
        return AnswerRules.read(self._ours())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the kinds of questions it was trained for; empty: all there are."""
        return tuple(self._ours().get("tasks", ()))

    def _ours(self) -> dict[str, Any]:
        """What only our configurations state."""
        return _section(self.config())


def find_model(
    model: str = DEFAULT_MODEL,
    *,
    proposal_network: str | None = None,
    as_published: bool = False,
) -> ModelDirectory:
    """The directory of `model`: an embedded model, a folder, or one of the hub.

    One of the hub that is not here is fetched.

    Args:
        model: name, folder, or hub name with or without a revision.
        proposal_network: what is used instead of the model's own network; part of the digest.
        as_published: whether it runs so, which gives other features; part of the digest, too.

    Raises:
        CheckpointMismatch: no such folder, or a required file is missing.
    """
    path = _path(model)
    if not (path / _CONFIG).is_file():
        raise CheckpointMismatch(
            f"{path / _CONFIG} does not exist; --model takes '{DEFAULT_MODEL}', a folder that "
            "holds a VLM-FO1 checkpoint, or a name of the hub such as omlab/VLM-FO1-3B-v01"
        )
    digest = _digest(path, proposal_network)
    if as_published:
        digest = hashlib.blake2b(f"{digest} as published".encode(), digest_size=32).hexdigest()
    return ModelDirectory(path, display_name(model), digest)


def is_published(model: str) -> bool:
    """Whether a model is VLM-FO1 as its authors published it, or trained from it in its layout."""
    path = _path(model)
    kind = str(_read_config(path).get("model_type", ""))
    return kind.startswith("omchat") and not _read_section(path).get("base")


def longest_answer(model: str) -> int:
    """Tokens of an answer where nobody says how many.

    The published model was measured with 4,096; a model that reads less writes half of it at most.
    """
    if not is_published(model):
        return _LONGEST
    read = _read_config(_path(model)).get("max_position_embeddings", _LONGEST_PUBLISHED)
    return max(_LONGEST, min(_LONGEST_PUBLISHED, int(read) // 2))


def has_auxiliary_encoder(model: str) -> bool:
    """Whether a stage of its own looks at the boxes of `model` a second time.

    If none does, the proposal network describes them. Says yes of what cannot be read: whoever
    loads it will say why.
    """
    try:
        config = json.loads((_path(model) / _CONFIG).read_text())
        return bool(config["groundstream"]["auxiliary"] != "proposal")
    except (CheckpointMismatch, OSError, ValueError, LookupError, TypeError):
        return True


def find_network(model_path: Path, name: str) -> Path | None:
    """The folder, or file, of a proposal network; None where the model is meant to have none.

    A hub name is fetched, unless it is here already.

    Raises:
        CheckpointMismatch: the name is neither a folder nor on the hub.
    """
    if name == NO_NETWORK:
        return None
    if (model_path / name).exists():
        return model_path / name
    if name == OWN_NETWORK:
        return None  # nobody named it, so nobody misses it until boxes are wanted
    if Path(name).exists():
        return Path(name)
    hub_name = HubName.parse(name)
    if hub_name is None:
        raise CheckpointMismatch(
            f"the proposal network {name!r} is neither a folder or file in {model_path}, nor one "
            f"elsewhere, nor a hub name; --proposals takes one of these, or {NO_NETWORK!r}"
        )
    return local_or_fetched(hub_name)


def has_proposal_network(model: str, proposal_network: str | None = None) -> bool:
    """Whether boxes are found for requests that bring none.

    Args:
        model: name or folder.
        proposal_network: what is used instead of the model's own network.

    Raises:
        CheckpointMismatch: the network that is named does not exist.
    """
    path = _path(model)
    name = proposal_network or _read_section(path).get("proposal", {}).get("network", OWN_NETWORK)
    return find_network(path, name) is not None


def is_model(folder: Path) -> bool:
    """Whether a folder holds a vision-language model, and not a proposal network."""
    kind = _read_config(folder).get("model_type", "")
    return bool(_read_section(folder)) or str(kind).startswith("omchat")


def display_name(model: str) -> str:
    """What users call a model: a hub name without its commit, or how its folder is called."""
    if model in EMBEDDED:
        return model
    if name := HubName.parse(model):
        return name.repo
    path = Path(model).absolute()
    return name_of_snapshot(path) or path.name


def _path(model: str) -> Path:
    if model in EMBEDDED:
        return _WEIGHTS / model
    name = HubName.parse(model)
    return Path(model).expanduser() if name is None else local_or_fetched(name)


def _digest(path: Path, proposal_network: str | None) -> str:
    section = _read_section(path)
    places = [path, *_elsewhere(path, section.get("base"))]
    # Of a base that is unknown, whoever loads the model will say so.
    package = PACKAGES.get(section.get("base", ""))
    names = [] if package is None else [package.identity()]
    if proposal_network is None:
        places += _elsewhere(path, section.get("proposal", {}).get("network"))
    else:
        names.append(proposal_network)
        places += _elsewhere(path, proposal_network)
    return model_identity(places, names, kept=path.resolve().parent != _WEIGHTS.resolve())


def _elsewhere(path: Path, name: object) -> list[Path]:
    """The folder or file that a model names, if there is one and it is not inside the model's."""
    if not isinstance(name, str) or not name:
        return []
    # Joined to a folder, an absolute path stays what it is.
    place = path / name if (path / name).exists() else Path(name)
    if hub_name := HubName.parse(str(place)):
        place = cached(hub_name) or place
    inside = place.resolve().is_relative_to(path.resolve())
    return [place] if place.exists() and not inside else []


def _read_section(path: Path) -> dict[str, Any]:
    return _section(_read_config(path))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / _CONFIG).read_text())
    except (OSError, ValueError):
        return {}  # whoever parses the file will say so
    return config if isinstance(config, dict) else {}


def _section(config: dict[str, object]) -> dict[str, Any]:
    section = config.get("groundstream")
    return section if isinstance(section, dict) else {}
