"""Both training stages for any family: questions about regions whose answers are known.

Vision towers and region encoder stay as they are, so what they say about a picture is computed
once. Knows no family and no data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.attached import AttachedFeatures, AttachedGrounder
from agent.detections import FloatArray
from agent.frame import Frame
from agent.model.vlm_adapter import Stage


@dataclass(frozen=True)
class Lesson:
    """One question about one frame, and what should be answered."""

    frame: Frame
    boxes: FloatArray
    """(num_boxes, 4) xyxy pixels of the frame."""
    question: str
    """The user's turn, word for word (`Task.text`)."""
    answer: str


class AttachmentTraining:
    """Trains an `AttachedVLM` step by step."""

    def __init__(
        self, grounder: AttachedGrounder, *, stage: Stage = Stage.ALIGN, rate: float = 1e-3
    ) -> None:
        self._grounder = grounder
        grounder.model.freeze_for(stage)
        trained = [p for p in grounder.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)

    @torch.no_grad()
    def see(self, lesson: Lesson) -> AttachedFeatures:
        """What the frozen parts say; keep it for as many steps as the lesson is used."""
        return self._grounder.features(lesson.frame, lesson.boxes)

    def step(self, lessons: Sequence[tuple[Lesson, AttachedFeatures]]) -> float:
        """One update on a batch; returns its mean loss per answer token, before the update."""
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for lesson, features in lessons:
            loss = self.loss(lesson, features) / len(lessons)
            loss.backward()
            total += float(loss.detach())
        self._optimizer.step()
        return total

    def loss(self, lesson: Lesson, features: AttachedFeatures) -> Tensor:
        """Cross entropy of the answer and its end token, given everything before."""
        grounder, adapter = self._grounder, self._grounder.model.adapter
        end = grounder.tokenizer.control(adapter.prompt.end_of_turn)
        answer = torch.tensor([*grounder.tokenizer.encode(lesson.answer), end])
        draft = grounder.prompt(
            len(features.vision.image_tokens), len(lesson.boxes), lesson.question
        ).followed_by(answer)
        positions, _ = adapter.positions(draft.slots, features.vision.grid, start=0)
        embedded = grounder.embeddings(draft, features)
        hidden = adapter.language(embedded, positions.to(embedded.device))
        # Position i foretells token i + 1.
        logits = adapter.logits(hidden[0, -len(answer) - 1 : -1])
        return nn.functional.cross_entropy(logits.float(), answer.to(logits.device))
