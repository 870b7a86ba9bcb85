"""SmolLM2 with its real weights: read rightly, built on rightly, and through the one engine."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.cache_utils import DynamicCache

from agent.detections import Proposals
from agent.errors import CheckpointMismatch
from agent.features import FrameFeatures
from agent.generation import LanguageStage
from agent.model.checkpoint import load_model, save_language
from agent.model.gguf_file import GGUFFile
from agent.model.smollm2 import smollm2_file, smollm2_tokenizer, smollm2_weights
from agent.model.vlm_fo1 import Part
from agent.prompts import Task
from agent.sequence import SequenceBuilder
from agent.tokenizer import CONTROL_TOKENS, PromptTokenizer
from agent.training.base_model import load_smollm2
from tests.unit.pocket_folder import NUM_NEW, write_pocket_folder

CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "What is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)
LANGUAGE = frozenset({Part.LANGUAGE})


@pytest.fixture(scope="module")
def published():
    """transformers' own model."""
    return load_smollm2(dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that adds nothing to its base but tokens and a connector."""
    directory = tmp_path_factory.mktemp("pocket")
    write_pocket_folder(directory)
    return directory


@pytest.fixture(scope="module")
def stage(folder):
    made = LanguageStage.from_pretrained(str(folder), dtype="float32")
    yield made
    made.close()


def features(num_boxes=12, key="", seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (num_boxes, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1).astype(np.float32)
    appearance = rng.uniform(0, 1, (num_boxes, 16))
    classes = rng.dirichlet(np.full(1000, 0.01), num_boxes)
    return FrameFeatures(
        width=640,
        height=480,
        proposals=Proposals(boxes, np.ones(num_boxes, dtype=np.float32)),
        image_tokens=rng.dirichlet(np.full(1000, 0.01), 12).astype(np.float32),
        grid=(3, 4),
        primary_regions=np.concatenate([classes, appearance], axis=1).astype(np.float32),
        auxiliary_regions=rng.uniform(0, 1, (num_boxes, 80)).astype(np.float32),
        key=key,
    )


def test_our_reader_expands_as_the_format_says():
    quants = pytest.importorskip("gguf.quants")
    reader = pytest.importorskip("gguf").GGUFReader(smollm2_file())
    file = GGUFFile(smollm2_file())
    assert file.names() == [str(tensor.name) for tensor in reader.tensors]
    for tensor in reader.tensors[::25]:
        theirs = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.tensor(str(tensor.name)).numpy(), theirs)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"GGUF" + b"\xff" * 60])
def test_what_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="no GGUF file"):
        GGUFFile(tmp_path / "a.gguf")


def test_it_knows_the_capital_of_france(stage):
    answer = stage.answer(None, Task.chat("What is the capital of France?"))
    assert " Paris" in answer.text


@torch.inference_mode()
def test_hidden_states_are_those_of_transformers(stage, published):
    ids = torch.tensor([stage._tokenizer.encode(CHAT)])
    theirs = published(input_ids=ids).logits[0]
    language = stage._language
    positions = torch.arange(ids.shape[1])[None, None]
    ours = language.logits(language(language.embed(ids), positions))[0]
    assert torch.equal(ours[:, : theirs.shape[1]], theirs), "to the bit"


@torch.inference_mode()
def test_the_engine_writes_what_transformers_writes(stage, published):
    ids = torch.tensor([smollm2_tokenizer().encode(CHAT).ids])
    mask = torch.ones_like(ids)
    theirs = published.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    expected = [token for token in theirs[0, ids.shape[1] :].tolist() if token != 2]
    asked = replace(Task.chat("What is the capital of France?"), max_new_tokens=24)
    assert stage.answer(None, asked).text == stage._tokenizer.decode(expected)


def test_connectors_load_without_the_base(folder):
    model = load_model(folder, parts=frozenset({Part.CONNECTORS}))
    assert model.language_model is None
    weights = load_model(folder, parts=LANGUAGE).state_dict()
    assert model.state_dict().keys() == {
        name for name in weights if not name.startswith("language_model.")
    }
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@torch.inference_mode()
def test_regions_through_the_engine_equal_one_long_pass(stage):
    """Two slots a region, an image, a prefix shared: against plain decoding with a cache."""
    shown, task = features(key="frame"), replace(Task.chat("Where is the dog?"), max_new_tokens=8)
    builder, language = stage._builder, stage._language
    prefix = builder.prefix((3, 4), len(shown.proposals))
    question = builder.question(task.text, start=prefix.next_position)
    embeddings = torch.cat(
        [stage._input(prefix, shown).embedded(language), language.embed(question.ids)]
    )[None]
    positions, position = torch.cat([prefix.positions, question.positions], 1)[:, None], 0
    position, cache, ids = question.next_position, DynamicCache(), []
    grammar = stage._grammar(task, stage._tokens.first(len(shown.proposals)))
    while len(ids) < task.max_new_tokens:
        hidden = language(embeddings, positions, cache=cache)
        token = int(grammar.constrain(language.logits(hidden[0, -1])).argmax())
        if token == builder.end_of_turn:
            break
        ids.append(token)
        grammar = grammar.advanced(token)
        embeddings, positions = (
            language.embed(torch.tensor([[token]])),
            torch.tensor([[[position]]]),
        )
        position += 1
    for _ in ("cold", "with the shared prefix"):
        assert stage.answer(shown, task).text == stage._tokenizer.decode(ids)
    assert len(prefix) == prefix.next_position
    assert (prefix.ids == stage._tokenizer.region(3)).sum() == 2


def test_the_prompt_is_that_of_training(stage):
    """`agent.training.scene_lessons` writes scenes so; the adapter knows no other form."""
    encode, region = stage._tokenizer.encode, stage._tokenizer.region
    opening = CHAT.split("What")[0]
    builder = stage._builder
    with_cells, without = builder.prefix((1, 2), 2), builder.prefix(None, 2)
    regions = [region(0), 0, 0, region(0), region(1), 0, 0, region(1)]
    assert without.ids.tolist() == [*encode(opening), *regions]
    assert with_cells.ids.tolist() == [
        *encode(f"{opening}<|vision_start|>"), 0, 0, *encode("<|vision_end|>"), *regions
    ]  # fmt: skip
    asked = builder.question("Where is the dog?", start=0)
    assert asked.ids.tolist() == encode("\nWhere is the dog?<|im_end|>\n<|im_start|>assistant\n")


def test_new_tokens_follow_the_published_ones(stage):
    tokenizer = PromptTokenizer(smollm2_tokenizer(CONTROL_TOKENS))
    assert tokenizer.control("<|vision_start|>") == 49_152
    assert tokenizer.region(99) == 49_152 + NUM_NEW - 1
    assert tokenizer.encode(" dog") == [2767]
    assert tokenizer.encode("12") == [*tokenizer.encode("1"), *tokenizer.encode("2")]
    assert SequenceBuilder(tokenizer).end_of_turn == 2
    assert stage._tokenizer.vocab_size == stage._language.config.vocab_size


def test_low_rank_changes_are_added_and_new_rows_appended(tmp_path):
    state = write_pocket_folder(tmp_path, strength=0.02)
    model = load_model(tmp_path, parts=LANGUAGE)
    base = smollm2_weights()
    name = "model.layers.7.self_attn.k_proj"
    expected = base[f"{name}.weight"] + state[f"{name}.lora_b"] @ state[f"{name}.lora_a"]
    held = model.language_model.model
    torch.testing.assert_close(held.layers[7].self_attn.k_proj.weight.data, expected)
    torch.testing.assert_close(
        held.layers[7].mlp.up_proj.weight.data, base["model.layers.7.mlp.up_proj.weight"]
    )
    rows = held.embed_tokens.weight.data
    torch.testing.assert_close(rows[:49_152], base["model.embed_tokens.weight"])
    torch.testing.assert_close(rows[49_152:], state["new_tokens.weight"])
    own = model.region_projector.own_names.data
    torch.testing.assert_close(own, state["connector.own_names"])


def test_half_precision_keeps_the_connector_wide(folder):
    model = load_model(folder, parts=LANGUAGE, dtype=torch.bfloat16)
    assert model.language_model.model.norm.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.region_projector.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("new_tokens.weight"), r"embed_tokens\.weight is \(49152, 576\)"),
        (lambda s: s.pop("connector.coco_power"), "1 missing: region_projector.coco_power"),
        (lambda s: s.update({"connector.more": torch.zeros(1)}), "1 unexpected"),
        (lambda s: s.pop("model.layers.0.self_attn.q_proj.lora_b"), "does not fit its base"),
        (
            lambda s: s.update({"model.layers.99.self_attn.q_proj.lora_a": torch.zeros(4, 576)}),
            "does not fit its base",
        ),
        (lambda s: s.update({"nonsense": torch.zeros(1)}), "not part of"),
    ],
    ids=["rows", "missing", "unexpected", "half a change", "no such layer", "foreign"],
)
def test_additions_are_read_strictly(folder, tmp_path, change, message):
    state = load_file(folder / "language.safetensors")
    change(state)
    save_file(state, tmp_path / "language.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointMismatch, match=message):
        load_model(tmp_path, parts=LANGUAGE)


def test_a_base_that_nobody_knows(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    raw["groundstream"]["base"] = "gpt"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(
        CheckpointMismatch, match="base 'gpt' is no folder, and unknown; known: smollm2"
    ):
        load_model(tmp_path, parts=LANGUAGE)


def test_a_trained_language_model_becomes_what_is_added_to_its_base(tmp_path):
    write_pocket_folder(tmp_path, strength=0.05)
    trained = load_model(tmp_path, parts=LANGUAGE)
    with torch.no_grad():
        trained.language_model.model.layers[3].mlp.up_proj.weight += 1.0
        trained.region_projector.own_names += 0.5
    save_language(trained, tmp_path)
    again = load_model(tmp_path, parts=LANGUAGE)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)
