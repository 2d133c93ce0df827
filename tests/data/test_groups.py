import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt, text_completion
from llamarl.data.groups import load_group_function, thinking

PROMPT = Prompt("q", ({"role": "user", "content": "?"},))


def completion(text, finish_reason="stop"):
    return text_completion(text, finish_reason)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("7", "short"),
        ("<think>3 and 4</think>7", "long"),
        ("3 and 4</think>7", "long"),  # the chat template opened the block
        ("<think>\n\n</think>\n\n7", "short"),  # thinking switched off
        ("</think>7", "short"),
        ("<think>3 and 4", None),
        ("<think>3</think><think>4</think>7", None),
        ("3</think>4</think>7", None),
        ("<think><think>3</think>7", None),
        ("3</think>7<think>", None),
    ],
)
def test_thinking_is_on_or_off(text, group):
    assert thinking(PROMPT, completion(text)) == group


def test_a_cut_completion_has_no_group():
    assert thinking(PROMPT, completion("7", "length")) is None


def test_functions_of_the_package_and_of_a_file_are_found_by_name(tmp_path):
    assert load_group_function("llamarl.data.groups:thinking")(PROMPT, completion("7")) == "short"
    file = tmp_path / "mine.py"
    file.write_text("def tool(prompt, completion):\n    return 'long' if 'call(' in completion.text else 'short'\n")
    assert load_group_function(f"{file}:tool")(PROMPT, completion("call(1)")) == "long"


@pytest.mark.parametrize("spec", ["thinking", "llamarl.data.groups:think", "llamarl.data.groups:LlamaRLError"])
def test_what_is_no_group_function_is_refused(spec):
    with pytest.raises(ConfigError):
        load_group_function(spec)


def test_a_function_of_other_arguments_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def tool(text):\n    return 'long'\n")
    with pytest.raises(ConfigError, match=r"no function of \(prompt, completion\)"):
        load_group_function(f"{file}:tool")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return prompt.info['kind']",
            r"function '.*mine.py:tool' failed on a completion of prompt 'q': KeyError",
        ),
        ("return ['long']", r"gave a completion of prompt 'q' the group \['long'\]; return a group's name, or None"),
        ("return 1", r"prompt 'q' the group 1;"),
        ("return ''", r"prompt 'q' the group '';"),
    ],
)
def test_a_function_that_fails_or_gives_no_group_is_named_with_the_prompt(body, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"def tool(prompt, completion):\n    {body}\n")
    with pytest.raises(DataError, match=message):
        load_group_function(f"{file}:tool")(PROMPT, completion("7"))
