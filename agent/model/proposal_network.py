"""Object proposal network (OPN): OmDet-Turbo asked for one class, "object".

transformers' OmDetTurboForObjectDetection with a native Swin backbone; the text side sees one
fixed prompt, so its embeddings are constants of the weights. Pixels in, scored boxes out; knows
neither frames nor thresholds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import OmDetTurboConfig, OmDetTurboForObjectDetection

from agent.model.checkpoint_files import read_json
from agent.model.shift_first_swin import shift_before_padding
from agent.model.strict_weights import load_weights_into

DEFAULT_PROMPT = "object"
CLASS_WORDS, TASK_WORDS = "{}", "Detect {}."
"""What OmDet-Turbo reads as class and as task, in the words it was trained on."""
_PROMPT = {"class": [1, 3, 2], "task": [1, 4, 2]}
"""Of a network whose configuration says none: it has no words, only these ids."""


class ProposalNetwork(nn.Module):
    """Class-agnostic boxes with objectness."""

    def __init__(self, config: OmDetTurboConfig) -> None:
        super().__init__()
        self.config = config
        self._prompt: dict[str, list[int]] = getattr(config, "prompt_ids", None) or _PROMPT
        with warnings.catch_warnings():
            # Advice about a CUDA kernel that is not used here.
            warnings.filterwarnings("ignore", "You'd better set embed_dim", UserWarning)
            self.detector = OmDetTurboForObjectDetection(config)
        if getattr(config, "shift_before_padding", False):
            shift_before_padding(self.detector.vision_backbone.vision_backbone)

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which it sees a picture, in pixels: every one squashed to a square."""
        side = int(self.config.image_size)
        return side, side

    def prompt(self) -> tuple[Tensor, Tensor, Tensor]:
        """Class features (1, 1, width), task features (tokens, 1, width) and the task mask."""
        device = self.detector.device
        classes = torch.tensor([self._prompt["class"]], device=device)
        tasks = torch.tensor([self._prompt["task"]], device=device)
        backbone = self.detector.language_backbone
        class_features = backbone(classes, encode_type="class")[:, None, :]
        mask = torch.ones_like(tasks)
        task_features, mask = backbone(tasks, mask=mask, encode_type="task")
        return class_features, task_features, mask

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and objectness of a batch.

        Args:
            pixels: (batch, 3, side, side), ImageNet-normalised.

        Returns:
            (batch, num_queries, 4) cx, cy, w, h in 0..1 and (batch, num_queries) in 0..1.
        """
        batch = len(pixels)
        states = self.detector.encoder(self.detector.vision_backbone(pixels)).extracted_states
        classes, tasks, mask = self.prompt()
        output = self.detector.decoder(
            states, classes.expand(-1, batch, -1), tasks.expand(-1, batch, -1),
            mask.expand(batch, -1),
        )  # fmt: skip
        return output.decoder_coords[-1], output.decoder_classes[-1].squeeze(-1).sigmoid()


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a proposal network's folder.

    Raises:
        CheckpointMismatch: it is missing or not JSON.
    """
    return read_json(directory / "config.json")


def load_proposal_network(directory: Path) -> ProposalNetwork:
    """The network of a folder with `config.json` and `model.safetensors`.

    Raises:
        CheckpointMismatch: the weights do not fit the configuration.
    """
    network = ProposalNetwork(OmDetTurboConfig(**read_config(directory)))
    load_weights_into(network.detector, directory / "model.safetensors")
    return network.eval()


def save_proposal_network(
    network: ProposalNetwork, directory: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a folder that `load_proposal_network` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: (t.to(dtype) if t.is_floating_point() else t).contiguous()
        for name, t in network.detector.state_dict().items()
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    network.config.save_pretrained(directory)
