import io
import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from llamarl.core.errors import DataError
from llamarl.core.records import Completion, Group, Sample, TrainSample, Trajectory, Verdict
from llamarl.report.rollouts import RolloutLog, is_passed, read_rollouts, side_by_side, token_texts, verdict_line

Make = Callable[..., Group]


def test_what_is_written_reads_back(tmp_path: Path, make_group: Make) -> None:
    completion = Completion(
        Trajectory.sampled((1,), (5, 6, 7), (-0.123456, float("-inf"), 0.0), (3, 3, 4), "length"), "hé\x1b\ud83d"
    )
    verdicts = {"a": Verdict.scored(0.5, passed=True, reason="ok"), "b": Verdict.failed("time-out after 3 s")}
    group = make_group("p1", (Sample(completion, verdicts, None),), index=8)
    log = RolloutLog(tmp_path / "rollouts.jsonl")
    assert log.write(10, 5, [group], trainer_logprobs={(8, 0): [-0.2, -0.3, -0.4]}) == 1
    log.close()
    (read,) = read_rollouts(tmp_path / "rollouts.jsonl")
    assert (read.step, read.version, read.group, read.prompt_id, read.task) == (10, 5, 8, "p1", "words")
    (sample,) = read.samples
    assert (sample.text, sample.reward, sample.finish_reason) == ("hé\x1b\ud83d", None, "length")
    assert sample.staleness == 5 - 3
    assert sample.verdicts == verdicts
    assert sample.versions == ((3, 2), (4, 1))
    assert sample.logprobs == (-0.1235, None, 0.0)
    assert sample.trainer_logprobs == (-0.2, -0.3, -0.4)


def test_every_so_many_steps_a_few_groups_spread_over_the_batch(
    tmp_path: Path, make_group: Make, make_sample: Callable[..., Sample]
) -> None:
    groups = [make_group(f"p{index}", (make_sample("x", True),), index) for index in range(9)]
    log = RolloutLog(tmp_path / "r.jsonl", every=5, per_step=3)
    assert [log.write(step, step, groups) for step in range(1, 11)] == [3, 0, 0, 0, 3, 0, 0, 0, 0, 3]
    assert log.write(15, 15, groups[:2]) == 2 and log.write(20, 20, []) == 0
    assert log.rewind(9) == 5
    log.close()
    assert [(group.step, group.prompt_id) for group in read_rollouts(tmp_path / "r.jsonl")] == [
        (1, "p0"), (1, "p3"), (1, "p6"), (5, "p0"), (5, "p3"), (5, "p6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prompt_id", ..., "prompt_id"),
        ("samples", [{}], "verdicts"),
        ("samples", "none", "samples"),
        ("step", None, "step"),
    ],
)
def test_a_damaged_record_is_named(
    tmp_path: Path, make_group: Make, make_sample: Callable[..., Sample], key: str, value: object, said: str
) -> None:
    path = tmp_path / "r.jsonl"
    log = RolloutLog(path)
    log.write(1, 1, [make_group("p", (make_sample("x", True),))])
    log.close()
    record = json.loads(path.read_text())
    record = {k: v for k, v in record.items() if k != key} if value is ... else record | {key: value}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=rf"r\.jsonl.*1: .*{said}"):
        read_rollouts(path)


def test_is_passed_needs_every_judge_that_says_so() -> None:
    good, bad = Verdict.scored(1, passed=True), Verdict.scored(0, passed=False)
    assert is_passed({"a": good, "b": Verdict.abstained()}) is True
    assert is_passed({"a": good, "b": bad}) is False
    assert is_passed({"a": Verdict.scored(0.3), "b": Verdict.failed("x")}) is None


def test_verdict_line() -> None:
    assert verdict_line("fmt", Verdict.scored(0.5, passed=False, reason="no\nkey")) == "fmt 0.500 fail: no ⏎ key"
    assert verdict_line("fmt", Verdict.failed("time-out")) == "fmt failed: time-out"
    assert verdict_line("fmt", Verdict.abstained()) == "fmt abstained"


@pytest.mark.parametrize("width", [60, 100, 140])
def test_side_by_side_pairs_prompts_and_shows_reasons(
    width: int, make_group: Make, make_sample: Callable[..., Sample]
) -> None:
    before = [
        make_group("p1", (make_sample("cat \x1b[31m[red]cat", False, reason="2 words of 4"),)),
        make_group("gone", (make_sample("nowhere", False),)),
    ]
    after = [make_group("p1", (make_sample("cat dog sun sky", True),))]
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(side_by_side(before, after, width))
    text = console.export_text()
    assert max(map(len, text.split("\n"))) <= width
    flat = " ".join(text.replace("│", " ").split())
    for part in ("(0/2 pass)", "(1/1 pass)", "✗ cat", "✓ cat dog", "(p1)"):
        assert part in flat
    assert "2 words" in flat and "[red]" in flat and "\x1b" not in text
    assert "nowhere" not in text


def test_the_text_of_each_token_joins_to_the_whole() -> None:
    pieces = {1: b"caf", 2: b"\xc3", 3: b"\xa9", 4: b" au", 5: b"\xf0\x9f", 6: b"\x98\x80", 7: b"<eos>", 8: b"\xff"}

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[each] for each in ids).decode(errors="replace")

    assert token_texts([1, 2, 3, 4, 5, 6, 7], decode) == ["caf", "", "é", " au", "", "😀", "<eos>"]
    assert token_texts([1, 2], decode) == ["caf", "\ufffd"]  # cut in mid-character
    assert "".join(token_texts([8, 8, 8, 8, 8, 1], decode)).endswith("caf")
    assert token_texts([], decode) == []


def test_a_word_keeps_the_space_that_a_decoder_drops_in_front() -> None:
    words = {1: " one", 2: " two", 3: "s"}
    texts = token_texts([1, 2, 3], lambda ids: "".join(words[each] for each in ids).removeprefix(" "))
    assert texts == ["one", " two", "s"]


def test_how_samples_trained_is_kept(tmp_path: Path, make_group: Make, make_sample: Callable[..., Sample]) -> None:
    samples = tuple(make_sample(text, True) for text in ("whole", "each", "none"))
    trained = {
        (3, 0): TrainSample(samples[0].completion.trajectory, 0.25),
        (3, 1): TrainSample(
            samples[1].completion.trajectory, array("f", [0.5, 0.0, -1.0]), loss_mask=array("b", [1, 0, 1])
        ),
    }
    log = RolloutLog(tmp_path / "r.jsonl", decode=lambda ids: "".join(f"<{each}>" for each in ids))
    log.write(1, 1, [make_group("p", samples, index=3)], trained=trained)
    log.close()
    whole, each, none = read_rollouts(tmp_path / "r.jsonl")[0].samples
    assert (whole.advantage, whole.loss_mask, whole.tokens) == (0.25, None, ("<10>", "<11>", "<12>"))
    assert (each.advantage, each.loss_mask) == ((0.5, 0.0, -1.0), (1, 0, 1))
    assert none.advantage is None
