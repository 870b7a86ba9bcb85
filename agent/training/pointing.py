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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from agent.errors import SettingsError
from agent.model.appearance import COLOURS
from agent.model.configuration import pocket_config
from agent.model.low_rank import adapt, adapter_state, load_adapter
from agent.model.name_mixture import NameMixture
from agent.model.smollm2 import load_smollm2, smollm2_config, smollm2_tokenizer
from agent.prompts import MAX_REGIONS, SYSTEM_PROMPT
from agent.tokenizer import CONTROL_TOKENS
from agent.training.branches import Branch, Tree, pack
from agent.training.scene_questions import Asked, Questioner, Told, held_out
from agent.training.symbolic_scenes import Scene, SceneMaker
from agent.training.vocabulary import Vocabulary, vocabulary
from agent.training.workers import Workers

NUM_KNOWN = 49_152
NEW_TOKENS = tuple(token for token in CONTROL_TOKENS if not token.startswith(("<|endof", "<|im_")))
_OPENING = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
_LEAST_TEXT_TOKENS = 24
_TURN = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class PointingRecipe:
    """The numbers of a run."""

    align_steps: int = 60
    """Stage 1: connector and new tokens alone."""
    pointing_steps: int = 350
    """So many steps see small scenes, where pointing is learned at a third of the price."""
    steps: int = 900
    scenes_per_step: tuple[int, int] = (2, 3)
    """While pointing is learned, and after."""
    labels_per_scene: tuple[int, int] = (16, 22)
    fewest_regions: int = 1
    most_regions: tuple[int, int] = (12, 24)
    doubt: tuple[float, float] = (0.4, 0.75)
    """Reached at the end of either part, from none: 1 is that of photographs."""
    words_weight: float = 0.25
    """Weight of a token that is chosen among all, against one chosen among regions."""
    rank: int = 16
    adapter_rate: float = 5e-4
    connector_rate: float = 2e-4
    offset_rate: float = 1e-2
    token_rate: float = 3e-4
    text_tokens: int = 96
    text_weight: float = 1.0
    seed: int = 0


