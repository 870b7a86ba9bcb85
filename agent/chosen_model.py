"""What a user means by a model and a proposal network, made ready before anything is loaded.

Hub names are fetched and pinned to a commit, folders are made independent of the current one, and a
model that brings no proposal network is given one. Whatever cannot work is refused here, with what
to type instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CheckpointMismatch, ModelNotFetched
from agent.hub import HubName, local_or_fetched
from agent.model_directory import (
    EMBEDDED,
    NO_NETWORK,
    find_model,
    has_auxiliary_encoder,
    has_proposal_network,
)

DEFAULT_NETWORK = "omlab/omdet-turbo-swin-tiny-hf"
"""Proposes boxes for models that bring no proposal network of their own."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenModel:
    """What settings and stages take, ready to be loaded without a network."""

    model: str
    """An embedded model, an absolute folder, or a hub name with its commit."""
    proposal_network: str | None
    """An absolute folder or file, a hub name with its commit, or `none`; None: the model's own."""


def choose_model(
    model: str,
    proposals: str | None = None,
    *,
    report: Callable[[str], object] = _logger.warning,
) -> ChosenModel:
    """Bring a model and its proposal network onto this machine.

    Args:
        model: an embedded model, a folder, or a hub name with or without a revision.
        proposals: instead of the model's own network: a folder, a file, a hub name or `none`.
        report: told what is fetched, and what is used in place of what is missing.

    Raises:
        CheckpointMismatch: one of the two does not exist, or they do not work together.
        ModelNotFetched: the hub does not give one of them.
    """
    chosen = model if model in EMBEDDED else _here(model, report)
    found = find_model(chosen)
    if proposals is None:
        if has_proposal_network(chosen):
            return ChosenModel(chosen, None)
        report(
            f"{found.name} brings no proposal network: boxes come from {DEFAULT_NETWORK} "
            "(--proposals takes another: a hub name, a folder, UPN's .pth, or none)"
        )
        return ChosenModel(chosen, _default_network(report))
    if proposals == NO_NETWORK:
        if not has_auxiliary_encoder(chosen):
            raise CheckpointMismatch(
                f"{found.name} has its boxes described by its proposal network, so "
                f"--proposals {NO_NETWORK} cannot work; leave the option out"
            )
        report(f"{found.name} runs without a proposal network: every request must bring boxes")
        return ChosenModel(chosen, NO_NETWORK)
    if not Path(proposals).is_absolute() and (found.path / proposals).exists():
        return ChosenModel(chosen, str((found.path / proposals).absolute()))
    _check_network(proposals)
    return ChosenModel(chosen, _here(proposals, report))


def _here(name: str, report: Callable[[str], object]) -> str:
    """The same name, such that every process of this machine finds it."""
    hub_name = HubName.parse(name)
    if hub_name is None:
        return str(Path(name).expanduser().absolute())
    return str(hub_name.pinned(local_or_fetched(hub_name, report=report)))


def _default_network(report: Callable[[str], object]) -> str:
    try:
        return _here(DEFAULT_NETWORK, report)
    except ModelNotFetched as error:
        raise ModelNotFetched(
            f"{error}; or serve clients that send boxes: --proposals {NO_NETWORK}"
        ) from error


def _check_network(name: str) -> None:
    """Raise where a name can be no proposal network."""
    path = Path(name).expanduser()
    if path.is_file() or HubName.parse(name):
        return
    if not path.is_dir():
        raise CheckpointMismatch(
            f"--proposals {name}: there is no such folder or file; give one, a hub name such as "
            f"{DEFAULT_NETWORK}, UPN's .pth, or {NO_NETWORK}"
        )
    files = sorted(path.glob("*.pth"))
    try:
        json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        hint = f"give the file itself: --proposals {files[0]}" if files else "download it again"
        raise CheckpointMismatch(
            f"--proposals {name}: the folder has no readable config.json; {hint}"
        ) from None
