"""Verdicts that are not asked for twice, and what makes a question another one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import Reply, transport
from llm_judges import YES, ask, judge

from llamarl.core.errors import ConfigError
from llamarl.core.records import Status


def test_the_cache_answers_the_second_time(tmp_path: Path) -> None:
    scripted, path = transport(YES), str(tmp_path / "new" / "judge.sqlite")
    first = ask(judge(scripted, cache=path, prompt_price=1.0), "Paris")[0]
    made = judge(scripted, cache=path, prompt_price=1.0)
    second = ask(made, "Paris")[0]
    assert len(scripted.requests) == 1
    assert (second.score, second.passed, second.reason) == (first.score, first.passed, first.reason)
    assert first.cost > 0 and second.cost == 0.0
    assert made.metrics()["cache_hit_rate"] == 1.0


def test_what_would_change_the_answer_changes_the_key(tmp_path: Path) -> None:
    scripted, path = transport(Reply('{"passed": true}', top_logprobs=YES.top_logprobs)), str(tmp_path / "judge.sqlite")
    template = tmp_path / "mine.toml"
    text = 'way = "probability"\nuser = "{{completion}}"\nask_token = "?"\npositive = ["True"]\nnegative = ["False"]\n'
    for version in "12":
        template.write_text(f'version = "{version}"\n' + text)
        ask(judge(scripted, str(template), cache=path), "a")
    ask(judge(scripted, str(template), cache=path), "b")
    ask(judge(scripted, str(template), cache=path, model="other"), "a")
    template.write_text('version = "2"\n' + text.replace('["False"]', '["False", "No"]'))
    ask(judge(scripted, str(template), cache=path), "a")
    ask(judge(scripted, cache=path), "a")
    ask(judge(scripted, cache=path, way="json"), "a")
    ask(judge(scripted, cache=path, way="json", constrain_json=False), "a")
    ask(judge(scripted, cache=path, base_url="http://127.0.0.1:2/v1"), "a")
    assert len(scripted.requests) == 9
    ask(judge(scripted, cache=path, base_url="http://127.0.0.1:2/v1/"), "a")  # the same place
    assert len(scripted.requests) == 9


@pytest.mark.parametrize("setting", [{"top_logprobs": 5}, {"min_mass": 0.6}, {"extra": {"seed": 1}}, {"max_tokens": 9}])
def test_settings_of_the_question_change_the_key(tmp_path: Path, setting: dict[str, Any]) -> None:
    scripted, path = transport(YES), str(tmp_path / "judge.sqlite")
    ask(judge(scripted, cache=path), "a")
    ask(judge(scripted, cache=path, **setting), "a")
    assert len(scripted.requests) == 2


def test_an_edited_text_changes_the_key_though_its_version_does_not(tmp_path: Path) -> None:
    scripted, path, template = transport(YES), str(tmp_path / "judge.sqlite"), tmp_path / "mine.toml"
    for question in ("Is it right?", "Is it true?"):
        template.write_text(
            f'version = "1"\nway = "probability"\nuser = "{{{{completion}}}}"\nask_token = "{question}"\n'
            'positive = ["True"]\nnegative = ["False"]\n'
        )
        ask(judge(scripted, str(template), cache=path), "a")
    assert len(scripted.requests) == 2


def test_failed_verdicts_are_not_cached(tmp_path: Path) -> None:
    made = judge([Reply(status=500), YES], cache=str(tmp_path / "judge.sqlite"), max_retries=0)
    assert ask(made, "Paris")[0].status is Status.FAILED
    assert ask(made, "Paris")[0].passed is True


def test_processes_share_a_cache(tmp_path: Path) -> None:
    script = (
        "import sys; from llamarl.judges.llm.cache import VerdictCache; from llamarl.core.records import Verdict\n"
        "cache = VerdictCache(sys.argv[1])\n"
        "for n in range(100):\n"
        "    cache.put(f'{n}', Verdict.scored(n, passed=True, reason='r'))\n"
        "    assert cache.get(f'{n}').score == n\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "judge.sqlite")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a data base\n" * 100)
    with pytest.raises(ConfigError, match=r"cache='.*notes.txt': .*not a database"):
        judge(YES, cache=str(path))
    assert path.read_text().startswith("these are my notes")
