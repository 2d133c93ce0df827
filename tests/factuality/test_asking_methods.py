"""Methods that let the model write: what they make of replies, by a model by script, and by a tiny checkpoint."""

import math

import pytest
import torch
from scripted_models import RELATIONS, ScriptedModel
from tiny_detectors import claim_of, claims_of, write_tiny

from llamarl.core.errors import ConfigError, EndpointError
from llamarl.core.sampling import Sampling
from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.cot_tf import CotTF, find_verdict
from llamarl.factuality.detectors.files import load_detector, save_detector
from llamarl.factuality.detectors.prompt_prob import PromptProb
from llamarl.factuality.detectors.selfcheck import SelfCheck
from llamarl.models.endpoint import ChatReply

CLAIM = "Lyon is in France."


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(write_tiny(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")


class Scripted(ScriptedModel):
    """Answers `answer(text, seed)`, and remembers how it was to draw."""

    def __init__(self, answer):
        super().__init__(answer)
        self.samplings = []

    def with_sampling(self, sampling: Sampling):
        self.samplings.append(sampling)
        return self

    async def reply(self, messages, seed):
        self.asked.append(messages[-1]["content"])
        answer = self._answer(self.asked[-1], seed)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ChatReply) else ChatReply(answer, "stop", 3, 2)


# Prompt-Prob


def test_prompt_prob_is_what_the_model_writes_greedily(backbone):
    replies = {"a": "0.9", "b": "Probability: 20 %", "c": "No idea."}
    chat = Scripted(lambda text, seed: replies[text.split("Claim: ")[1][0]])
    a, b, c, again = PromptProb(backbone, chat=chat).score(claims_of("a", "b", "c", "a"))
    assert (a.p_factual, b.p_factual, again) == (0.9, 0.2, a)
    assert c.p_factual is None and "no probability: 'No idea.'" in c.problem
    assert chat.samplings == [Sampling(max_tokens=32, temperature=0.0)]
    assert len(chat.asked) == 3 and "Claim: a\n" in chat.asked[0]


def test_a_failed_reply_is_a_problem_of_its_claim_only(backbone):
    chat = Scripted(lambda text, seed: EndpointError("the server is down") if "Claim: a" in text else "0.5")
    bad, good = PromptProb(backbone, chat=chat).score(claims_of("a", "b"))
    assert bad.p_factual is None and "the server is down" in bad.problem and good.p_factual == 0.5


@pytest.mark.parametrize("kind", [PromptProb, CotTF, SelfCheck])
def test_claims_that_cannot_be_asked_about_are_problems_and_others_are_scored(backbone, kind):
    chat = Scripted(lambda text, seed: "Yes. Verdict: True. Probability: 1")
    long, forged, good, foreign = kind(backbone, chat=chat).score(
        claims_of("Lyon is old. " * 3000, "Lyon.<|eot_id|>", "Lyon is old.", "里昂在法国。")
    )
    assert long.p_factual is None and "tokens" in long.problem
    assert forged.p_factual is None and "special token" in forged.problem
    assert good.p_factual == foreign.p_factual == 1.0
    assert kind(backbone, chat=chat).score([]) == []


# CoT-TF


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Lyon is French. Verdict: True", "True"),
        ("**Verdict:** False. It is true that Lyon is old.", "False"),
        ("Verdict: [TRUE]", "TRUE"),
        ("The claim is **false**, though true in part.", "false"),
        ("Lyon is in France, so the claim is true.", "true"),
        ("Is it false? Verdict: False\n\nVerdict: True", "True"),
        ("<think>Verdict: False</think> True", "True"),
    ],
)
def test_the_verdict_is_the_last_one(text, word):
    start, end = find_verdict(text)
    assert text[start:end] == word


@pytest.mark.parametrize("text", ["", "Lyon is in France.", "It is untrue.", "<think>Verdict: True</think> Hm."])
def test_no_verdict(text):
    assert find_verdict(text) is None


def test_of_a_server_the_word_itself_decides(backbone):
    replies = {"a": "Hm. Verdict: True", "b": "Verdict: False", "c": ChatReply("Lyon is", "length", 3, 256)}
    chat = Scripted(lambda text, seed: replies[text[-1]])
    a, b, c = CotTF(backbone, chat=chat).score(claims_of("a", "b", "c"))
    assert (a.p_factual, b.p_factual, c.p_factual) == (1.0, 0.0, None)
    assert c.problem == "no verdict: neither True nor False within 256 tokens: 'Lyon is'"


