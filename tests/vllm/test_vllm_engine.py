"""vLLM writes what the builtin engine writes, and keeps the engine's contract.

Runs where groundstream-vllm is installed, in an environment of its own: `make test-vllm`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from groundstream_vllm.decoder import FILLINGS

from agent.drafting import Drafter
from agent.engine_backends import open_backend
from agent.features import FrameFeatures, Generation
from agent.generation import LanguageStage
from agent.model.checkpoint import read_config
from agent.prompts import Exchange, Task
from agent.stage_settings import EngineSettings
from groundstream.errors import InvalidQuery, Overloaded, SettingsError
from tests.unit.tiny_families import FAMILIES, random_features
from tests.vllm.models import write_model

# vLLM and what it brings warn at every turn.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

ROOM = 2**25
LABELS = ("dog", "cat", "red apple", "teddy bear")
WORDS = ("what is there?", "is it a dog?", "where are they?", "how many?")
LONG = replace(Task.chat("say it all"), max_new_tokens=300)
_NUMBERS = itertools.count()


def questions() -> list[Task]:
    """Sixteen of every kind that a family may be asked."""
    asked = [
        *(Task.detect(label) for label in LABELS),
        Task.detect(*LABELS[:3]),
        Task.count("dog"),
        Task.refer("the red apple"),
        *(replace(Task.chat(words), constrained=True) for words in WORDS),
        *(Task.chat(words) for words in WORDS[:2]),
        Task.describe_region(2),
        Task.describe_image(),
        Task.chat("and now?", history=(Exchange("who?", "dog"),)),
    ]
    return [replace(task, max_new_tokens=12) for task in asked]


@dataclass
class Engines:
    """The same model behind both engines."""

    folder: Path
    ours: LanguageStage
    theirs: LanguageStage

    def features(self, *, num_boxes: int = 12) -> FrameFeatures:
        """A frame that neither has seen."""
        number = next(_NUMBERS)
        return random_features(
            self.ours._model.config, f"frame {number}", num_boxes=num_boxes, seed=number
        )

    def is_clean(self) -> bool:
        """Whether vLLM holds nothing of any request, its cache of prefixes aside."""
        engine = self.theirs.engine
        scheduler = engine._scheduler
        return not (
            engine._runs
            or engine._inner_ids
            or engine._by_inner_id
            or FILLINGS._fillings
            or scheduler.requests
            or scheduler.kv_cache_manager.usage
        )


@contextmanager
def opened(family: str, folder: Path, **bounds: int) -> Iterator[Engines]:
    """Both engines with a model of a family."""
    write_model(family, folder)
    engines = Engines(
        folder,
        LanguageStage.from_pretrained(str(folder), dtype="float32"),
        LanguageStage.from_pretrained(
            str(folder),
            dtype="float32",
            engine=EngineSettings(**{"backend": "vllm", "prefix_bytes": ROOM, **bounds}),
        ),
    )
    try:
        yield engines
    finally:
        engines.ours.close()
        engines.theirs.close()


@pytest.fixture(scope="module", params=FAMILIES)
def engines(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Engines]:
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as both:
        yield both


def waited(condition: Callable[[], bool]) -> bool:
    """Whether it comes true soon."""
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def same(theirs: Generation, ours: Generation) -> bool:
    return (theirs.pieces, theirs.truncated) == (ours.pieces, ours.truncated)


def test_ids_are_equal_for_every_kind_of_question(engines: Engines) -> None:
    asked, reused = questions(), engines.theirs.engine.counts["reused"]
    filled, told = FILLINGS.num_filled, set()
    for _ in range(3):
        features = engines.features()
        futures = [engines.theirs.start(features, task) for task in asked]
        for task, future in zip(asked, futures, strict=True):
            theirs, ours = future.result(120), engines.ours.answer(features, task)
            assert same(theirs, ours), task
            if not task.constrained and not engines.ours._builder.family.prompt.bounds_answers:
                assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-4)
            told.add(theirs.pieces)
    assert 3 * len(asked) >= 40
    assert len(told) > 30, "answers that are all the same prove nothing"
    # Eleven questions a frame and more found its prefix, all but its last block.
    assert engines.theirs.engine.counts["reused"] - reused > 3 * 11 * 32
    assert FILLINGS.num_filled - filled <= 2 * 3
    assert waited(engines.is_clean)


def test_a_second_question_finds_the_frame(engines: Engines) -> None:
    features = engines.features(num_boxes=40)
    cold, warm = (engines.theirs.answer(features, questions()[-2]) for _ in range(2))
    filled = FILLINGS.num_filled
    again = engines.theirs.answer(features, questions()[7])
    assert cold.num_prefix_tokens_reused == 0
    assert warm.num_prefix_tokens_reused >= again.num_prefix_tokens_reused >= 64
    assert same(warm, cold)
    assert FILLINGS.num_filled == filled, "what fills the slots was computed for nothing"


def test_frames_are_told_apart(engines: Engines) -> None:
    """Equal words about equal numbers of boxes."""
    seen = [engines.features() for _ in range(2)]
    for features in [*seen, *seen]:
        task = questions()[-2]
        assert same(engines.theirs.answer(features, task), engines.ours.answer(features, task))


def test_a_frame_without_a_key_is_shared_with_nobody(engines: Engines) -> None:
    features = replace(engines.features(num_boxes=40), key="")
    for _ in range(2):
        answer = engines.theirs.answer(features, questions()[-2])
        assert answer.num_prefix_tokens_reused == 0


def test_words_alone(engines: Engines) -> None:
    for _ in range(2):
        answer = engines.theirs.answer(None, questions()[-3])
        assert same(answer, engines.ours.answer(None, questions()[-3]))
        assert answer.num_prefix_tokens_reused == 0


def test_pages_share_the_image(tmp_path: Path) -> None:
    with opened("qwen2_5_vl", tmp_path) as engines:
        config = engines.ours._model.config
        features = engines.features(num_boxes=30)
        # An image of more than one block, which the made-up frames have not.
        rows, columns = 12, 10
        merged = config.primary_kind.merged(config.vision)
        rng = np.random.default_rng(5)
        features = replace(
            features,
            grid=(rows * merged, columns * merged),
            image_tokens=rng.normal(
                size=(rows * columns, config.primary_kind.token_width(config.vision))
            ).astype(np.float32),
        )
        pages = [features.select(np.arange(start, start + 15)) for start in (0, 15)]
        answers = []
        for page in pages:
            answers.append(engines.theirs.answer(page, questions()[11]))
            assert same(answers[-1], engines.ours.answer(page, questions()[11]))
        assert answers[0].num_prefix_tokens_reused == 0
        assert answers[1].num_prefix_tokens_reused >= 96


@pytest.mark.parametrize("constrained", [False, True])
def test_drafts_save_passes_and_change_nothing(tmp_path: Path, constrained: bool) -> None:
    with opened("qwen2_5_vl", tmp_path) as engines:
        stage, accepted = engines.theirs, 0
        tokens = stage._tokens.first(12)
        for number in range(4):
            features = engines.features()
            task = replace(questions()[number + 7], constrained=constrained)
            asked = replace(stage._request(features, task), drafter=None)
            expected = engines.ours.engine.submit(engines.ours._request(features, task)).result(60)
            plain, right, wrong = (
                stage.engine.submit(replace(asked, drafter=Drafter(tokens, answers=[guess])))
                for guess in ((), expected.ids, (*expected.ids[:3], 7, 7, 7))
            )
            for answer in (plain, right, wrong):
                assert answer.result(60).ids == expected.ids
            assert right.result().num_passes <= 3 < plain.result().num_passes
            accepted += right.result().num_accepted
        assert accepted > 20
        assert stage.engine.counts["accepted"] >= accepted


def test_text_comes_while_it_is_written(engines: Engines) -> None:
    features, heard = engines.features(), []
    answer = engines.theirs.start(features, questions()[-2], heard.append).result(60)
    assert "".join(heard) == answer.text
    assert len(heard) > 1


def test_cancelling_frees_everything(engines: Engines) -> None:
    features, heard = engines.features(), threading.Event()
    cancelled = engines.theirs.engine.counts["cancelled"]
    answers = [
        engines.theirs.start(features, LONG, lambda text: heard.set()),
        *(engines.theirs.start(features, LONG) for _ in range(3)),
    ]
    assert heard.wait(60)
    for answer in answers:
        answer.cancel()
    with pytest.raises(CancelledError):
        answers[0].result(1)
    assert waited(engines.is_clean)
    assert engines.theirs.engine.counts["cancelled"] > cancelled
    task = questions()[-2]
    assert same(engines.theirs.answer(features, task), engines.ours.answer(features, task))


def test_a_question_that_fails_harms_no_other(engines: Engines) -> None:
    features = engines.features()
    fails = engines.theirs.start(features, replace(LONG, max_new_tokens=100_000))
    works = engines.theirs.start(features, questions()[-2])
    with pytest.raises(InvalidQuery, match="shorten"):
        fails.result(60)
    assert same(works.result(60), engines.ours.answer(features, questions()[-2]))
    assert waited(engines.is_clean)


def test_who_waits_least_goes_first(tmp_path: Path) -> None:
    with opened("llava_onevision", tmp_path, max_running=1) as engines:
        features, heard, order = engines.features(), threading.Event(), []
        first = engines.theirs.start(
            features, replace(LONG, patience_s=0.5), lambda text: heard.set()
        )
        assert heard.wait(60)
        answers = [first]
        for patience_s in (900.0, 300.0, 600.0):
            task = replace(questions()[-2], patience_s=patience_s)
            answers.append(engines.theirs.start(features, task))
            answers[-1].add_done_callback(lambda _, known=patience_s: order.append(known))
        for answer in answers:
            answer.result(120)
    assert order == [300.0, 600.0, 900.0]


def test_what_is_urgent_takes_the_place_of_what_is_not(tmp_path: Path) -> None:
    """Blocks for one answer and a half: the later deadline gives way, and is answered later."""
    with opened("llava_onevision", tmp_path, prefix_bytes=2**20) as engines:
        length = engines.theirs.engine._max_length - 250
        patient = replace(LONG, max_new_tokens=length, patience_s=900.0)
        urgent = replace(patient, patience_s=60.0)
        # Two answers of more than half the pool; what random weights say ends somewhere.
        known: list[tuple[FrameFeatures, Generation]] = []
        while len(known) < 2:
            features = engines.features()
            answer = engines.ours.answer(features, patient)
            if len(answer.pieces) > 480:
                known.append((features, answer))
        heard, done = threading.Event(), []
        answers = [engines.theirs.start(known[0][0], patient, lambda text: heard.set())]
        assert heard.wait(60)
        answers.append(engines.theirs.start(known[1][0], urgent))
        for name, answer in zip(("patient", "urgent"), answers, strict=True):
            answer.add_done_callback(lambda _, name=name: done.append(name))
        for answer, (_, expected) in zip(answers, known, strict=True):
            assert same(answer.result(600), expected)
        assert done == ["urgent", "patient"]


def test_more_than_may_wait_is_refused_and_closing_ends_the_rest(tmp_path: Path) -> None:
    with opened("llava_onevision", tmp_path, max_running=1, max_waiting=1) as engines:
        features, heard = engines.features(), threading.Event()
        running = engines.theirs.start(features, LONG, lambda text: heard.set())
        assert heard.wait(60)
        waiting = engines.theirs.start(features, LONG)
        with pytest.raises(Overloaded):
            engines.theirs.start(features, LONG)
        engines.theirs.close()
        for answer in (running, waiting):
            with pytest.raises(CancelledError):
                answer.result(5)
        assert not engines.theirs.engine._thread.is_alive()
        assert engines.theirs.stalled_s() == 0
        assert not FILLINGS._fillings
        with pytest.raises(Overloaded):
            engines.theirs.start(features, LONG)


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"dtype": torch.int8}, "engine.backend to builtin"),
        ({"device": "cuda:3"}, "CUDA_VISIBLE_DEVICES"),
        ({"device": "cuda"}, "vllm for GPUs"),
        ({"prefix_bytes": 10_000}, "give it room"),
        ({"bf16_rotary": True}, "engine.backend to builtin"),
    ],
)
def test_what_it_cannot_do_is_refused_at_the_start(tmp_path: Path, changed, advice: str) -> None:
    write_model("qwen2_5_vl", tmp_path)
    bounds = {"backend": "vllm", "prefix_bytes": changed.get("prefix_bytes", ROOM)}
    config = replace(read_config(tmp_path), bf16_rotary=changed.get("bf16_rotary", False))
    with pytest.raises(SettingsError, match=advice):
        open_backend(
            EngineSettings(**bounds),
            tmp_path,
            config,
            device=changed.get("device", "cpu"),
            dtype=changed.get("dtype", torch.float32),
        )
