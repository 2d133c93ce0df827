import pytest

from llamarl.judges.math import extract_answer, find_answer
from llamarl.judges.math.extract import MAX_ANSWER_CHARACTERS, last_final_answer


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("so \\boxed{42}.", "boxed", "42"),
        ("\\boxed{\\frac{1}{2}}", "boxed", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "boxed", "2"),
        ("\\boxed{\\{1, 2\\}}", "boxed", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right\\}}", "boxed", "\\left\\{ x \\right\\}"),
        ("\\fbox{7}", "boxed", "7"),
        ("\\boxed {7}", "boxed", "7"),
        ("\\boxed{\\boxed{5}}", "boxed", "5"),
        ("\\boxed{5} and \\boxed{6", "boxed", "5"),  # cut off
        ("\\boxed{5} and \\boxed{}", "boxed", "5"),
        ("\\boxed{3} The final answer is 4.", "boxed", "3"),
        ("The final answer is 42.", "final_answer", "42"),
        ("The final answer is: 42", "final_answer", "42"),
        ("the Final  Answer is $\\frac{1}{2}$. I hope it is correct.", "final_answer", "$\\frac{1}{2}$"),
        ("The final answer is $5.", "final_answer", "$5"),
        ("The final answer is **3.5**.", "final_answer", "3.5"),
        ("The final answer is 3.5. Done", "final_answer", "3.5"),
        ("The final answer is 1. No: the final answer is 2.", "final_answer", "2"),
        ("The final answer is\n42", "final_answer", "42"),
        ("The final answer is [4]", "final_answer", "[4]"),
        ("The final answer is 5 or 6.", "final_answer", "5 or 6"),
        ("The final answer is 41, or 42", "final_answer", "41, or 42"),
        ("The final answer is \\[ 7 \\]", "final_answer", "7 \\]"),
        ("Work\n#### 42", "hashes", "42"),
        ("#### 1,234 \n", "hashes", "1,234"),
        ("#### 1\n#### 2", "hashes", "1, 2"),
        ("#### 1\nNo, wait.\n#### 2", "hashes", "2"),
        ("$\\boxed{1}$, $\\boxed{2}$ and \\boxed{3}", "boxed", "1, 2, 3"),
        ("\\boxed{7} \\boxed{8}. Let me check. \\boxed{9}\n\n\\boxed{9}", "boxed", "9"),
        ("The final answer is 1. The final answer is 2.", "final_answer", "1, 2"),
        ("Answer: 1\nAnswer: 2", "answer_line", "1, 2"),
        ("Answer: 42", "answer_line", "42"),
        ("**Answer:** 42", "answer_line", "42"),
        ("**Answer**: C", "answer_line", "C"),
        ("> Final answer: 7.", "answer_line", "7"),
        ("ANSWER = 7", "answer_line", "7"),
        ("#### 5\nAnswer: 6", "hashes", "5"),
    ],
)
def test_golden(text: str, form: str, answer: str) -> None:
    found = find_answer(text)
    assert found is not None and (found.form, found.answer) == (form, answer)
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            ":",
            "I think it is 7",
            "\\boxed{}",
            "\\boxed{ }",
            "\\boxed{$}",
            "\\boxed{7",
            "\\boxed 7",
            "boxed{7}",
        ),
        *(
            "The final answer is",
            "The final answer is .",
            "The final answer is **",
            "####",
            "#### ",
            "####\n",
            "Answer:",
        ),
        *(
            "Answer: **",
            "The answer is 7",
            "My answer 7",
            "###5",
            "Thought process:",
            "\ud800",
            "\\boxed{" + "1" * 5000 + "}",
        ),
    ],
)
def test_no_answer(text: str) -> None:
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3 then 1,234.5 km", "1,234.5"),
        ("it is -7", "-7"),
        ("half, 1/2", "1/2"),
        ("about 50%", "50%"),
        ("v1.2.3 of 12", "12"),
        ("none", None),
        ("Answer: 5, not 6", "5, not 6"),
    ],
)
def test_the_last_number_on_request(text: str, answer: str | None) -> None:
    assert extract_answer(text, use_last_number=True) == answer


def test_the_box_of_a_sentence_is_taken_off() -> None:
    assert last_final_answer("The final answer is $\\boxed{5}$.") == "5"
    assert last_final_answer("\\boxed{5}") is None


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "\\boxed{",
            "\\boxed{}",
            "####",
            "#### ",
            "Answer",
            "Answer ",
            "answer: ",
            "final answer is ",
            "final answer is\n",
        ),
        *("1,", "1.", "((((", " ", "\n", "*", "\\", "$", "the final \n", "_*#>", "{\\", "9", "-"),
    ],
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    answer = extract_answer(text, use_last_number=True)
    assert answer is None or len(answer) <= MAX_ANSWER_CHARACTERS
    assert extract_answer(text + "\n\\boxed{7}") == "7"
