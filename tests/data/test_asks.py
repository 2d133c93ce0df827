from dataclasses import replace

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.data.asks import SHIPPED, instruct, load_ask

PROBLEM = Prompt("q", ({"role": "user", "content": "What is 3 + 4?"},), answer="7", info={"level": 2, "solution": "7"})


@pytest.mark.parametrize("mode", ["plain", "voting", "adaptive"])
def test_shipped_ways_wrap_the_problem(mode):
    asked = load_ask(mode)(PROBLEM)
    assert asked.messages == instruct(PROBLEM, mode) and asked.messages[0]["content"].endswith(
        "Problem: What is 3 + 4?"
    )
    assert replace(asked, messages=PROBLEM.messages, info=PROBLEM.info) == PROBLEM and asked.info == {"level": 2}


@pytest.mark.parametrize("before", ["plain", "voting", "adaptive"])
@pytest.mark.parametrize("after", ["plain", "voting", "adaptive"])
def test_instructions_take_the_place_of_others(before, after):
    once = replace(PROBLEM, messages=instruct(PROBLEM, before))
    assert instruct(once, after) == instruct(PROBLEM, after)


def test_functions_of_the_package_and_of_a_file_are_found_by_name(tmp_path):
    chain = Prompt("c", ({"role": "user", "content": "A3ab......"},), info={"start": 3, "operations": "ab"})
    assert load_ask("llamarl.tasks.chain:short")(chain).messages[0]["content"] == "S3ab......"
    file = tmp_path / "mine.py"
    file.write_text("def same(prompt):\n    return prompt\n")
    assert load_ask(f"{file}:same")(PROBLEM) is PROBLEM
    assert load_ask("x", {**SHIPPED, "x": lambda prompt: PROBLEM})(chain) is PROBLEM


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nicely", "ask 'nicely': choose from plain, voting, adaptive, or name a function"),
        ("llamarl.tasks.chain:medium", "has no 'medium'"),
        ("llamarl.tasks.chain:group", "no function of a prompt"),
        ("llamarl.tasks.chain:MAX_LEVEL", "no function of a prompt"),
    ],
)
def test_what_is_no_way_to_ask_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        load_ask(spec)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"ask '.*' made no prompt of 'q' but None"),
        ("raise ValueError('odd')", r"ask '.*' failed on prompt 'q': ValueError: odd"),
        ("from dataclasses import replace\n    return replace(prompt, messages=())", "made no prompt of 'q'"),
    ],
)
def test_a_function_that_asks_nothing_is_blamed_with_its_prompt(tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(f"def ask(prompt):\n    {body}\n")
    with pytest.raises(DataError, match=message):
        load_ask(f"{file}:ask")(PROBLEM)