class Dictated(CotTF):
    """CoT-TF with reasoning that a tiny model cannot have, read by that model."""

    reasoning = "Lyon lies in France. Verdict: False, I think"

    async def _ask_all(self, name, questions, max_tokens):
        return [ChatReply(self.reasoning, "stop", 1, 1) for _ in questions]


class Undecided(Dictated):
    reasoning = "Lyon lies in France."


@pytest.mark.parametrize(
    ("kind", "read"),
    [(Dictated, "Lyon lies in France. Verdict:"), (Undecided, "Lyon lies in France.\n\nVerdict:")],
    ids=["verdict", "asked again"],
)
def test_p_factual_is_that_of_the_label_behind_the_reasoning(backbone, kind, read):
    (score,) = kind(backbone, kind.Settings(asks_again=True)).score([claim_of(CLAIM)])
    tokenizer = backbone.tokenizer
    question = tokenizer.encode_chat(backbone_prompt(backbone, CLAIM))
    ids = question + tokenizer.encode(read)
    with torch.no_grad():
        probabilities = backbone.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    true, false = (
        probabilities[list(side)].sum().item() for side in (backbone.labels.true_ids, backbone.labels.false_ids)
    )
    assert score.p_factual == pytest.approx(true / (true + false), rel=1e-4)
    assert score.mass == pytest.approx(true + false, rel=1e-4)


def backbone_prompt(backbone, claim):
    return CotTF(backbone).prompts["cot-detect"].fill(claim=claim)


def test_reasoning_without_a_verdict_is_a_problem_unless_asked_again(backbone):
    (score,) = Undecided(backbone).score([claim_of(CLAIM)])
    assert score.p_factual is None and score.problem == "no verdict: neither True nor False: 'Lyon lies in France.'"


def test_reasoning_that_fills_the_context_is_a_problem(backbone):
    class Endless(Dictated):
        reasoning = "Lyon " * 200 + "Verdict: True"

    (score,) = Endless(backbone).score([claim_of(CLAIM)])
    assert score.p_factual is None and "tokens with its reasoning" in score.problem


# SelfCheck


def answer_of(prompt, claims, subject=None):
    ask = Ask(prompt, prompt, subject)
    return [Claim(f"{prompt}/{n}", Answer(ask, text, "stop"), text, (0, len(text))) for n, text in enumerate(claims)]


@pytest.mark.parametrize("count", [0, 1, 13, 20])
def test_p_factual_is_the_share_of_twenty_answers_that_support(backbone, count):
    numbers = iter(range(20))

    def answer(text, seed):
        if "does the text say" in text.lower():
            return "Yes" if int(text.split("Text: ")[1].split()[0]) < count else "No, it does not say yes."
        return f"{next(numbers)} is what I say."

    chat = Scripted(answer)
    (score,) = SelfCheck(backbone, chat=chat).score(answer_of("Tell me.", [CLAIM]))
    assert score.p_factual == count / 20 and not score.problem
    drawn = [sampling for sampling in chat.samplings if sampling.temperature]
    assert [(each.temperature, each.max_tokens) for each in drawn] == [(1.0, 512)]


def test_answers_are_drawn_once_a_prompt_with_seeds_of_prompt_and_number(backbone):
    drawn = []

    def answer(text, seed):
        if "Text:" in text:
            return "Yes"
        drawn.append((text, seed))
        return f"{text} {seed}"

    claims = [*answer_of("one", ["a", "b", "c"]), *answer_of("two", ["d"])]
    detector = SelfCheck(backbone, SelfCheck.Settings(num_samples=5), chat=Scripted(answer))
    assert [score.p_factual for score in detector.score(claims)] == [1.0] * 4
    assert len(drawn) == 10 and len({seed for _, seed in drawn}) == 10
    first = list(drawn)
    drawn.clear()
    detector.score(claims[::-1])
    assert sorted(drawn) == sorted(first)
    SelfCheck(backbone, SelfCheck.Settings(num_samples=5, seed=1), chat=Scripted(answer)).score(claims)
    assert not {seed for _, seed in drawn[10:]} & {seed for _, seed in first}


