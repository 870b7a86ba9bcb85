"""Teaching a pretrained language model to point, on symbolic scenes, without forgetting.

Stage 1 trains the connector and the new tokens with the language model frozen; stage 2 also
trains low-rank changes of its attention. Every step reads some scenes with many questions each
(`agent.training.branches`) and, so that nothing is forgotten, some text on which the model is to
say what it said before training (knowledge distillation against itself). Resumable: the state of
a run is one file.

    groundstream train pointing --head efficientnet_lite0.safetensors --directory DIR
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.checked_settings import checked, with_changes
from agent.model.configuration import pocket_config
from agent.model.low_rank import adapter_state, load_adapter
from agent.model.smollm2 import smollm2_config
from agent.tokenizer import PromptTokenizer
from agent.training.own_answers import read as read_answers
from agent.training.picture_evidence import ClassExchange, EvidenceBank
from agent.training.pointing_model import NEW_TOKENS, NUM_KNOWN, PointingModel
from agent.training.scene_lessons import Lesson, SceneWriter, draw_lesson
from agent.training.scene_questions import Questioner, Told, held_out
from agent.training.symbolic_scenes import Scene, SceneMaker
from agent.training.vocabulary import vocabulary
from agent.training.workers import Workers
from groundstream.errors import SettingsError

_LEAST_TEXT_TOKENS = 24


@checked
@dataclass(frozen=True)
class PointingRecipe:
    """The numbers of a run."""

    align_steps: int = 60
    """Stage 1: connector and new tokens alone."""
    pointing_steps: int = 350
    """So many steps see small scenes, where pointing is learned at a third of the price."""
    growing_steps: int = 250
    """Over so many further steps scenes reach full size and doubt."""
    steps: int = 1500
    scenes_per_step: int = 2
    """Of each worker."""
    labels_per_scene: tuple[int, int] = (16, 48)
    """While pointing is learned, and after."""
    most_regions: tuple[int, int] = (12, 24)
    doubt: tuple[float, float] = (0.4, 1.0)
    """The most of any scene, at the end of either part: 1 is that of photographs."""
    picture_share: float = 0.7
    """Of the scenes after pointing is learned, where evidence of pictures is at hand."""
    others_share: float = 0.35
    """Of the scenes after pointing is learned that are asked other questions than labels as well:
    these take half of the time of a scene, and labels are what most is asked for."""
    words_weight: float = 0.5
    """Weight of a token that is chosen among all, against one chosen among regions."""
    rank: int = 16
    adapter_rate: float = 5e-4
    connector_rate: float = 2e-4
    offset_rate: float = 1e-2
    token_rate: float = 3e-4
    text_tokens: int = 96
    text_weight: float = 2.0
    absent: bool = True
    """Also ask for what is not there; without, an ablation."""
    printed: bool = False
    """Answers are corners in words in place of region tokens: an ablation."""
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> PointingRecipe:
        """The usual numbers, with what a YAML file says in their place.

        Raises:
            SettingsError: the file cannot be read, or has an unknown key or an impossible value.
        """
        return with_changes(cls(), path)

    def continued(self) -> PointingRecipe:
        """Of a run that starts with a model that points already."""
        return replace(self, align_steps=0, pointing_steps=0, growing_steps=0)

    def sizes(self, step: int) -> tuple[int, float]:
        """The most regions and the most doubt of a step's scenes."""
        if step < self.pointing_steps:
            return self.most_regions[0], self.doubt[0] * step / self.pointing_steps
        grown = 1.0
        if self.growing_steps:
            grown = min(1.0, (step - self.pointing_steps) / self.growing_steps)
        fewer, more = self.most_regions
        less, much = self.doubt
        return fewer + round(grown * (more - fewer)), less + grown * (much - less)

    def rate(self, step: int) -> float:
        """What all learning rates are multiplied by: a short rise, then down to nothing."""
        left = (self.steps - step) / max(1, self.steps - self.pointing_steps)
        return min(1.0, (step + 1) / 30) * min(1.0, max(0.03, left))


