"""Every language family in the one path: caches, guesses and company change no answer."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from agent.errors import CheckpointMismatch
from agent.model.checkpoint import load_model, save_model
from agent.model.family import LLAMA, LLAVA_ONEVISION, QWEN2_5_VL, RegionOrder, find_family
from agent.model.positions import SlotType
from agent.prompts import Exchange, Task
from agent.sequence import SequenceBuilder, TokenSequence
from agent.stage_settings import EngineSettings
from tests.unit.tiny_families import (
    FAMILIES,
    family_config,
    family_model,
    family_stage,
    random_features,
)
from tests.unit.tiny_model import tiny_tokenizer

DETECT = replace(Task.detect("dog"), max_new_tokens=10)
WORDED = replace(Task.chat("what is there?"), max_new_tokens=10)
"""A question that every family answers in words of its own."""
NO_GUESSES = EngineSettings(max_draft_tokens=0)


@pytest.fixture(scope="module", params=FAMILIES)
def stage(request):
    made = family_stage(request.param)
    yield made
    made.close()


@pytest.fixture
def config(stage):
    return stage._model.config


def whole_prompt(stage, features, task) -> TokenSequence:
    """Prefix and question in one piece."""
    builder = stage._builder
    prefix = builder.prefix(stage._model.config.token_grid(features.grid), len(features.proposals))
    question = builder.question(task.text, start=prefix.next_position)
    return TokenSequence(
        torch.cat([prefix.ids, question.ids]),
        torch.cat([prefix.slots, question.slots]),
        torch.cat([prefix.positions, question.positions], dim=1),
        question.next_position,
    )


@torch.inference_mode()
def plain(stage, features, task) -> tuple[str, ...]:
    """Greedy decoding with transformers' own cache: one question, one token at a time."""
    language, tokenizer = stage._language, stage._tokenizer
    whole = whole_prompt(stage, features, task)
    embeddings = stage._input(whole, features).embedded(stage._language)[None]
    positions, position = whole.positions[:, None], whole.next_position
    cache, ids = DynamicCache(), []
    grammar = stage._grammar(task, stage._tokens.first(len(features.proposals)))
    while len(ids) < task.max_new_tokens:
        logits = language.logits(language(embeddings, positions, cache=cache)[0, -1])
        token = int((grammar.constrain(logits) if grammar else logits).argmax())
        if token == stage._builder.end_of_turn:
            break
        ids.append(token)
        grammar = grammar.advanced(token) if grammar else None
        embeddings = language.embed(torch.tensor([[token]]))
        positions = torch.full((language.num_axes, 1, 1), position)
        position += 1
    return tokenizer.pieces(ids)


def test_the_engine_writes_what_plain_decoding_writes(stage, config):
    for seed in range(4):
        features = random_features(config, f"plain {seed}", seed=seed)
        assert stage.answer(features, WORDED).pieces == plain(stage, features, WORDED)


def test_what_was_asked_before_changes_nothing(stage, config):
    features = random_features(config, "reused")
    cold, warm = stage.answer(features, DETECT), stage.answer(features, DETECT)
    assert cold.num_prefix_tokens_reused == 0
    assert warm.num_prefix_tokens_reused > len(features.proposals)
    assert warm.pieces == cold.pieces
    assert warm.probabilities == pytest.approx(cold.probabilities, rel=1e-4)


def test_company_changes_nothing(stage, config):
    features = [random_features(config, f"company {n}", seed=n) for n in range(3)]
    tasks = [
        replace(Task.detect(label), max_new_tokens=10) for label in ("dog", "cat", "red apple")
    ]
    alone = [[stage.answer(f, task).pieces for task in tasks] for f in features]
    stage.engine.prefixes.clear()
    steps = stage.engine.counts["steps"]
    futures = [[stage.start(f, task) for task in tasks] for f in features]
    together = [[future.result(60) for future in row] for row in futures]
    assert [[answer.pieces for answer in row] for row in together] == alone
    passes = sum(answer.num_passes for row in together for answer in row)
    assert stage.engine.counts["steps"] - steps < passes / 2


