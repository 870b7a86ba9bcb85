"""The engine writes what plain greedy decoding writes: in any company, with any guess."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from agent.drafting import Drafter, DraftTree
from agent.engine import Engine
from agent.generation_request import (
    PrefixInput,
    PrefixSource,
    QuestionInput,
    Request,
    Sampling,
)
from agent.grammar import AnswerGrammar, AnswerTokens, Place
from agent.model.language_model import LanguageModel
from agent.prefix_cache import PrefixCache
from agent.stage_settings import EngineSettings
from groundstream.errors import InvalidQuery, Overloaded
from tests.unit.tiny_model import tiny_config, tiny_tokenizer

END = 2
WARM = 6.0
"""A temperature at which this peaked model says more than one thing."""

BUDGET = 2**28


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    shape = tiny_config(tokenizer.vocab_size).text
    model = LanguageModel("qwen2_5_vl_text", shape, tie_word_embeddings=True).eval()
    # Wider than the default, so that the next token depends on what stands before.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    return model


@pytest.fixture
def engine(language):
    made = Engine(language, PrefixCache(BUDGET))
    yield made
    made.close()


def source(language, number, length=23, *, key=None, parent=None, start=0):
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, language.config.vocab_size, (length,), generator=generator)
    positions = torch.arange(start, start + length).expand(3, -1)
    return PrefixSource(
        f"frame {number}" if key is None else key,
        lambda: PrefixInput(ids, positions, start + length),
        parent,
    )


def request(language, number, question, *, count=12, **more):
    def placed(start):
        ids = torch.tensor(question)
        return QuestionInput(
            ids, torch.arange(start, start + len(ids)).expand(3, -1), start + len(ids)
        )

    prefix = more.pop("prefix", None) or source(language, number)
    return Request(prefix, placed, END, count, **more)


@torch.inference_mode()
def plain(language, asked):
    """Greedy decoding as anyone would write it: one request, one token at a time."""
    given = asked.prefix.make()
    question = asked.question(given.next_position)
    embeddings = language.embed(torch.cat([given.ids, question.ids]))[None]
    positions = torch.cat([given.positions, question.positions], dim=1)[:, None]
    cache, position, written = DynamicCache(), question.next_position, []
    while True:
        hidden = language(embeddings, positions, cache=cache)
        token = int(language.logits(hidden[0, -1]).argmax())
        if token == asked.end_of_turn or len(written) == asked.max_new_tokens:
            return tuple(written)
        written.append(token)
        embeddings = language.embed(torch.tensor([[token]]))
        positions = torch.full((3, 1, 1), position)
        position += 1


def answers(drafts):
    tokens = AnswerTokens.of(tiny_tokenizer(), num_regions=4)
    return Drafter(tokens, answers=drafts)


def test_one_question(language, engine):
    asked = request(language, 1, [5, 9, 11])
    done = engine.submit(asked).result(30)
    assert done.ids == plain(language, asked)
    # The question rides in the pass of its prefix; the end costs one more.
    assert done.num_passes == len(done.ids) + 1
    again = engine.submit(asked).result(30)
    assert again.ids == done.ids
    assert again.num_reused_tokens == 23
    assert again.num_passes == done.num_passes


def test_many_questions_of_many_frames_together(language, engine):
    asked = [request(language, n % 3, [4 + n, 7, 20 + n][: 1 + n % 3]) for n in range(12)]
    futures = [engine.submit(one) for one in asked]
    for one, future in zip(asked, futures, strict=True):
        assert future.result(60).ids == plain(language, one)
    assert engine.counts["steps"] < sum(f.result().num_passes for f in futures) / 3


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_guess_leaves_the_answer_as_it_is(language, engine, data):
    asked = request(language, data.draw(st.integers(0, 3)), [6, 8])
    right = plain(language, asked)
    token = st.integers(0, language.config.vocab_size - 1)
    guess = st.one_of(
        st.lists(token, max_size=16).map(tuple),  # garbage
        st.integers(0, len(right)).flatmap(  # right, then wrong
            lambda cut: st.lists(token, max_size=4).map(lambda more: right[:cut] + tuple(more))
        ),
        st.just(right),
    )
    drafts = data.draw(st.lists(guess, min_size=1, max_size=4))
    tokens = AnswerTokens.of(tiny_tokenizer(), num_regions=4)
    label = data.draw(st.lists(token, max_size=2))
    drafter = Drafter(tokens, label=label, answers=drafts, num_leading=data.draw(st.integers(0, 4)))
    plainly = engine.submit(asked).result(30)
    guided = engine.submit(replace(asked, drafter=drafter)).result(30)
    assert guided.ids == right == plainly.ids
    assert guided.num_passes <= len(right) + 2
    assert guided.probabilities == pytest.approx(
        plainly.probabilities[: len(guided.probabilities)], abs=1e-4
    )


def test_a_right_guess_takes_one_pass(language, engine):
    asked = request(language, 2, [6, 8])
    right = plain(language, asked)
    engine.submit(asked).result(30)
    done = engine.submit(replace(asked, drafter=answers([right]))).result(30)
    assert done.num_accepted == len(right)
    assert done.num_passes == 1


def test_chunks_of_a_long_prefix_change_nothing(language):
    asked = request(language, 7, [5, 6], prefix=source(language, 7, length=150))
    small = Engine(language, PrefixCache(BUDGET), EngineSettings(max_step_tokens=40))
    try:
        done = small.submit(asked).result(60)
        assert done.ids == plain(language, asked)
        assert small.counts["steps"] >= 5
    finally:
        small.close()


def test_a_prefix_may_continue_another(language, engine):
    first = source(language, 4, length=30, key="image")
    second = source(language, 5, length=9, key="page", parent=first, start=30)

    def whole():
        a, b = first.make(), second.make()
        return PrefixInput(torch.cat([a.ids, b.ids]),
                           torch.cat([a.positions, b.positions], 1), b.next_position)  # fmt: skip

    chained = request(language, 0, [9, 9], prefix=second)
    expected = plain(language, request(language, 0, [9, 9], prefix=PrefixSource("", whole)))
    assert engine.submit(chained).result(30).ids == expected
    assert engine.submit(chained).result(30).num_reused_tokens == 39


@pytest.mark.parametrize("budget", [0, 1])
def test_a_cache_too_small_to_hold_a_prefix(language, budget):
    starved = Engine(language, PrefixCache(budget))
    try:
        first = source(language, 4, length=30, key="image")
        second = source(language, 5, length=9, key="page", parent=first, start=30)
        for prefix in (first, second):
            asked = request(language, 0, [9], prefix=prefix)
            assert starved.submit(asked).result(30).ids
    finally:
        starved.close()


def test_cancelling_frees_the_place(language, engine):
    gate = threading.Event()

    def held(start):
        gate.wait(10)
        return request(language, 1, [5]).question(start)

    slow = engine.submit(replace(request(language, 1, [5]), question=held))
    gone = engine.submit(request(language, 2, [5], count=200))
    assert gone.cancel()
    gate.set()
    assert slow.result(30).ids
    with pytest.raises(CancelledError):
        gone.result(1)
    assert engine.submit(request(language, 2, [5])).result(30).ids
    assert engine.counts["cancelled"] == 1


def test_who_waits_least_goes_first(language):
    narrow = Engine(language, PrefixCache(BUDGET), EngineSettings(max_running=1))
    order = []
    try:
        gate, begun = threading.Event(), threading.Event()

        def held(start):
            begun.set()
            gate.wait(10)
            return request(language, 1, [5]).question(start)

        futures = [narrow.submit(replace(request(language, 1, [5]), question=held))]
        assert begun.wait(30)
        for deadline in (30.0, 10.0, 20.0):
            asked = request(language, 1, [5], deadline_s=deadline)
            future = narrow.submit(asked)
            future.add_done_callback(lambda _, deadline=deadline: order.append(deadline))
            futures.append(future)
        gate.set()
        for future in futures:
            future.result(30)
    finally:
        narrow.close()
    assert order == [10.0, 20.0, 30.0]


def test_a_question_that_fails_harms_no_other(language, engine):
    def bad(start):
        raise InvalidQuery("too long")

    fails = engine.submit(replace(request(language, 1, [5]), question=bad))
    works = engine.submit(request(language, 1, [5]))
    with pytest.raises(InvalidQuery):
        fails.result(30)
    assert works.result(30).ids


def test_a_full_queue_refuses(language):
    narrow = Engine(
        language,
        PrefixCache(BUDGET),
        EngineSettings(max_running=1, max_waiting=2),
    )
    gate = threading.Event()

    def held(start):
        gate.wait(10)
        return request(language, 1, [5]).question(start)

    try:
        asked = replace(request(language, 1, [5]), question=held)
        with pytest.raises(Overloaded, match="wait already"):
            [narrow.submit(asked) for _ in range(8)]
    finally:
        gate.set()
        narrow.close()


def test_what_is_guessed_of_a_search():
    tokens = AnswerTokens.of(tiny_tokenizer(), num_regions=4)
    dog, (r0, r1, r2, r3), end = 77, tokens.regions, tokens.objects_close
    opening = [tokens.ground_open, dog, tokens.ground_close, tokens.objects_open]
    drafter = Drafter(tokens, label=[dog], answers=[[*opening, r1, r3, end]], num_leading=2)
    assert drafter.guesses([]) == [
        [*opening, r1, r3, end],  # the answer that is expected
        [*opening, end],  # nothing is there
        *([*opening, region, end] for region in (r1, r3, r0)),  # one of the expected, of the best
    ]
    assert drafter.guesses([*opening, r1]) == [[r3, end], [end], [r3, end]]
    assert drafter.guesses([*opening, r2]) == [[end], [r3, end]]
    assert drafter.guesses([*opening, r2, end]) == []
    assert Drafter(tokens, num_leading=2).guesses([]) == []


def test_one_of_several_guesses_being_right_takes_one_pass(language, engine):
    tokens = AnswerTokens.of(tiny_tokenizer(), num_regions=4)
    asked = request(language, 2, [6, 8])
    right = plain(language, asked)
    engine.submit(asked).result(30)
    near = [(*right[:-1], tokens.regions[0]), right[:3], right]
    done = engine.submit(replace(asked, drafter=answers(near))).result(30)
    assert done.ids == right
    assert done.num_passes == 1


def test_a_prefix_and_its_questions_share_a_pass(language, engine):
    gate = threading.Event()

    def held(start):
        gate.wait(10)
        return request(language, 1, [5]).question(start)

    blocking = engine.submit(replace(request(language, 1, [5], count=1), question=held))
    asked = [request(language, 2, [6, n], count=4) for n in range(3)]
    futures = [engine.submit(one) for one in asked]
    gate.set()
    assert blocking.result(30).ids == plain(language, request(language, 1, [5], count=1))
    for one, future in zip(asked, futures, strict=True):
        done = future.result(30)
        assert done.ids == plain(language, one)
        assert done.num_passes == len(done.ids) + 1, "none for the prefix alone"
    assert sorted(future.result().num_reused_tokens for future in futures) == [0, 23, 23]


def test_a_question_that_fails_in_the_pass_of_its_prefix(language, engine):
    def bad(start):
        raise InvalidQuery("too long")

    asked = request(language, 3, [5])
    fails = engine.submit(replace(asked, question=bad))
    with pytest.raises(InvalidQuery):
        fails.result(30)
    done = engine.submit(asked).result(30)
    assert done.ids == plain(language, asked)
    assert done.num_reused_tokens == 23, "the prefix it began is kept"


@pytest.mark.parametrize(("count", "guessed"), [(1, 13), (6, 30)])
def test_guesses_are_shared_out_among_the_answers(language, count, guessed):
    """Alone an answer verifies all its guesses, in company the likeliest."""
    narrow = Engine(
        language,
        PrefixCache(BUDGET),
        EngineSettings(max_pass_draft_tokens=30),
    )
    tokens = AnswerTokens.of(tiny_tokenizer(), num_regions=4)
    # The opening and the end are five tokens, four regions with their ends eight more.
    drafter = Drafter(tokens, label=[77], num_leading=4)
    busy, gate = threading.Event(), threading.Event()

    def held(start):
        busy.set()
        gate.wait(10)
        return request(language, 1, [5]).question(start)

    try:
        for frame in (1, 2):
            narrow.submit(request(language, frame, [9], count=1)).result(30)
        before = narrow.counts["tokens"]
        asked = [request(language, 2, [6, n], drafter=drafter) for n in range(count)]
        blocking = narrow.submit(replace(request(language, 1, [5], count=1), question=held))
        # Had the step not begun yet, it would take some of the others in and not the rest.
        assert busy.wait(10)
        futures = [narrow.submit(one) for one in asked]
        gate.set()
        certain = blocking.result(30).num_passes
        for one, future in zip(asked, futures, strict=True):
            assert future.result(30).ids == plain(language, one)
            certain += future.result(30).num_passes + 1
    finally:
        narrow.close()
    assert narrow.counts["tokens"] - before - certain == guessed


def test_drawn_answers_depend_on_the_seed_alone(language, engine):
    """Not on company, and not on guesses: a token is drawn before anyone looks at its guess."""

    def drawn(seed, **more):
        return request(language, 1, [5, 6], sampling=Sampling(seed, WARM), **more)

    alone = [engine.submit(drawn(seed)).result(30).ids for seed in range(6)]
    assert len(set(alone)) > 1
    together = [engine.submit(drawn(seed)) for seed in range(6)]
    assert [one.result(30).ids for one in together] == alone
    guided = engine.submit(drawn(3, drafter=answers([alone[3]]))).result(30)
    assert guided.ids == alone[3]
    assert guided.num_accepted > 0
    assert guided.num_passes < len(alone[3])


def test_cold_draws_are_greedy(language, engine):
    asked = request(language, 1, [5, 6])
    cold = replace(asked, sampling=Sampling(1, temperature=1e-4))
    assert engine.submit(cold).result(30).ids == plain(language, asked)


def test_draws_follow_the_probabilities(language, engine):
    """The first token's frequencies against the model's own distribution."""
    asked = request(language, 1, [5, 6], count=1)
    firsts = [engine.submit(replace(asked, sampling=Sampling(seed, WARM))) for seed in range(400)]
    ids = [one.result(60).ids for one in firsts]
    counted = Counter(written[0] if written else END for written in ids)
    given = asked.prefix.make()
    question = asked.question(given.next_position)
    with torch.inference_mode():
        embeddings = language.embed(torch.cat([given.ids, question.ids]))[None]
        positions = torch.cat([given.positions, question.positions], dim=1)[:, None]
        logits = language.logits(language(embeddings, positions, cache=DynamicCache())[0, -1])
    expected = (logits / WARM).softmax(-1)
    for token in expected.topk(3).indices.tolist():
        share = float(expected[token])
        spread = (share * (1 - share) / 400) ** 0.5
        assert abs(counted[token] / 400 - share) < 4 * spread + 0.005


def test_trees_share_beginnings():
    tree = DraftTree.of([[1, 2, 3], [1, 2, 4], [5]], limit=10)
    assert [(n.token, n.parent, n.depth) for n in tree.nodes] == [
        (1, -1, 0), (2, 0, 1), (3, 1, 2), (4, 1, 2), (5, -1, 0)
    ]  # fmt: skip
    assert tree.ancestors(3) == [3, 1, 0]
    assert len(DraftTree.of([[1, 2, 3]], limit=2).nodes) == 2


TOKENS = AnswerTokens.of(tiny_tokenizer(), num_regions=2)
EVERY_REGION = tuple(tiny_tokenizer().region(index) for index in range(100))


def grammar():
    return AnswerGrammar(TOKENS, all_regions=EVERY_REGION)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dog", "red apple"]), st.lists(st.integers(0, 1), max_size=3),
            st.sampled_from(["", " and ", ". "]),
        ),
        max_size=3,
    )
)  # fmt: skip
def test_a_well_formed_answer_passes_the_grammar(parts):
    tokenizer = tiny_tokenizer()
    text = "".join(
        f"<ground>{label}</ground><objects>{''.join(f'<region{r}>' for r in regions)}</objects>"
        f"{after}"
        for label, regions, after in parts
    )
    place = grammar()
    for token in [*tokenizer.encode(text), TOKENS.end_of_turn]:
        assert place.constrain(torch.zeros(tokenizer.vocab_size))[token] == 0.0
        place = place.advanced(token)


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("", ["</ground>", "<objects>", "</objects>", "<region5>"]),
        ("<ground>dog", ["<|im_end|>", "<objects>", "<region0>", "<ground>"]),
        ("<ground>dog</ground>", ["dog", "<|im_end|>", "<region0>"]),
        ("<ground>dog</ground><objects>", ["dog", "<|im_end|>", "<region2>", "<ground>"]),
    ],
)
def test_what_breaks_the_form_is_forbidden(text, forbidden):
    tokenizer = tiny_tokenizer()
    place = grammar()
    for token in tokenizer.encode(text):
        place = place.advanced(token)
    scores = place.constrain(torch.zeros(tokenizer.vocab_size))
    for piece in forbidden:
        assert scores[tokenizer.encode(piece)[0]] == -torch.inf, piece
    assert torch.isfinite(scores).any()


def test_constrained_answers_are_well_formed(language, engine):
    """A random model writes nonsense; under the grammar it closes what it opens."""
    for number in range(6):
        asked = request(language, number, [5, number], count=40, grammar=grammar())
        place = grammar()
        for token in engine.submit(asked).result(60).ids:
            assert torch.isfinite(place.constrain(torch.zeros(language.config.vocab_size)))[token]
            place = place.advanced(token)
        assert place.place in Place