class Rehearsal:
    """Text on which the model is to stay what it was."""

    def __init__(
        self, model: PointingModel, texts: list[list[str]], length: int, seed: int
    ) -> None:
        """`texts`: several sources, of which each step takes any as likely as another."""
        self._model = model
        self._length = length
        self._dice = random.Random(seed)
        self._sources = [
            found for source in texts if (found := [ids for t in source if (ids := self._long(t))])
        ]

    def _long(self, text: str) -> list[int]:
        """Its ids, or none if it is too short to say anything or speaks in the new tokens."""
        ids: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids if len(ids) >= _LEAST_TEXT_TOKENS and max(ids) < NUM_KNOWN else []

    def loss(self) -> Tensor:
        """Mean divergence from the untouched model on a piece of text."""
        ids = self._dice.choice(self._dice.choice(self._sources))
        start = self._dice.randrange(max(1, len(ids) - self._length))
        piece = torch.tensor(ids[start : start + self._length])
        positions, embedded = torch.arange(len(piece)), self._model.known[piece]
        with torch.no_grad():
            self._model.set_adapted(False)
            before = self._model.read(embedded, positions, None).float() @ self._model.known.T
            self._model.set_adapted(True)
        after = self._model.read(embedded, positions, None).float() @ self._model.known.T
        return nn.functional.kl_div(
            after.log_softmax(-1), before.log_softmax(-1), reduction="batchmean", log_target=True
        )


@torch.no_grad()
def evaluate(model: PointingModel, head: np.ndarray, *, scenes: int, seed: int) -> dict[str, float]:
    """Whole answers right (teacher forcing: every choice of an answer right), by size and words."""
    writer, words = SceneWriter(PromptTokenizer(model.tokenizer)), vocabulary()
    lesson = Lesson(model, writer)
    found: dict[str, list[float]] = defaultdict(list)
    for count in (5, 12, 24):
        maker = SceneMaker(words, head, seed + count)
        seen = Questioner(words, seed + count)
        unseen = Questioner(words, seed + count, may_ask=held_out)
        for _ in range(scenes):
            scene = maker.scene(count)
            questions = (
                ("seen", seen.labels(scene, 16)),
                ("unseen", unseen.labels(scene, 4) if _askable(scene) else []),
            )
            asked = [
                (kind if one.regions else f"{kind} absent", one)
                for kind, labels in questions
                for one in labels
            ]
            _, answered = lesson.loss(writer.plan(scene, asked, cells=False))
            for kind, right in answered:
                found[f"{kind} {count}"].append(float(right))
    return {key: round(float(np.mean(values)), 3) for key, values in sorted(found.items())}


def _askable(scene: Scene) -> bool:
    return any(held_out(word) for thing in scene.likeliest for word in thing.words)