def test_a_page_continues_the_image(stage, config):
    features = random_features(config, "frame", num_boxes=6)
    page = features.select(np.array([1, 3, 4]))
    assert page.image_key == "frame"
    alone = replace(page, key="alone", image_key="")
    assert stage.answer(page, DETECT).pieces == stage.answer(alone, DETECT).pieces
    assert stage.engine.prefixes.get("frame/image") is not None
    continued, whole = stage.engine.prefixes.get(page.key), stage.engine.prefixes.get("alone")
    assert continued.next_position == whole.next_position
    for first, second in zip(continued.layers, whole.layers, strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_guesses_change_nothing(stage, config):
    features = random_features(config, "guessed", seed=5)
    text = stage.answer(features, WORDED).text
    drafts = ("<ground>dog</ground><objects><region1></objects>", text, text[:-1] + "x")
    guided = stage.answer(features, replace(WORDED, drafts=drafts))
    assert guided.text == text
    assert guided.num_passes < stage.answer(features, WORDED).num_passes


def test_the_grammar_holds(stage, config):
    task = replace(DETECT, constrained=True, max_new_tokens=40)
    for seed in range(3):
        features = random_features(config, seed=seed)
        text = stage.answer(features, task).text
        assert "<region3>" not in text, "only three boxes are there"
        for opened, closed in (("<ground>", "</ground>"), ("<objects>", "</objects>")):
            assert 0 <= text.count(opened) - text.count(closed) <= 1


def test_text_is_told_while_it_is_written(stage, config):
    told: list[str] = []
    done = stage.start(random_features(config, "told"), WORDED, told.append).result(60)
    assert "".join(told) == done.text
    assert len(told) > 1


def test_cancelling_ends_an_answer(stage, config):
    begun = threading.Event()
    task = replace(WORDED, max_new_tokens=400)
    long = stage.start(random_features(config, "long"), task, lambda text: begun.set())
    assert begun.wait(60)
    assert long.cancel()
    with pytest.raises(CancelledError):
        long.result(1)
    assert stage.answer(random_features(config, "long"), DETECT).pieces


def test_words_alone_and_earlier_turns(stage, config):
    assert stage.answer(None, replace(Task.chat("hello"), max_new_tokens=5)).pieces
    chat = Task.chat("and now?", history=(Exchange("a dog?", "yes"),))
    answer = stage.answer(random_features(config, "turns"), replace(chat, max_new_tokens=5))
    assert answer.num_prompt_tokens > len(stage._tokenizer.encode("a dog? yes and now?"))


def test_prefixes_in_chunks_change_nothing(stage, config):
    features = random_features(config, "chunked", num_boxes=60)
    small = family_stage(config.family, EngineSettings(max_step_tokens=40))
    try:
        assert small.answer(features, DETECT).pieces == stage.answer(features, DETECT).pieces
        assert small.engine.counts["steps"] > 4
    finally:
        small.close()


def test_compiled_layers_write_the_same(stage, config):
    traced = family_stage(config.family)
    torch._dynamo.reset()
    traced.engine.compile(backend="eager")
    try:
        for seed in range(2):
            features = random_features(config, f"compiled {seed}", seed=seed)
            assert traced.answer(features, DETECT).pieces == stage.answer(features, DETECT).pieces
    finally:
        traced.close()


def test_positions_have_as_many_axes_as_the_decoder_reads(stage, config):
    whole = whole_prompt(stage, random_features(config), DETECT)
    axes = 3 if config.family == "qwen2_5_vl" else 1
    assert stage._language.num_axes == axes == len(whole.positions)
    if axes == 1:
        assert whole.positions[0].tolist() == list(range(len(whole)))


def test_saved_models_answer_as_before(stage, config, tmp_path):
    save_model(stage._model, tmp_path)
    stage._tokenizer.save(tmp_path)
    again = type(stage).from_pretrained(str(tmp_path))
    try:
        assert load_model(tmp_path).config.to_dict() == config.to_dict()
        features = random_features(config, "saved")
        assert again.answer(features, DETECT).pieces == stage.answer(features, DETECT).pieces
    finally:
        again.close()


def test_slots_of_a_region_stand_in_the_order_the_model_has():
    tokenizer = tiny_tokenizer()
    for word, expected in (("RS", "rs"), ("SR", "sr"), ("RSSR", "rssr")):
        family = replace(LLAMA, order=RegionOrder(word))
        regions = SequenceBuilder(tokenizer, family).regions(2, start=7)
        kinds = ["s" if slot == SlotType.REGION else "r" for slot in regions.slots]
        assert "".join(kinds) == 2 * expected
        named = regions.ids[regions.slots == SlotType.TEXT].tolist()
        per_region = word.count("R")
        assert named == [tokenizer.region(n) for n in (0, 1) for _ in range(per_region)]
        assert regions.next_position == 7 + 2 * len(word)


def test_several_slots_of_a_region_are_filled_in_order():
    tokenizer = tiny_tokenizer()
    stage = family_stage("llama")
    model = family_model("llama", tokenizer)
    features = random_features(model.config)
    whole = whole_prompt(stage, features, DETECT)
    with torch.inference_mode():
        embedded = stage._input(whole, features).embedded(stage._language)
        slots = model.region_tokens(
            torch.from_numpy(features.primary_regions),
            torch.from_numpy(features.auxiliary_regions),
            torch.from_numpy(_relative(model.config, features)),
        )
    stage.close()
    assert slots.shape == (3, 2, 32)
    torch.testing.assert_close(embedded[whole.slots == SlotType.REGION], slots.flatten(0, 1))


def _relative(config, features):
    from agent.processor import normalised_boxes

    return normalised_boxes(features.proposals.xyxy, features.width, features.height, config)


def test_each_family_speaks_as_it_was_taught():
    tokenizer = tiny_tokenizer()
    said = {}
    for family in (QWEN2_5_VL, LLAMA, LLAVA_ONEVISION):
        builder = SequenceBuilder(tokenizer, family)
        prefix = builder.prefix((1, 2), 1)
        question = builder.question("Where?", start=prefix.next_position)
        ids = torch.cat([prefix.ids, question.ids])
        text = torch.cat([prefix.slots, question.slots]) == SlotType.TEXT
        said[family.name] = tokenizer.decode(ids[text].tolist())
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    asked = "\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    picture = "<|vision_start|><|vision_end|>"
    assert said["qwen2_5_vl"] == f"{system}{picture}\n<region0>{asked}"
    assert said["llama"] == f"{system}{picture}<region0><region0>{asked}"
    assert said["llava_onevision"] == (
        "<|im_start|>user \n<region0>\nWhere?<|im_end|><|im_start|>assistant\n"
    )


def test_marks_of_a_picture_stand_only_where_image_tokens_do():
    tokenizer = tiny_tokenizer()
    for family, marked in ((QWEN2_5_VL, True), (LLAMA, False)):
        prefix = SequenceBuilder(tokenizer, family).prefix(None, 2)
        assert (tokenizer.control("<|vision_start|>") in prefix.ids) == marked
        bare = SequenceBuilder(tokenizer, family).prefix(None, 0)
        assert tokenizer.control("<|vision_start|>") not in bare.ids


def test_guessed_labels_begin_as_the_family_writes_them(stage, config):
    tokens = stage._tokens.first(3)
    task = replace(Task.detect("dog"), drafts=("<ground>dog</ground><objects></objects>",))
    guess = stage._drafter(task, tokens).guesses([])[0]
    space = " " if config.family == "llama" else ""
    assert stage._tokenizer.decode(guess) == f"<ground>{space}dog</ground><objects></objects>"


@pytest.mark.parametrize("word", ["", "S", "RX", "RR"])
def test_an_order_needs_the_token_and_a_slot(word):
    with pytest.raises(CheckpointMismatch, match="region order"):
        RegionOrder(word)


def test_unknown_families_are_named():
    with pytest.raises(CheckpointMismatch, match="'gpt' is unknown; known: llama, llava"):
        find_family("gpt")
    config = family_config("llama", 512)
    raw = config.to_dict()
    raw["groundstream"]["primary"] = "eye"
    with pytest.raises(CheckpointMismatch, match="primary encoder 'eye'"):
        type(config).from_dict(raw)
