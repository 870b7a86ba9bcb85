"""The whole model as it is trained for grounding, put together from its pretrained parts.

Knows the tensors of a training step, not where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.errors import CheckpointMismatch, SourceError
from agent.model.checkpoint import load_model
from agent.model.configuration import nano_config
from agent.model.language_model import SlotType
from agent.model.proposal_network import (
    ProposalNetwork,
    load_proposal_network,
    nano_proposal_config,
)
from agent.model.vlm_fo1 import VLMFO1
from agent.tokenizer import PromptTokenizer
from agent.training.language import VOCAB_SIZE, NameSlots, attended_logits
from agent.training.loop import load_module_state
from agent.training.packing import PackedBatch
from agent.training.vision import encode_batch, likeness


@dataclass(frozen=True)
class Pretrained:
    """Folders of the three pretraining stages (each holds a checkpoint.pt)."""

    vision: Path
    language: Path
    proposals: Path
    model: Path | None = None
    """A model directory in place of the three."""

    def tokenizer(self) -> PromptTokenizer:
        """The language model's.

        Raises:
            SourceError: the language stage has not been run, and there is no model either.
        """
        if self.model is None and not self.language.is_dir():
            raise SourceError(
                f"{self.language} does not exist: run the stages proposals, language and vision "
                "first, or start from a model directory (--base nano)"
            )
        return PromptTokenizer.from_directory(self.model or self.language)

    def network(self) -> ProposalNetwork:
        """The trained proposal network, for inference."""
        if self.model is not None:
            return load_proposal_network(self.model / "proposal").eval().requires_grad_(False)
        return load_proposals(self.proposals)


class GroundingTraining(nn.Module):
    """The whole model with a contrast between region tokens and the names' embeddings."""

    def __init__(self, tokenizer: PromptTokenizer, names: list[str]) -> None:
        super().__init__()
        self.model = VLMFO1(nano_config(VOCAB_SIZE))
        assert self.model.language_model is not None
        assert self.model.auxiliary_encoder is not None
        self.model.auxiliary_encoder.tower.set_attn_implementation("eager")
        self.model.language_model.model.set_attn_implementation("eager")
        self.slots = NameSlots(tokenizer, names, self.model.config.text.hidden_size)

    def load_pretrained(self, pretrained: Pretrained) -> None:
        """Take over the towers, the pyramid and the language model.

        Raises:
            SourceError: a pretraining stage has not been run.
            CheckpointMismatch: the model directory is of another size.
        """
        if pretrained.model is not None:
            self._load_model(pretrained.model)
            return
        vision = load_module_state(pretrained.vision)
        missing, unexpected = self.model.load_state_dict(_part(vision, "model."), strict=False)
        assert not unexpected, unexpected
        elsewhere = ("region_projector.", "language_model.")
        assert all(name.startswith(elsewhere) for name in missing), missing
        self.load_language(pretrained.language)
        # The connector has learned beside the towers; a fresh one would learn the few thousand
        # regions of alignment by heart.
        self.model.region_projector.load_state_dict(_part(vision, "connector."))

    def load_language(self, directory: Path) -> None:
        """Take over the language model, and what it expects of names, from a language stage.

        Raises:
            SourceError: the stage has not been run.
        """
        language = load_module_state(directory)
        assert self.model.language_model is not None
        self.model.language_model.load_state_dict(_part(language, "language_model."))
        self.slots.load_state_dict(_part(language, "slots."))

    def _load_model(self, directory: Path) -> None:
        """A model directory has no name map: `slots.map` stays the identity it begins as."""
        try:
            self.model.load_state_dict(load_model(directory).state_dict())
        except RuntimeError as error:
            raise CheckpointMismatch(
                f"{directory} is not of the nano model's shape, the only one that is trained here"
            ) from error

    def fused(self, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Fused region features (batch, num_boxes, region_width) and raw image tokens."""
        primary, auxiliary, image = encode_batch(self.model, rgb, boxes)
        height, width = rgb.shape[1:3]
        size = torch.tensor([width, height, width, height], device=rgb.device)
        return self.model.region_encoder.fuse(primary, auxiliary, boxes / size), image

    def features(self, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Region tokens (batch, num_boxes, hidden) and image tokens (batch, tokens, hidden)."""
        fused, image = self.fused(rgb, boxes)
        return self.model.region_projector(fused), self.model.image_projector(image)

    def forward(self, batch: PackedBatch, regions: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits of packed questions and the pointer layer's attention.

        Args:
            regions: (total regions, hidden) in scene order; image: (total image tokens, hidden).
        """
        language = self.model.language_model
        assert language is not None
        embeddings = language.embed(batch.ids)
        for slot, values in ((SlotType.REGION, regions), (SlotType.IMAGE, image)):
            here = (batch.slots == slot)[..., None]
            embeddings = embeddings.masked_scatter(here, values.to(embeddings.dtype))
        return attended_logits(language, embeddings, batch)

    def name_vectors(self) -> Tensor:
        """(num_names, hidden): what the language model expects in the slot of each name."""
        language = self.model.language_model
        assert language is not None
        return self.slots.all_names(language.model.embed_tokens)

    def place_vectors(self, boxes: Tensor) -> Tensor:
        """(n, hidden): what the language model expects to be told of the places of (n, 4) boxes."""
        language = self.model.language_model
        assert language is not None
        return self.slots.places(language.model.embed_tokens, boxes)

    def contrast(self, regions: Tensor, concepts: Tensor) -> Tensor:
        """Cross entropy of each region token against the slot vectors of all names.

        Pulls a region's token to where the language model looks for its name; the LM itself
        is not needed for that, so alignment takes minutes.

        Args:
            regions: (n, hidden) region tokens less what they say of their places.
            concepts: (n,) ids.
        """
        return nn.functional.cross_entropy(likeness(regions, self.name_vectors()), concepts)

    def soft_contrast(self, regions: Tensor, target: Tensor, concepts: Tensor) -> Tensor:
        """As `contrast`, against a distribution over some concepts.

        Args:
            regions: (n, hidden) region tokens less what they say of their places.
            target: (n, num_concepts).
            concepts: (num_concepts,) ids.
        """
        closeness = likeness(regions, self.name_vectors()[concepts])
        return nn.functional.cross_entropy(closeness, target)


def _part(state: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    """What of a state is called `beginning`..., by the rest of its names."""
    return {k.removeprefix(beginning): v for k, v in state.items() if k.startswith(beginning)}


def load_proposals(directory: Path) -> ProposalNetwork:
    """The trained proposal network, for inference."""
    network = ProposalNetwork(nano_proposal_config())
    network.load_state_dict(load_module_state(directory))
    return network.eval().requires_grad_(False)
