import pytest

from llamarl.judges.code import extract_code
from llamarl.judges.code.extract import MAX_CODE_CHARACTERS


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n```py\nx = 1\n```\nDone.", "x = 1\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```\noutput\n```", "x = 1\n"),  # marked blocks come before unmarked ones
        ("```text\nx\n```\n```\ny = 1\n```", "y = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),  # a longer fence holds shorter ones
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\nx = 1\n```   ", "x = 1\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),  # the last complete one
        ("no code", None),
        ("x = 1", None),
        ("```python\nx = 1", None),  # cut off
        ("```python\n\n```", None),
        ("```java\nint x;\n```", None),
        ("`x = 1`", None),
        ("```python x = 1```", None),
        ("", None),
        ("```", None),
        ("```python\n" + "#" * (MAX_CODE_CHARACTERS + 1) + "\n```", None),
    ],
)
def test_golden(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def test_the_first_block_on_request() -> None:
    assert extract_code("```python\nx = 1\n```\n```python\nx = 2\n```", "first") == "x = 1\n"


def test_large_and_broken_texts_end() -> None:
    assert extract_code("`" * 1_000_000) is None
    assert extract_code("```python\n" * 100_000) is None
    assert extract_code("```python\nx = '\ud800'\n```") == "x = '\ud800'\n"