class PointingModel(nn.Module):
    """SmolLM2 with new tokens, the connector, and low-rank changes."""

    def __init__(self, recipe: PointingRecipe, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.language = load_smollm2(dtype=dtype).model
        self.tokenizer: Tokenizer = smollm2_tokenizer(NEW_TOKENS)
        known = self.language.embed_tokens.weight.detach().float()
        self.known = known
        hidden = known.shape[1]
        self.adapted = adapt(self.language, rank=recipe.rank)
        self.connector = NameMixture(hidden)
        # New tokens differ from each other as words do; they share one trained offset, and each
        # moves slowly: fast ones learn the form of an answer and lose the choice.
        spread = known.std(0)
        self.token_base: Tensor
        noise = torch.randn(len(NEW_TOKENS), hidden, generator=torch.Generator().manual_seed(7))
        self.register_buffer("token_base", known.mean(0) + noise * spread)
        self.token_offset = nn.Parameter(torch.zeros(hidden))
        self.token_delta = nn.Parameter(torch.zeros(len(NEW_TOKENS), hidden))

    def name_tables(self, words: Vocabulary) -> None:
        """Start the connector as names."""
        things = [*words.coco, *words.imagenet]
        with torch.no_grad():
            self.connector.own_names.copy_(torch.stack([self._named(t.names[0]) for t in things]))
            self.connector.everyday_names.copy_(
                torch.stack([self._named(t.everyday) for t in things])
            )
            doubtful = [self._named(word) for word in ("nothing", "unknown")]
            self.connector.nothing.copy_(torch.stack(doubtful))
            self.connector.appearance.weight.zero_()
            colours = torch.stack([self._named(colour) for colour in COLOURS])
            self.connector.appearance.weight[:, : len(COLOURS)] = 0.35 * colours.T

    def _named(self, name: str) -> Tensor:
        ids = self.tokenizer.encode(f" {name}").ids
        return self.known[ids].mean(0)

    def new_rows(self) -> Tensor:
        """(new tokens, hidden)."""
        rows: Tensor = self.token_base + self.token_offset + self.token_delta
        return rows

    def embed(self, ids: Tensor) -> Tensor:
        """(length,) ids to (length, hidden) float32."""
        known = self.known[ids.clamp(max=NUM_KNOWN - 1)]
        rows = self.new_rows()[(ids - NUM_KNOWN).clamp(min=0)]
        return torch.where((ids >= NUM_KNOWN)[:, None], rows, known)

    def read(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """(length, hidden) states after the final norm."""
        dtype = self.language.embed_tokens.weight.dtype
        output = self.language(
            inputs_embeds=embeddings[None].to(dtype),
            position_ids=positions[None],
            attention_mask=None if mask is None else mask[None, None],
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def set_adapted(self, enabled: bool) -> None:
        """Use the low-rank changes, or be the model that was."""
        for layer in self.adapted:
            layer.enabled = enabled

    def trained_state(self) -> dict[str, Tensor]:
        """What training made: the adapter, the new tokens' rows and the connector."""
        return {
            **{f"model.{name}": value for name, value in adapter_state(self.language).items()},
            "new_tokens.weight": self.new_rows().detach(),
            **{f"connector.{k}": v.detach() for k, v in self.connector.state_dict().items()},
        }


class SceneWriter:
    """Scenes and questions to packed sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self._token = {token: int(tokenizer.token_to_id(token) or 0) for token in NEW_TOKENS}
        self.regions = [self._token[f"<region{index}>"] for index in range(MAX_REGIONS)]
        self.close = self._token["</objects>"]
        self._end = int(tokenizer.token_to_id("<|im_end|>") or 0)

    def trunk(self, scene: Scene, *, cells: bool) -> tuple[list[int], list[int], list[int]]:
        """Ids, places of the image's cells, and places of the regions' slots, two each."""
        ids = self._encode(_OPENING)
        image: list[int] = []
        if cells:
            ids.append(self._token["<|vision_start|>"])
            image = list(range(len(ids), len(ids) + len(scene.cells)))
            ids += [0] * len(scene.cells)
            ids.append(self._token["<|vision_end|>"])
        slots: list[int] = []
        for index in range(len(scene.regions)):
            region = self.regions[index]
            ids.append(region)
            slots += [len(ids), len(ids) + 1]
            ids += [0, 0, region]
        return ids, image, slots

    def turn(self) -> Branch:
        """The stem of all answers to which no words lead."""
        ids = self._encode(_TURN)
        return Branch(ids, [False] * len(ids))

    def asked(self, asked: Asked, *, stem: int) -> Branch:
        """The label is given; where it is has to be said."""
        label = asked.label if asked.label.startswith("<region") else f" {asked.label}"
        given = [
            self._token["<ground>"], *self._encode(label), self._token["</ground>"],
            self._token["<objects>"],
        ]  # fmt: skip
        answer = [*(self.regions[k] for k in asked.regions), self.close]
        return Branch(given + answer, [False] * len(given) + [True] * len(answer), stem)

    def in_words(self, asked: Asked, question: str) -> Branch:
        """The same after a question in words; also the tags and the label are the model's."""
        given = self._encode(f"\n{question}{_TURN}")
        regions = "".join(f"<region{k}>" for k in asked.regions)
        answer = self._encode(
            f"<ground> {asked.label}</ground><objects>{regions}</objects><|im_end|>"
        )
        return Branch(given + answer, [False] * len(given) + [True] * len(answer), free=True)

    def told(self, told: Told) -> Branch:
        """Words to words."""
        given = self._encode(f"\n{told.question}{_TURN}")
        answer = [*self._encode(told.answer), self._end]
        return Branch(given + answer, [False] * len(given) + [True] * len(answer), free=True)


def scene_tensors(scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, 80) scores, (n, 1016) probabilities and appearance, (n, 4) boxes, (25, 1000) cells."""
    coco = np.stack([region.coco for region in scene.regions])
    primary = np.stack([np.concatenate([r.imagenet, r.appearance]) for r in scene.regions])
    boxes = np.stack([region.box for region in scene.regions])
    return (torch.from_numpy(coco).float(), torch.from_numpy(primary).float(),
            torch.from_numpy(boxes).float(), torch.from_numpy(scene.cells).float())  # fmt: skip


class Lesson:
    """One scene as a loss."""

    def __init__(
        self, model: PointingModel, writer: SceneWriter, *, words_weight: float = 1.0
    ) -> None:
        self._words_weight = words_weight
        self._model = model
        self._writer = writer
        self._candidates = torch.tensor([*writer.regions, writer.close])

    def embeddings(self, scene: Scene, tree: Tree, image: list[int], slots: list[int]) -> Tensor:
        """(length, hidden) with every slot filled."""
        coco, primary, boxes, cells = scene_tensors(scene)
        embedded = self._model.embed(tree.ids)
        filled = self._model.connector(coco, primary, boxes).reshape(len(slots), -1)
        places, values = torch.tensor(slots), filled
        if image:
            places = torch.cat([torch.tensor(image), places])
            values = torch.cat([self._model.connector.cells(cells), values])
        return embedded.index_copy(0, places, values)

    def choices(self, scene: Scene, tree: Tree, image: list[int], slots: list[int]) -> Tensor:
        """(length, hidden) states."""
        return self._model.read(
            self.embeddings(scene, tree, image, slots), tree.positions, tree.mask
        )

    def loss(
        self, scene: Scene, tree: Tree, image: list[int], slots: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss; right or wrong of each prediction; its branch."""
        hidden = self.choices(scene, tree, image, slots)[tree.rows].float()
        rows = self._model.new_rows()
        losses = hidden.new_zeros(len(tree.rows))
        right = torch.zeros(len(tree.rows), dtype=torch.bool)
        closed = ~tree.free
        if closed.any():
            among = [*self._candidates[: len(scene.regions)].tolist(), self._writer.close]
            logits = hidden[closed] @ rows[torch.tensor(among) - NUM_KNOWN].T
            where = {token: place for place, token in enumerate(among)}
            wanted = torch.tensor([where[int(t)] for t in tree.targets[closed]])
            losses[closed] = nn.functional.cross_entropy(logits, wanted, reduction="none")
            right[closed] = logits.argmax(-1) == wanted
        if tree.free.any():
            logits = torch.cat([hidden[tree.free] @ self._model.known.T,
                                hidden[tree.free] @ rows.T], dim=-1)  # fmt: skip
            wanted = tree.targets[tree.free]
            losses[tree.free] = nn.functional.cross_entropy(logits, wanted, reduction="none")
            right[tree.free] = logits.argmax(-1) == wanted
        weights = torch.where(tree.free, self._words_weight, 1.0)
        return (losses * weights).sum() / weights.sum(), right, tree.branch


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


def lesson_tree(
    scene: Scene,
    writer: SceneWriter,
    questions: Questioner,
    dice: random.Random,
    labels: int,
    *,
    alone: bool = False,
) -> tuple[Tree, list[int], list[int], list[str]]:
    """A scene's questions packed, and what kind each branch is; `alone`: labels and no others."""
    trunk, image, slots = writer.trunk(scene, cells=dice.random() < (0.2 if alone else 0.7))
    branches, kinds = [writer.turn()], ["turn"]
    asked = questions.labels(scene, labels)
    for one in asked:
        branches.append(writer.asked(one, stem=0))
        kinds.append("label" if one.regions else "absent")
    if alone:
        return pack(trunk, slots, branches), image, slots, kinds
    for _ in range(2):
        described = questions.described(scene)
        if described is not None:
            branches.append(writer.asked(described, stem=0))
            kinds.append("described")
    liked = questions.likes(scene)
    if liked is not None:
        branches.append(writer.asked(liked[1], stem=0))
        kinds.append("likes")
    kinds_of_words = (questions.names, questions.names, questions.yes_or_no, questions.lists)
    told = dice.choice(kinds_of_words if scene.things else (questions.yes_or_no,))
    branches.append(writer.told(told(scene)))
    kinds.append("told")
    if dice.random() < 0.25:
        one = asked[0]
        words = f"Please detect {one.label} in this image. Answer the question with object indexes."
        branches.append(writer.in_words(one, words))
        kinds.append("in words")
    return pack(trunk, slots, branches), image, slots, kinds


@torch.no_grad()
def evaluate(model: PointingModel, head: np.ndarray, *, scenes: int, seed: int) -> dict[str, float]:
    """Whole answers right (teacher forcing: every choice of an answer right), by size and words."""
    writer, words = SceneWriter(model.tokenizer), vocabulary()
    lesson = Lesson(model, writer)
    found: dict[str, list[float]] = defaultdict(list)
    for count in (5, 12, 24):
        maker = SceneMaker(words, head, seed + count)
        seen = Questioner(words, seed + count)
        unseen = Questioner(words, seed + count, may_ask=held_out)
        for _number in range(scenes):
            scene = maker.scene(count)
            trunk, image, slots = writer.trunk(scene, cells=False)
            branches, kinds = [writer.turn()], ["turn"]
            for kind, asked in (
                ("seen", seen.labels(scene, 10, plain=True)),
                ("spelled", seen.labels(scene, 6)),
                ("unseen", unseen.labels(scene, 4, plain=True) if _askable(scene) else []),
            ):
                for one in asked:
                    branches.append(writer.asked(one, stem=0))
                    kinds.append(f"{kind}" if one.regions else f"{kind} absent")
            tree = pack(trunk, slots, branches)
            _, right, branch = lesson.loss(scene, tree, image, slots)
            for index, kind in enumerate(kinds):
                if kind != "turn":
                    found[f"{kind} {count}"].append(float(right[branch == index].all()))
    return {key: round(float(np.mean(values)), 3) for key, values in sorted(found.items())}


def _askable(scene: Scene) -> bool:
    return any(held_out(word) for thing in scene.things for word in thing.words)


def train(
    recipe: PointingRecipe,
    head: np.ndarray,
    texts: list[list[str]],
    output: Path,
    *,
    minutes: float,
    start: Path | None = None,
) -> None:
    """Run, or go on with, the training whose state lies in `output`.

    With `start` a new run begins with what that model's folder has learned.

    Several workers see different scenes and step together.
    """
    workers = Workers.current()
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = PointingModel(recipe)
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
    writer = SceneWriter(model.tokenizer)
    lesson = Lesson(model, writer, words_weight=recipe.words_weight)
    seed = recipe.seed + 1000 * first + 1_000_000 * workers.rank
    maker = SceneMaker(words, head, seed + 1)
    questions = Questioner(words, seed + 2)
    dice = random.Random(seed + 3)
    rehearsal = Rehearsal(model, texts, recipe.text_tokens, seed)
    log = (output / "log.jsonl").open("a") if workers.leads else None
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
        share = (step - recipe.pointing_steps) / (recipe.steps - recipe.pointing_steps)
        warm = min(1.0, (step + 1) / 30) * (1.0 if early else max(0.03, 1 - share))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * warm
        ceiling, maker.doubt = (
            recipe.most_regions[0],
            recipe.doubt[0] * step / recipe.pointing_steps,
        )
        if not early:
            # Half of the second part is the way to full size and doubt.
            grown = min(1.0, 2 * share)
            ceiling += round(grown * (recipe.most_regions[1] - ceiling))
            maker.doubt = recipe.doubt[0] + grown * (recipe.doubt[1] - recipe.doubt[0])
        num_scenes = recipe.scenes_per_step[part]
        for _ in range(num_scenes):
            count = round(
                math.exp(dice.uniform(math.log(recipe.fewest_regions), math.log(ceiling)))
            )
            scene = maker.scene(count)
            tree, image, slots, kinds = lesson_tree(
                scene, writer, questions, dice, recipe.labels_per_scene[part], alone=early
            )
            loss, right, branch = lesson.loss(scene, tree, image, slots)
            (loss / num_scenes).backward()
            tally["loss"].append(float(loss.detach()))
            for index, kind in enumerate(kinds):
                if kind != "turn":
                    tally[kind].append(float(right[branch == index].all()))
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
        if log is None:
            if over:
                return
            continue
        if (step + 1) % 20 == 0 or over:
            means = {k: round(float(np.mean(v)), 3) for k, v in sorted(tally.items())}
            line = {"step": step + 1, "seconds": round(time.monotonic() - started), **means}
            print(json.dumps(line), file=log, flush=True)
            tally.clear()
        if (step + 1) % 50 == 0 or over or step + 1 == recipe.steps:
            _save(model, optimiser, step + 1, recipe, output)
        if (step + 1) % 200 == 0 or over or step + 1 == recipe.steps:
            figures = evaluate(model, head, scenes=8, seed=99)
            print(json.dumps({"step": step + 1, "eval": figures}), file=log, flush=True)
        if over:
            return


def _restored(
    model: PointingModel, optimiser: torch.optim.Optimizer, path: Path, start: Path | None
) -> int:
    """The step to go on from: an interrupted run's, or the first, with what `start` has learned."""
    if not path.is_file():
        if start is not None:
            _take_over(model, load_file(start / "language.safetensors"))
        return 0
    state = torch.load(path, weights_only=True)
    load_adapter(model.language, state["adapter"])
    model.connector.load_state_dict(state["connector"])
    model.token_offset.data.copy_(state["offset"])
    model.token_delta.data.copy_(state["delta"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _take_over(model: PointingModel, learned: dict[str, Tensor]) -> None:
    """Begin with what a model's folder holds."""
    floats = {key: value.float() for key, value in learned.items()}
    prefix = "connector."
    load_adapter(
        model.language,
        {k.removeprefix("model."): v for k, v in floats.items() if k.startswith("model.")},
    )
    model.connector.load_state_dict(
        {k.removeprefix(prefix): v for k, v in floats.items() if k.startswith(prefix)}
    )
    rows = floats["new_tokens.weight"]
    model.token_delta.data.copy_(rows - model.token_base - model.token_offset)


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
        minutes: stop then; another run goes on.
        threads: of this process.

    Raises:
        SettingsError: there is nothing to rehearse.
    """
    torch.set_num_threads(threads)
    rehearsed = plain_texts(wordnet, list(texts))
    if recipe.text_weight and not any(rehearsed):
        raise SettingsError("there is no text to rehearse: give --wordnet, --texts or both")
    train(recipe, classifier_head(head), rehearsed, output, minutes=minutes, start=start)
