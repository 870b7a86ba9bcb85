"""What every arm of an experiment is asked: about pictures, and about symbols without pictures.

Answers about pictures are kept beside the arm's model and not asked again. Knows no experiment.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import AskedLabels, DetectionCounts, count_names
from agent.evaluation.pope import is_right
from agent.evaluation.tally import Tally
from agent.frame import load_frame
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.stages import local_pipeline
from agent.training.grounding import GroundingSetup, save_grounding
from agent.training.language import LanguagePretraining, SymbolicCurriculum, forward_packed
from agent.training.mixture import yes_no_turns
from agent.training.packing import IGNORED, PackedBatch

_MOST_LABELS = 4
_MOST_NAMES = 12
_NUM_YES_NO = 4
_SYMBOLIC_REGIONS = 24


async def picture_figures(setup: GroundingSetup, data: CocoFolder, home: Path) -> Tally:
    """The setup's model, written to `home`, asked about `data` through the whole pipeline."""
    model = home / "model"
    save_grounding(setup.module, setup.builder.tokenizer, setup.pretrained, model)
    return await kept_figures(str(model), data, home)


async def kept_figures(model: str, data: CocoFolder, home: Path) -> Tally:
    """A model's answers about `data`, from `home` if it has been asked before."""
    asked = "\n".join([find_model(model).digest, *(str(image.path) for image in data.images)])
    kept = home / f"figures-{hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()}.json"
    if kept.is_file():
        images = json.loads(kept.read_text())
        return Tally({n: {k: (p, w) for k, (p, w) in row.items()} for n, row in images.items()})
    tally = Tally()
    pipeline = local_pipeline(model)
    for image in data.images:
        await _ask(pipeline, image, data, tally)
    home.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(tally.images))
    return tally


async def _ask(pipeline: Pipeline, image: CocoImage, data: CocoFolder, tally: Tally) -> None:
    """Searches for what is there and what is not, yes or no, and the names of true boxes."""
    name, rng = str(image.image_id), np.random.default_rng((31, image.image_id))
    labels = AskedLabels.draw(image, data, rng, most=_MOST_LABELS)
    names: list[str | None] = [data.categories[category] for category in image.category]
    turns = yes_no_turns(names, sorted(data.categories.values()), _NUM_YES_NO, rng)
    tasks = [*labels.tasks(data), *(Task.chat(turn.question) for turn in turns)]
    grounding = await pipeline.ground(load_frame(image.path), tasks)
    counts, searched = DetectionCounts(tally), len(labels.categories)
    counts.add(image, labels, grounding.answers[:searched])
    for turn, answer in zip(turns, grounding.answers[searched:], strict=True):
        tally.add(name, "yes_no", is_right(answer.reply, turn.answer == "yes"))
    await count_names(tally, pipeline, image, data, most=_MOST_NAMES)


@torch.inference_mode()
def symbolic_figures(setup: GroundingSetup, *, num_batches: int = 12) -> Tally:
    """What the language model can without eyes: shares of its answers' tokens that are right.

    Symbolic scenes, as in its pretraining, of things that are there: copying text, pointing,
    naming, yes or no (half of it about absent things).
    """
    language = LanguagePretraining(setup.builder.tokenizer, setup.names).eval()
    trained = setup.module.model.language_model
    assert trained is not None
    language.language_model.load_state_dict(trained.state_dict())
    language.slots.load_state_dict(setup.module.slots.state_dict())
    torch.manual_seed(0)
    curriculum = SymbolicCurriculum(
        setup.builder.tokenizer, seed=99, rejection=False, first_regions=_SYMBOLIC_REGIONS
    )
    kinds = {
        "copying": lambda: curriculum.copying(4),
        "pointing": lambda: curriculum.dense(3),
        "naming": lambda: curriculum.chat(1, curriculum.naming),
        "symbolic_yes_no": lambda: curriculum.chat(2, curriculum.yes_or_no),
    }
    tally = Tally()
    for number in range(num_batches):
        for kind, draw in kinds.items():
            tally.add(f"batch {number}", kind, *_right(language, draw()))
    return tally


def _right(language: LanguagePretraining, batch: PackedBatch) -> tuple[int, int]:
    """Answer tokens that are right, and all of them."""
    logits, _ = forward_packed(language, batch, noise=0.35)
    wanted = batch.labels[:, 1:]
    counted = wanted != IGNORED
    return int((logits[:, :-1].argmax(-1) == wanted)[counted].sum()), int(counted.sum())