def train(
    recipe: PointingRecipe,
    head: np.ndarray,
    texts: list[list[str]],
    output: Path,
    *,
    minutes: float,
    start: Path | None = None,
    bank: EvidenceBank | None = None,
    conversation: Sequence[Told] = (),
) -> None:
    """Run, or go on with, the training whose state lies in `output`.

    With `start` a new run begins with what that model's folder has learned, and with scenes of
    full size and doubt.

    Several workers see different scenes and step together.
    """
    workers = Workers.current()
    if start is not None:
        recipe = recipe.continued()
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = PointingModel(recipe.rank)
    words = vocabulary()
    model.name_tables(words)
    groups = [
        {"params": [p for layer in model.adapted for p in (layer.lora_a, layer.lora_b)],
         "lr": recipe.adapter_rate},
        {"params": list(model.connector.parameters()), "lr": recipe.connector_rate},
        {"params": [model.token_offset], "lr": recipe.offset_rate},
        {"params": [model.token_delta], "lr": recipe.token_rate},
    ]  # fmt: skip
    trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    first = _restored(model, optimiser, output / "state.pt", start)
    writer = SceneWriter(PromptTokenizer(model.tokenizer), printed=recipe.printed)
    lesson = Lesson(model, writer, words_weight=recipe.words_weight)
    seed = recipe.seed + 1000 * first + 1_000_000 * workers.rank
    maker = SceneMaker(words, head, seed + 1)
    questions = Questioner(words, seed + 2, conversation=conversation)
    dice, chance = random.Random(seed + 3), np.random.default_rng(seed + 4)
    exchange = ClassExchange(words, chance)
    rehearsal = Rehearsal(model, texts, recipe.text_tokens, seed)
    deadline = time.monotonic() + 60 * minutes
    tally: dict[str, list[float]] = defaultdict(list)
    started = time.monotonic()
    for step in range(first, recipe.steps):
        aligning = step < recipe.align_steps
        for layer in model.adapted:
            layer.lora_a.requires_grad_(not aligning)
            layer.lora_b.requires_grad_(not aligning)
        early = step < recipe.pointing_steps
        part = 0 if early else 1
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * recipe.rate(step)
        most_regions, most_doubt = recipe.sizes(step)
        for _ in range(recipe.scenes_per_step):
            maker.doubt = dice.uniform(0.5 * most_doubt, most_doubt)
            # Full pages are what photographs mostly give, and small ones are learned faster.
            is_full = not early and dice.random() < 0.3
            count = most_regions if is_full else dice.randint(1, most_regions)
            if bank is not None and not early and dice.random() < recipe.picture_share:
                regions = bank.draw(count, chance)
                scene = maker.of(exchange.exchange(regions) if dice.random() < 0.5 else regions)
            else:
                scene = maker.scene(count)
            plan = draw_lesson(
                scene, writer, questions, dice, recipe.labels_per_scene[part],
                others=not early and dice.random() < recipe.others_share, absent=recipe.absent,
            )  # fmt: skip
            if not len(plan.tree.rows):
                continue  # Without absent labels, nothing can be asked about a scene of nothing.
            loss, answered = lesson.loss(plan)
            (loss / recipe.scenes_per_step).backward()
            tally["loss"].append(float(loss.detach()))
            for kind, right in answered:
                tally[kind].append(float(right))
        if not aligning and recipe.text_weight and (step % 2 == 0 or not early):
            kept = rehearsal.loss()
            (recipe.text_weight * kept).backward()
            tally["text"].append(float(kept.detach()))
        workers.average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        tally["norm"].append(float(norm))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        over = workers.agreed(time.monotonic() > deadline)
        if not workers.leads:
            if over:
                return
            continue
        if (step + 1) % 20 == 0 or over:
            means = {k: round(float(np.mean(v)), 3) for k, v in sorted(tally.items())}
            line = {"step": step + 1, "seconds": round(time.monotonic() - started), **means}
            _log(output, line)
            tally.clear()
        if (step + 1) % 50 == 0 or over or step + 1 == recipe.steps:
            _save(model, optimiser, step + 1, recipe, output)
        is_measured = (step + 1) % 200 == 0 or over or step + 1 == recipe.steps
        if is_measured and not recipe.printed:
            figures = evaluate(model, head, scenes=8, seed=99)
            _log(output, {"step": step + 1, "eval": figures})
        if over:
            return


def _log(output: Path, line: Mapping[str, object]) -> None:
    with (output / "log.jsonl").open("a") as log:
        print(json.dumps(line), file=log)


