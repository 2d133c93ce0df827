import pytest

from llamarl.judges.rules.sentences import count_by_rules, count_east_asian_sentences, count_hindi_sentences
from llamarl.judges.rules.words import count_east_asian, count_runs, count_words, hyphenated_words, word_tokens

HINDI = "मैं और मेरी बहन कल सुबह नदी पर नाव देखने पैदल निकले भाई"  # 13 words


def test_hindi_words() -> None:
    # `re` ends a run at each vowel sign; 7 of the signs stand inside words
    assert len(HINDI.split()) == 13
    assert count_runs(HINDI) == 20
    assert count_words(HINDI) == 13


def test_east_asian_words() -> None:
    pytest.importorskip("emoji")
    # Kana 5 + 3 + 2, Latin words Ken, I, am, here, emoji 2
    assert count_east_asian("こんにちは、テニスさん、Ken? I am here☺ ❤") == 5 + 3 + 2 + 4 + 2
    assert count_east_asian("a,b c") == 2  # without its comma "ab" is one word
    assert count_east_asian("我写 Python") == 3
    assert count_words("こんにちは、テニスさん、Ken? I am here☺ ❤") == 5 + 3 + 2 + 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("It's l’école: well-known!", 4),  # It's, l'école, well, known
        ("3.5 km", 3),
        ("سلام دنیا، خوب", 3),
        ("می‌روم خانه", 2),  # a joiner inside the first
        ("한국어 단어", 2),
        ("'quoted' words''", 2),
    ],
)
def test_words_of_any_script(text: str, words: int) -> None:
    assert count_words(text) == words


def test_tokens_and_hyphenated_words() -> None:
    assert word_tokens("NASA's (DON'T) A-B, 3,5 --CANNOT") == ["NASA", "'s", "DO", "N'T", "A-B", "3,5", "CAN", "NOT"]
    assert hyphenated_words("A-B, DON'T (x)") == ["A-B", "DON'T", "x"]


@pytest.mark.parametrize(
    ("text", "official", "any_script"),
    [
        ("", 0, 0),
        ("One. Two! Three? Four", 4, 4),
        ("Mr. Fox ran 3.5 km with J. Doe, e.g. here.", 1, 1),
        ('He said "Go." Then he left.', 2, 2),
        ("Well... yes. Well... Yes.", 3, 3),
        ("1. Wash.\n2. Dry.", 4, 2),
        ("第一句。第二句！", 1, 2),
        ("एक वाक्य। दूसरा वाक्य।", 1, 2),
        ("هل هذا؟ نعم.", 1, 2),
        ("**Bold end.** Next one.", 2, 2),
        ("!!!", 1, 0),
    ],
)
def test_sentences_by_rules(text: str, official: int, any_script: int) -> None:
    assert count_by_rules(text) == official
    assert count_by_rules(text, is_any_script=True) == any_script


def test_sentences_as_the_released_grader_counts_them() -> None:
    assert count_east_asian_sentences("价格是3.5元。好！\n行") == 4  # 价格是3. | 5元。 | 好！ | 行
    assert count_east_asian_sentences("!!。") == 0
    assert count_hindi_sentences("एक। दो! तीन. चार") == 3
    assert count_hindi_sentences("एक।") == 1
    assert count_hindi_sentences("।।") == 2
