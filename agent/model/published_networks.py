"""Proposal networks that others publish, which run on transformers: UPN, OmDet-Turbo, detectors."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from agent.model.object_detector import ObjectDetector
from agent.model.omdet_checkpoint import is_published_omdet, load_published_omdet
from agent.model.proposal_network import load_proposal_network, read_config
from agent.model.upn_checkpoint import MODEL_TYPE as UPN
from agent.model.upn_checkpoint import load_universal_proposals


def load_published(folder: Path, *, prompt: str) -> nn.Module:
    """The network of a folder, of the kind its `config.json` declares, or UPN's `.pth`.

    Raises:
        CheckpointMismatch: files are missing or do not fit.
    """
    if folder.is_file():
        return load_universal_proposals(folder)
    raw = read_config(folder)
    if is_published_omdet(raw):
        return load_published_omdet(folder, prompt=prompt)
    if raw.get("model_type") == "omdet-turbo":
        return load_proposal_network(folder)
    if raw.get("model_type") == UPN:
        return load_universal_proposals(folder)
    return ObjectDetector.from_pretrained(folder, prompt=prompt)