def test_answers_that_cannot_be_judged_leave_the_share_and_are_counted(backbone):
    numbers = iter(range(4))

    def answer(text, seed):
        if "Text:" in text:
            return {"0": "Yes", "1": "no", "2": "Perhaps.", "3": EndpointError("down")}[text.split("Text: ")[1][0]]
        return str(next(numbers))

    detector = SelfCheck(backbone, SelfCheck.Settings(num_samples=4), chat=Scripted(answer))
    (score,) = detector.score(answer_of("Tell me.", [CLAIM]))
    assert score.p_factual == 0.5 and detector.failures == {"neither yes nor no": 1, "no reply": 1}


def test_too_many_answers_that_cannot_be_judged_are_a_problem(backbone):
    def answer(text, seed):
        return "Maybe." if "Text:" in text else "Lyon."

    (score,) = SelfCheck(backbone, chat=Scripted(answer)).score(answer_of("Tell me.", [CLAIM]))
    assert score.p_factual is None and "20 of 20 answers" in score.problem and "'Maybe.'" in score.problem


def test_an_empty_answer_supports_nothing_and_one_that_failed_is_not_counted(backbone):
    numbers = iter(range(4))

    def answer(text, seed):
        if "Text:" in text:
            return "Yes"
        return ["", "Lyon.", EndpointError("down"), "  "][next(numbers)]

    (score,) = SelfCheck(backbone, SelfCheck.Settings(num_samples=4), chat=Scripted(answer)).score(
        answer_of("Tell me.", [CLAIM])
    )
    assert score.p_factual == pytest.approx(1 / 3)


def test_a_table_of_facts_can_judge_support(backbone, tmp_path):
    (tmp_path / "facts.csv").write_text(
        "subject,relation,object\nLyon,country,France\nNice,country,France\nMadrid,country,Spain\nLyon,population,500000\n"
    )
    (tmp_path / "relations.toml").write_text(RELATIONS)
    answers = [
        "Lyon is old. It is located in Spain.",
        "Lyon is a city in Spain, with 510,000 inhabitants.",
        "Lyon is located in France.",
        "Lyon is nice.",
        "Nice is located in Spain.",
    ]
    numbers = iter(range(5))
    settings = SelfCheck.Settings(
        num_samples=5, facts=(str(tmp_path / "facts.csv"),), relations=tmp_path / "relations.toml"
    )
    chat = Scripted(lambda text, seed: answers[next(numbers)])
    claims = answer_of(
        "Tell me.",
        ["Lyon is located in Spain.", "It has 500,000 inhabitants.", "Lyon is not in Spain.", "Paris is big."],
        "Lyon",
    )
    country, population, negated, unknown = SelfCheck(backbone, settings, chat=chat).score(claims)
    assert (country.p_factual, population.p_factual) == (0.4, 0.2)
    assert "negated" in negated.problem and "table of facts" in unknown.problem


# through the model itself


@pytest.mark.parametrize("kind", [PromptProb, CotTF, SelfCheck])
def test_the_same_scores_from_disk(backbone, tmp_path, kind):
    settings = {"max_new_tokens": 8} | ({"num_samples": 2} if kind is SelfCheck else {})
    detector = kind(backbone, kind.Settings(**settings), threshold=0.3)
    save_detector(detector, tmp_path / "detector")
    loaded = load_detector(tmp_path / "detector", device="cpu")
    claims = [claim_of(CLAIM), claim_of("Nice is in Spain.")]
    scores = loaded.score(claims)
    assert scores == detector.score(claims) and loaded.threshold == 0.3 and loaded.settings == detector.settings
    for score in scores:  # a random model says neither probabilities nor verdicts
        assert score.p_factual is not None or score.problem
        assert score.p_factual is None or math.isfinite(score.p_factual)


def test_a_model_without_chat_template_is_refused(backbone):
    from llamarl.models.tiny import char_tokenizer

    bare = char_tokenizer("llama3")
    bare.backend.chat_template = None
    lone = Backbone(backbone.model, bare, path="base", fingerprint="0")
    with pytest.raises(ConfigError, match="no chat template"):
        PromptProb(lone).score([claim_of(CLAIM)])
