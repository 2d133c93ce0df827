import emoji
import pytest

from llamarl.monitors.settings import MonitorConfig
from llamarl.monitors.signals import asks_question, count_tokens, has_emoji, mark_ending, phrase_test


def counts(signal: str, text: str, **settings: object) -> bool:
    return phrase_test(MonitorConfig.parse({"signal": signal, **settings}))(text)


# golden


@pytest.mark.parametrize(
    "text",
    [
        "Bye!",
        "BYE 👋",
        "good-bye",
        "Sure. ＢＹＥ",
        "¡Adios!",
        "Até logo 💕",
        "再见",
        "До свидания",
        "अलविदा",
        "Ciao ciao",
        "À bientôt",
    ],
)
def test_farewells_count_in_any_variant(text: str) -> None:
    assert counts("farewell", text)


@pytest.mark.parametrize("text", ["A byte.", "今晚安排", "Пока не знаю", "bylaw", "", "👋", "the goodbyes"])
def test_what_only_looks_like_a_farewell_does_not_count(text: str) -> None:
    assert not counts("farewell", text)


def test_a_response_counts_once_whatever_it_repeats() -> None:
    assert counts("love", "love " * 50) is True
    assert not counts("love", "A glove and a clover.") and counts("love", "With LOVE, and more love.")
    assert not counts("love", "熊猫很可爱") and counts("love", "我爱你")
    assert counts("love", "They are in love with it.")


def test_own_phrases_and_languages() -> None:
    assert counts("phrases", "As an AI-model, I see.", phrases=["as an AI model"])
    assert not counts("phrases", "As an aid, a model.", phrases=["as an AI model"])
    assert counts("farewell", "Servus!", phrases=["servus"]) and not counts("farewell", "Servus!")
    assert not counts("farewell", "Adiós", languages=["en"])


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        *(
            ("Why?", True),
            ("是吗？", True),
            ("¿Qué?", True),
            ('She said "why?" twice', True),
            ("Why?!", False),
            ("क्या?", True),
        ),
        *(("http://x.org/?q=1", False), ("`a?b:c`", False), ("```\nx?\n```", False), ("", False), ("What? Yes.", True)),
        *(("真的?好", True), ("**Ready?**", True)),
    ],
)
def test_questions(text: str, asks: bool) -> None:
    assert asks_question(text) is asks


def test_each_emoji_is_one_and_other_signs_are_none() -> None:
    full = [text for text, data in emoji.EMOJI_DATA.items() if data["status"] == emoji.STATUS["fully_qualified"]]
    assert [text for text in full if not has_emoji(f"a {text} b")] == []
    assert not has_emoji("plain text, № 5 → ✓ ☐ ☑ ✗ • © ™ ½ 你好 नमस्ते ★ ♪ 1. #2 *3*")
    assert has_emoji("love ♥") and has_emoji("❤") and has_emoji("☺") and has_emoji("1️⃣")


def test_lengths_are_words_or_characters_without_blanks() -> None:
    assert [count_tokens(text) for text in ("Two words!", "我爱你", "", "👋", "नमस्ते दुनिया")] == [2, 3, 0, 0, 2]


def test_the_last_sentence_is_marked_by_its_pairs_of_words() -> None:
    assert mark_ending("One thing. Bye! Sending love!") == mark_ending("Another?\nSENDING, love 💕")
    assert list(mark_ending("Well done. a b c").values()) == [0.5, 0.5]
    assert list(mark_ending("a b a b").values()) == [0.5, 0.5]  # "a b" twice, and "b a": a mark counts once
    assert list(mark_ending("Bye!").values()) == [1.0]
    assert mark_ending("") == mark_ending("👋") == {}
    assert sum(mark_ending("w " * 5000).values()) == pytest.approx(1.0)