def _restored(
    model: PointingModel, optimiser: torch.optim.Optimizer, path: Path, start: Path | None
) -> int:
    """The step to go on from: an interrupted run's, or the first, with what `start` has learned."""
    if not path.is_file():
        if start is not None:
            model.take_over(load_file(start / "language.safetensors"))
        return 0
    state = torch.load(path, weights_only=True)
    load_adapter(model.language, state["adapter"])
    model.connector.load_state_dict(state["connector"])
    model.token_offset.data.copy_(state["offset"])
    model.token_delta.data.copy_(state["delta"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(
    model: PointingModel,
    optimiser: torch.optim.Optimizer,
    step: int,
    recipe: PointingRecipe,
    output: Path,
) -> None:
    """State to go on with, and what the service loads; a run killed meanwhile loses neither."""
    for name, write in (
        ("state.pt", lambda path: torch.save(
            {"adapter": adapter_state(model.language), "connector": model.connector.state_dict(),
             "offset": model.token_offset.data, "delta": model.token_delta.data,
             "optimiser": optimiser.state_dict(), "step": step}, path)),
        ("language.safetensors", lambda path: save_file(
            {k: v.contiguous() for k, v in model.trained_state().items()}, path)),
    ):  # fmt: skip
        written = output / f"{name}.part"
        write(written)
        written.replace(output / name)
    (output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def classifier_head(path: Path) -> np.ndarray:
    """(1000, width) weights of the ImageNet classifier's last layer."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path), dtype=np.float32)
    with safe_open(path, "pt") as stored:
        name = next(key for key in stored if stored.get_slice(key).get_shape() == [1000, 1280])
        return np.asarray(stored.get_tensor(name).float().numpy())


def plain_texts(wordnet: Path | None, folders: list[Path]) -> list[list[str]]:
    """English that training did not write: WordNet's definitions, and folders of text files."""
    sources: list[list[str]] = []
    if wordnet is not None:
        lines = wordnet.read_text(encoding="latin-1").splitlines()
        glosses = [line.partition(" | ")[2].strip() for line in lines if " | " in line]
        sources.append([". ".join(glosses[k : k + 6]) for k in range(0, len(glosses), 6)])
    for folder in folders:
        files = sorted(folder.glob("**/*.txt"))
        sources.append([path.read_text(errors="replace") for path in files])
    return sources


def export(run: Path, folder: Path) -> None:
    """What a run has learned as the embedded model's folder holds it: configuration and float16.

    The vision parts' weights are there already (`agent.training.vision_parts`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    learned = load_file(run / "language.safetensors")
    # Calibration is a few numbers, and powers of them matter: they stay float32.
    halved = {k: v.half() if v.ndim > 1 else v.float() for k, v in learned.items()}
    save_file({k: v.contiguous() for k, v in halved.items()}, folder / "language.safetensors")
    config = pocket_config(smollm2_config(num_new_tokens=len(NEW_TOKENS)))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def run(
    recipe: PointingRecipe,
    head: Path,
    output: Path,
    *,
    wordnet: Path | None = None,
    texts: Sequence[Path] = (),
    start: Path | None = None,
    evidence: Path | None = None,
    own_answers: Path | None = None,
    minutes: float = math.inf,
    threads: int = 1,
) -> None:
    """Train with what lies in files; see `train`.

    Args:
        recipe: every number.
        head: the classifier's weights.
        output: state of the run.
        wordnet, texts: `data.noun` of WordNet and folders of text, to rehearse.
        start: a model's folder; a new run begins with what it has learned.
        evidence: of pictures, as `groundstream train evidence` writes it.
        own_answers: folder of `groundstream train own-answers`: rehearsed as text, and asked
            beside scenes.
        minutes: stop then; another run goes on.
        threads: of this process.

    Raises:
        SettingsError: there is nothing to rehearse.
    """
    torch.set_num_threads(threads)
    rehearsed = plain_texts(wordnet, [*texts, *([own_answers] if own_answers else [])])
    if recipe.text_weight and not any(rehearsed):
        raise SettingsError(
            "there is no text to rehearse: give --wordnet, --texts or --own-answers"
        )
    train(
        recipe,
        classifier_head(head),
        rehearsed,
        output,
        minutes=minutes,
        start=start,
        bank=None if evidence is None else EvidenceBank.read(evidence),
        conversation=[Told(*pair) for pair in (read_answers(own_answers) if own_answers else ())],
    )
