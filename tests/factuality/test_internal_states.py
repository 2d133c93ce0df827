import math

import pytest
import torch

from llamarl.core.errors import ConfigError
from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.internal_states import TokenEntropy, TokenProbability, find_values
from llamarl.functional.pooling import SHIPPED
from llamarl.models.checkpoint import new_model
from llamarl.models.tiny import bpe_tokenizer, char_tokenizer, tiny_config

TEXT = "Lyon liegt in Österreich. 里昂在法国。 Ø 7,3 km."
PROMPT = "Tell me about Lyon."


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer(["Lyon liegt in der Schweiz und in Frankreich. Tell me about it."] * 3, style="chatml")


@pytest.fixture(scope="module")
def model(tokenizer):
    model = new_model(tiny_config("llama", tokenizer, max_position_embeddings=128), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def claim_of(span, text=TEXT, prompt=PROMPT, number=0):
    return Claim(f"p/{number}", Answer(Ask("p", prompt), text, "stop"), text[slice(*span)], span)


def detector(model, tokenizer, quantity="probability", batch_tokens=4096, **settings):
    kind = {"probability": TokenProbability, "entropy": TokenEntropy}[quantity]
    backbone = Backbone(model, tokenizer, path="tiny", fingerprint="0", batch_tokens=batch_tokens)
    return kind(backbone, kind.Settings.parse(settings))


def span_of(part, text=TEXT):
    start = text.index(part)
    return start, start + len(part)


def table_of(model, tokenizer, text=TEXT, prompt=PROMPT):
    """Log-probs of all next tokens at each token of the answer, by transformers on the whole text."""
    before = tokenizer.encode_chat([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(text)
    with torch.no_grad():
        logits = model(torch.tensor([before + ids])).logits[0].double()
    return torch.log_softmax(logits[len(before) - 1 : -1], dim=-1), ids


def tokens_of(tokenizer, part, text=TEXT):
    """The tokens whose bytes lie in a part of the text, by counting bytes instead of the tokenizer's places."""
    start, end = (len(text[:place].encode()) for place in span_of(part, text))
    chosen, seen = [], 0
    for place, token in enumerate(tokenizer.backend.convert_ids_to_tokens(tokenizer.encode(text))):
        if seen < end and seen + len(token) > start:
            chosen.append(place)
        seen += len(token)  # a byte-level token has one letter a byte
    assert seen == len(text.encode())
    return chosen


@pytest.mark.parametrize("part", ["Lyon liegt in Österreich.", "Österreich", "里昂在法国。", "法", "Ø 7,3 km.", TEXT])
@pytest.mark.parametrize("pool", ["mean", "geometric", "worst-1", "worst-3", "worst-15%"])
def test_probabilities_are_those_of_the_spans_tokens(model, tokenizer, part, pool):
    table, ids = table_of(model, tokenizer)
    chosen = tokens_of(tokenizer, part)
    values = sorted(math.exp(table[place, ids[place]]) for place in chosen)
    expected = {
        "mean": sum(values) / len(values),
        "geometric": math.prod(values) ** (1 / len(values)),
        "worst-1": values[0],
        "worst-3": sum(values[:3]) / len(values[:3]),
        "worst-15%": sum(values[: math.ceil(0.15 * len(values))]) / math.ceil(0.15 * len(values)),
    }[pool]
    (score,) = detector(model, tokenizer, pool=pool).score([claim_of(span_of(part))])
    assert score.p_factual == pytest.approx(expected, rel=1e-4)
    assert score.mass is None and not score.problem


@pytest.mark.parametrize("part", ["Österreich", "里昂在法国。", TEXT])
@pytest.mark.parametrize("pool", ["mean", "worst-1"])
def test_entropies_fall_from_one(model, tokenizer, part, pool):
    table, _ = table_of(model, tokenizer)
    entropies = [-(row.exp() * row).sum().item() for row in table[tokens_of(tokenizer, part)]]
    entropy = max(entropies) if pool == "worst-1" else sum(entropies) / len(entropies)
    (score,) = detector(model, tokenizer, "entropy", pool=pool).score([claim_of(span_of(part))])
    assert score.p_factual == pytest.approx(math.exp(-entropy), rel=1e-4)


def test_an_answer_is_read_once_for_all_of_its_claims(model, tokenizer):
    parts = ["Lyon liegt in Österreich.", "里昂在法国。", "Ø 7,3 km."]
    other = claim_of((0, 4), text="Lyon ist alt.")
    claims = [*(claim_of(span_of(part)) for part in parts), other]
    read, both = [], detector(model, tokenizer)
    score_tokens = both._score_tokens

    class Counting:
        def __call__(self, rows, entropy="none"):
            read.extend(rows)
            return score_tokens(rows, entropy)

        split = staticmethod(score_tokens.split)

    both._score_tokens = Counting()
    together = both.score(claims)
    assert len(read) == 2
    alone = [detector(model, tokenizer).score([claim])[0].p_factual for claim in claims]
    assert [score.p_factual for score in together] == pytest.approx(alone, rel=1e-5)


def test_what_stands_behind_a_claim_does_not_count(model, tokenizer):
    part = "Lyon liegt in Österreich."
    (whole,) = detector(model, tokenizer).score([claim_of(span_of(part))])
    (cut,) = detector(model, tokenizer).score([claim_of((0, len(part)), text=part)])
    assert whole.p_factual == pytest.approx(cut.p_factual, rel=1e-5)


def test_small_batches_change_nothing(model, tokenizer):
    claims = [claim_of((0, 8), text=f"Lyon liegt {word} in Europa.") for word in ("nicht", "sehr schön", "da", "weit")]
    assert [s.p_factual for s in detector(model, tokenizer, batch_tokens=1).score(claims)] == pytest.approx(
        [s.p_factual for s in detector(model, tokenizer).score(claims)], rel=1e-5
    )


def test_a_system_message_is_part_of_the_context(model, tokenizer):
    claim = claim_of(span_of("Österreich"))
    plain, told = detector(model, tokenizer).score([claim]), detector(model, tokenizer, system="Lie.").score([claim])
    assert plain != told


# values


def test_values_are_numbers_and_capitalised_words_behind_the_first():
    text = "It is old. The city of São Paulo, in Brazil, has 11,451,245 people since 1554."
    found = [text[start:end] for start, end in find_values(text, (11, len(text)))]
    assert found == ["São", "Paulo", "Brazil", "11,451,245", "1554"]


def test_only_values_count_if_asked_for(model, tokenizer):
    table, ids = table_of(model, tokenizer)
    values = [math.exp(table[place, ids[place]]) for place in tokens_of(tokenizer, "Österreich")]
    score_values = detector(model, tokenizer, tokens="values").score
    good, silent = score_values([claim_of(span_of("Lyon liegt in Österreich.")), claim_of(span_of("里昂在法国。"))])
    assert good.p_factual == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert silent.p_factual is None and "no number and no capitalised word" in silent.problem


# bad input


@pytest.mark.parametrize("span", [(0, 999), (-3, 4), (5, 5), (9, 4)])
def test_a_span_outside_of_the_answer_is_a_problem_of_its_claim_only(model, tokenizer, span):
    bad, good = detector(model, tokenizer).score([claim_of(span), claim_of((0, 4))])
    assert bad.p_factual is None and bad.kind_of_problem == "outside of the answer"
    assert good.p_factual is not None and not good.problem


def test_a_long_answer_is_scored_as_far_as_the_model_reads(model, tokenizer):
    text = "Lyon. " + "sehr alt und " * 3000
    near, far, other = detector(model, tokenizer).score(
        [claim_of((0, 5), text=text), claim_of((0, len(text)), text=text), claim_of((0, 4))]
    )
    assert near.p_factual is not None and other.p_factual is not None
    assert far.p_factual is None and "the model reads 128 tokens" in far.problem


def test_a_prompt_that_fills_the_context_is_a_problem(model, tokenizer):
    bad, good = detector(model, tokenizer).score([claim_of((0, 4), prompt="why " * 300), claim_of((0, 4))])
    assert bad.p_factual is None and "the model reads 128 tokens" in bad.problem
    assert good.p_factual is not None


def test_nothing_comes_of_nothing(model, tokenizer):
    assert detector(model, tokenizer).score([]) == []
    (score,) = detector(model, tokenizer).score([claim_of((0, 1), text="")])
    assert score.p_factual is None


@pytest.mark.parametrize("quantity", ["probability", "entropy"])
@pytest.mark.parametrize("pool", SHIPPED)
def test_every_way_gives_a_probability(model, tokenizer, quantity, pool):
    if (quantity, pool) == ("entropy", "geometric"):
        with pytest.raises(ConfigError, match="of probabilities"):
            detector(model, tokenizer, quantity, pool=pool)
        return
    for score in detector(model, tokenizer, quantity, pool=pool).score([claim_of((0, 9)), claim_of((0, len(TEXT)))]):
        assert 0.0 <= score.p_factual <= 1.0


def test_a_model_without_chat_template_is_refused(model):
    bare = char_tokenizer("plain")
    bare.backend.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        detector(model, bare)
