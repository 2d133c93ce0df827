"""The judge of a detector: shares, constraints, failures, its cache, in a recipe and on a file."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_detector import ScriptedDetector
from scripted_models import FACTS, RELATIONS
from tiny_detectors import write_tiny

from llamarl.cli.main import main
from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.core.records import Prompt, Verdict, text_completion
from llamarl.data.rows import row_to_prompt
from llamarl.factuality import load_detector, score_text
from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.files import save_detector
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.judge import DetectorJudge
from llamarl.judges.combine import mixture
from llamarl.judges.config import JudgeConfig, build_judge
from llamarl.judges.panel import JudgePanel
from llamarl.judges.seat import Seat

ASKED = Prompt("p", ({"role": "user", "content": "Tell me about Lyon."},), info={"subject": "Lyon"})
GOOD, BAD = "It is a city in France. Its bridges are many.", "It is a city in Spain. Its bridges are many."


def judge(judge: DetectorJudge, *texts: str, prompt: Prompt = ASKED) -> list[Verdict]:
    return asyncio.run(judge.judge(prompt, [text_completion(text) for text in texts]))


def outcomes(verdicts: list[Verdict]) -> list[tuple[str, float | None, bool | None]]:
    return [(str(each.status), each.score, each.passed) for each in verdicts]


# golden


def test_the_score_is_the_share_of_factual_claims() -> None:
    verdicts = judge(DetectorJudge(ScriptedDetector()), GOOD, BAD, "It lies in Spain. It lies in Spain, I say.")
    assert outcomes(verdicts) == [("scored", 1.0, None), ("scored", 0.5, None), ("scored", 0.0, None)]
    assert verdicts[1].reason == "1 of 2 claims doubtful, first of all 'Lyon is a city in Spain.' (0.12)"
    assert all(each.seconds > 0 for each in verdicts)


def test_a_share_passes_from_a_bound_on() -> None:
    verdicts = judge(DetectorJudge(ScriptedDetector(), min_share=0.5), GOOD, BAD, "It is in Spain.")
    assert [each.passed for each in verdicts] == [True, True, False]


def test_one_hallucinated_claim_is_one_too_many() -> None:
    verdicts = judge(DetectorJudge(ScriptedDetector(), mode="none_hallucinated"), GOOD, BAD)
    assert outcomes(verdicts) == [("scored", 1.0, True), ("scored", 0.0, False)]


def test_the_threshold_decides_what_is_factual() -> None:
    scores = [judge(DetectorJudge(ScriptedDetector(), threshold=t), BAD)[0].score for t in (0.1, 0.125, 0.9)]
    assert scores == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("abstain", ("abstained", None, None)), ("pass", ("scored", 1.0, True)), ("fail", ("scored", 0.0, False))],
)
@pytest.mark.parametrize("text", ["", "Hm.", "…"])
def test_a_completion_without_claims_is_judged_by_the_rule(rule: Any, expected: Any, text: str) -> None:
    of_constraint = DetectorJudge(ScriptedDetector(), mode="none_hallucinated", without_claims=rule)
    assert outcomes(judge(of_constraint, text)) == [expected]
    (verdict,) = judge(DetectorJudge(ScriptedDetector(), without_claims=rule), text)
    assert verdict.passed is None and verdict.score == expected[1]


def test_a_claim_without_score_fails_its_completion_and_no_other() -> None:
    verdicts = judge(DetectorJudge(ScriptedDetector()), GOOD, "It is in Spain. It is on Mars.")
    assert outcomes(verdicts) == [("scored", 1.0, None), ("failed", None, None)]
    assert verdicts[1].reason == "claim 'Lyon is on Mars.' has no score: the claim is too long"


def test_the_last_claim_of_a_cut_completion_is_left_out() -> None:
    cut = text_completion("It is a city in France. It lies in Spain", "length")
    (verdict,) = asyncio.run(DetectorJudge(ScriptedDetector()).judge(ASKED, [cut]))
    assert verdict.score == 1.0 and verdict.reason == "0 of 1 claims doubtful"


def test_claims_may_be_what_a_table_can_check(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text(FACTS)
    (tmp_path / "relations.toml").write_text(RELATIONS)
    detector = ScriptedDetector()
    judged = DetectorJudge(detector, facts=str(tmp_path / "facts.csv"), relations=str(tmp_path / "relations.toml"))
    assert judge(judged, BAD)[0].score == 0.0
    assert detector.batches == [["The city of Lyon is located in Spain."]]


# batches and cache


def test_a_group_is_one_batch_and_nothing_is_scored_twice() -> None:
    detector = ScriptedDetector()
    judged = DetectorJudge(detector)
    first = judge(judged, GOOD, BAD, GOOD)
    assert list(map(len, detector.batches)) == [4]  # the third completion is the first
    assert judged.metrics() == {"claims": 2.0, "cache_hit_rate": pytest.approx(2 / 6)}
    assert outcomes(judge(judged, BAD, "It is old and small.")) == [outcomes(first)[1], ("scored", 1.0, None)]
    assert list(map(len, detector.batches)) == [4, 1]
    assert judged.metrics() == {"claims": 1.5, "cache_hit_rate": pytest.approx(2 / 3)} and judged.metrics() == {}


def test_the_cache_knows_prompt_and_answer() -> None:
    detector = ScriptedDetector()
    judged = DetectorJudge(detector)
    other = Prompt("q", ({"role": "user", "content": "Tell me about Nice."},), info={"subject": "Lyon"})
    judge(judged, GOOD)
    judge(judged, GOOD, prompt=other)
    judge(judged, "Well: " + GOOD)
    assert len(detector.batches) == 3


@pytest.mark.parametrize(("room", "batches"), [(0, 3), (2, 3), (4, 2)])
def test_the_cache_is_bounded(room: int, batches: int) -> None:
    detector = ScriptedDetector()
    judged = DetectorJudge(detector, cache_claims=room)
    for text in (GOOD, BAD, GOOD):
        assert judge(judged, text)[0].score == (1.0 if text is GOOD else 0.5)
    assert len(detector.batches) == batches


def test_a_detector_that_breaks_is_asked_again() -> None:
    calls: list[str] = []

    def break_once(claim: Claim) -> Score:
        calls.append(claim.text)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return Score(0.9)

    judged = DetectorJudge(ScriptedDetector(break_once))
    with pytest.raises(RuntimeError, match="out of memory"):
        judge(judged, GOOD)
    assert judge(judged, GOOD)[0].score == 1.0


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "any"}, "mode='any'; choose"),
        ({"without_claims": 0}, "without_claims=0; choose"),
        ({"threshold": 1.5}, r"threshold=1.5: give a number from 0 to 1"),
        ({"min_share": -1}, "min_share=-1"),
        ({"mode": "none_hallucinated", "min_share": 0.5}, "min_share: a share is asked for by mode = 'share'"),
        ({"relations": "r.toml"}, "relations: .* give facts"),
        ({"cache_claims": -1}, "cache_claims=-1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorJudge("d", **settings)


def test_a_constraint_must_be_able_to_say_no() -> None:
    with pytest.raises(ConfigError, match="only scores"):
        Seat(DetectorJudge("d"), role="constraint")
    Seat(DetectorJudge("d", min_share=0.9), role="constraint")
    Seat(DetectorJudge("d", mode="none_hallucinated"), role="constraint")


def test_a_detector_that_is_not_there_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        DetectorJudge(str(tmp_path / "nowhere")).check(ASKED)
    DetectorJudge(ScriptedDetector()).check(ASKED)


# as a judge among judges


def test_reward_and_constraint_in_a_panel() -> None:
    reward = Seat(DetectorJudge(ScriptedDetector(), name="share"), role="reward")
    hold = Seat(DetectorJudge(ScriptedDetector(), mode="none_hallucinated", name="honest"), role="constraint")
    panel = JudgePanel([reward, hold])
    texts = (GOOD, BAD, "It is on Mars, in Spain.")
    samples = asyncio.run(panel.judge_group(ASKED, [text_completion(text) for text in texts]))
    assert [(sample.reward, sample.is_satisfied) for sample in samples] == [(1.0, True), (0.5, False), (None, None)]
    assert panel.metrics()["judge/share/claims"] == pytest.approx(5 / 3)
    verdicts = samples[1].verdicts
    assert mixture(verdicts, {"share": 1.0}, ["honest"]) == (0.5, False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tiny")
    backbone = Backbone.load(write_tiny(directory / "model"), device="cpu")
    save_detector(PromptTF(backbone, threshold=0.5), directory / "detector")
    return str(directory / "detector")


def test_a_saved_detector_judges_by_its_own_threshold(saved: str) -> None:
    built = build_judge(JudgeConfig(function="detector", settings={"detector": saved, "mode": "none_hallucinated"}))
    built.check(ASKED)
    built.load()
    (verdict,) = asyncio.run(built.judge(ASKED, [text_completion(GOOD)]))
    scores = [each.score.p_factual for each in score_text(GOOD, load_detector(saved), subject="Lyon")]
    assert verdict.passed == all(score is not None and score > 0.5 for score in scores) and len(scores) == 2


def test_a_row_names_its_subject() -> None:
    detector = ScriptedDetector()
    judge(DetectorJudge(detector), "It is in Spain.", prompt=row_to_prompt({"prompt": "Well?", "subject": "Nice"}))
    assert detector.batches == [["Nice is in Spain."]]


def test_judge_run_writes_its_verdicts(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "judge.toml").write_text(
        f'function = "detector"\nname = "honest"\nsettings = {{detector = "{saved}", threshold = 0.0}}\n'
    )
    rows = [{"prompt": "Tell me about Lyon.", "completion": [GOOD, ""]}, {"prompt": "And Nice?", "completion": BAD}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "verdicts.jsonl"
    command = ["--judge", str(tmp_path / "judge.toml"), "--data", str(tmp_path / "rows.jsonl"), "--out", str(out)]
    assert main(["judge", "run", *command]) == 0
    assert "honest" in capsys.readouterr().out
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["judge"], each["status"], each["score"]) for each in verdicts] == [
        ("honest", "scored", 1.0),
        ("honest", "abstained", None),
        ("honest", "scored", 1.0),
    ]
