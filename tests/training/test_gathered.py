import pytest

from llamarl.training.gathered import in_runs


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([3, 7, 8, 9, 11], "3, 7 to 9, 11"), ([0, 1], "0 to 1")]
)
def test_golden_numbers_for_people(numbers: list[int], text: str) -> None:
    assert in_runs(numbers) == text
