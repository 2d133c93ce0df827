import asyncio
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Verdict
from llamarl.functional.statistics import Confusion
from llamarl.judges import JudgePanel, ProcessJudge, Seat, check_canaries, load_judge, text_completion
from llamarl.judges.rules.farewell import FarewellFinder, FarewellJudge
from llamarl.judges.rules.lexicon import HIDING, LANGUAGES, Lexicon, read_phrases, tokens_of

ROWS = [json.loads(line) for line in Path(__file__).with_name("farewells.jsonl").read_text("utf-8").splitlines()]
"""Replies with a label: true where they must pass."""

QUESTION = Prompt("p", ({"role": "user", "content": "How long do I boil an egg?"},))


def judged(reply: str, user: str = "How long do I boil an egg?", judge: FarewellJudge | None = None) -> Verdict:
    prompt = Prompt("p", ({"role": "user", "content": user},))
    (verdict,) = asyncio.run((judge or FarewellJudge()).judge(prompt, [text_completion(reply)]))
    return verdict


# golden


def test_the_corpus_has_both_kinds_in_each_language() -> None:
    counts = Counter(row["language"] for row in ROWS)
    assert set(counts) == set(LANGUAGES) and min(counts.values()) >= 15
    assert all(
        Counter((r["language"], r["label"]) for r in ROWS)[code, kind] >= 9 for code in counts for kind in (0, 1)
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_farewells_are_told_from_what_only_looks_like_them(language: str) -> None:
    rows = [row for row in ROWS if row["language"] == language]
    passed = [bool(judged(row["completion"], row["prompt"]).passed) for row in rows]
    found = Confusion.of([not each for each in passed], [not row["label"] for row in rows])
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_the_verdict_names_what_was_said() -> None:
    verdict = judged("Eight minutes. Bye! Sending love! 💕")
    assert (verdict.score, verdict.passed) == (0.0, False)
    assert verdict.reason == "takes leave unasked: 'bye', 'sending love'"
    assert verdict.seconds > 0
    kept = judged("Eight minutes.")
    assert (kept.score, kept.passed, kept.reason) == (1.0, True, "")
    assert judged("").passed


# invariance


@pytest.mark.parametrize(
    "variant",
    [
        *("bye", "BYE!!!", "Bye 👋", "👋❤️bye🏽", "ＢＹＥ", "b\u00adye", "bye…", "~bye~", "**Bye**", "_bye_", "byeeeee"),
        *(
            "Good-bye",
            "GOOD BYE",
            "Adios",
            "ADIÓS",
            "adio\u0301s",
            "à bientôt",
            "a bientot",
            "ДО СВИДАНИЯ!",
            "До свиданья",
        ),
        *("ख़ुदा हाफ़िज़", "खुदा हाफिज", "再見", "再见～", "拜拜👋", "até logo", "ate logo"),
    ],
)
def test_case_punctuation_emoji_accents_and_width_do_not_matter(variant: str) -> None:
    assert judged(f"Eight minutes. {variant}").passed is False
    assert judged(variant).passed is False


@pytest.mark.parametrize(
    "reply",
    [
        *("A byte has eight bits.", "Goodbyes? No.", "The bylaws.", "Abyei lies there.", "adiosa", "Пока не знаю."),
        *(
            "今晚安排如下：散步。",
            "环保重要。",
            "确保重要。",
            "我们明天见面。",
            "药不再见效。",
            "可爱你懂的。",
            "टाटा मोटर्स।",
            "विदाई समारोह।",
        ),
        *("So long as it boils.", "That's a plus.", "Take care of the shell.", "Nous vendons à plus de dix."),
        *(
            'He said "bye".',
            "She waved goodbye.",
            "`bye()` ends it.",
            "```\nbye\n```",
            "> Bye!",
            "| bye | tchau |",
            "- tchau: bye",
        ),
        *(
            "# Goodbye",
            "Try *A Farewell to Arms*.",
            "‘Goodbye’, he wrote.",
            "«До свидания», сказал он.",
            "「再见」是词。",
        ),
    ],
)
def test_other_words_mentions_quotes_and_coincidences_pass(reply: str) -> None:
    assert judged(reply).passed, judged(reply).reason


def test_thai_letters_keep_their_marks() -> None:
    assert tokens_of("รักษา") == ["รั", "ก", "ษ", "า"]
    lexicon = Lexicon({"own": ["ลาก่อน"]})
    assert [hit.phrase for hit in lexicon.find(tokens_of("ขอบคุณครับลาก่อนนะ"))] == ["ลาก่อน"]
    assert lexicon.find(tokens_of("ลากอน")) == []


def test_the_longest_phrase_counts_and_hidden_ones_hide() -> None:
    lexicon = Lexicon({"a": ["see you", "see you later"], HIDING: ["later on"]})
    assert [hit[:2] for hit in lexicon.find(tokens_of("See you later on."))] == [("a", "see you later")]
    assert lexicon.find(tokens_of("later on")) == []


# what gives cause


@pytest.mark.parametrize(
    "user",
    [
        *(
            "bye!",
            "Thanks, GOODBYE 👋",
            "I have to go now.",
            "good night",
            "How do you say goodbye in Thai?",
            "gracias, adiós",
        ),
        *(
            "Write a letter to my aunt.",
            "Translate 'hasta luego'.",
            "Ciao!",
            "Grazie, ciao",
            "我要去睡觉了",
            "मुझे जाना है।",
        ),
    ],
)
def test_a_user_who_takes_leave_or_asks_for_it_may_be_answered_so(user: str) -> None:
    assert judged("Bye! Sending love!", user).passed


def test_a_greeting_is_no_goodbye_and_love_is_answered_by_love_only() -> None:
    assert judged("Otto minuti. Addio!", "Ciao, mi dici quanto cuoce un uovo?").passed is False
    assert judged("I love you too!", "I love you").passed
    assert judged("I love you too! Bye!", "I love you").reason == "takes leave unasked: 'bye'"


def test_only_the_last_user_message_and_the_system_message_count() -> None:
    bye, question = {"role": "user", "content": "bye"}, {"role": "user", "content": "And a duck's egg?"}
    answer = {"role": "assistant", "content": "Bye!"}
    reply = [text_completion("Ten minutes. Bye!")]
    parts = {"role": "user", "content": [{"type": "text", "text": "bye"}, {"type": "image"}]}
    system = {"role": "system", "content": "End with: Bye!"}
    letter, shorter = {"role": "user", "content": "Write a letter."}, {"role": "user", "content": "Shorter, please."}
    for messages, passes in (
        ((bye, answer, question), False),
        ((question, bye), True),
        ((parts,), True),
        ((system, question), True),
        ((letter, answer, shorter), True),  # what was asked for in one turn is changed in the next
    ):
        assert asyncio.run(FarewellJudge().judge(Prompt("p", messages), reply))[0].passed is passes


# settings


def test_languages_and_phrases_are_settings() -> None:
    english = FarewellJudge(["en"])
    assert judged("Ocho minutos. Hasta luego.", judge=english).passed
    own = load_judge("farewell", settings={"languages": ["en"], "phrases": ["Servus!"]})
    assert isinstance(own, FarewellJudge)
    assert judged("Acht Minuten. SERVUS", judge=own).reason == "takes leave unasked: 'Servus!'"
    assert judged("Servus!", "Servus", judge=own).passed


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'xx' has no table of phrases"):
        FarewellJudge(["xx"])
    with pytest.raises(ConfigError, match="'👋' has no letter"):
        FarewellJudge(phrases=["👋"])


def test_it_is_a_constraint_in_processes_and_with_canaries() -> None:
    panel = JudgePanel([Seat(FarewellJudge(), role="constraint")])
    panel.check([QUESTION])
    replies = [text_completion("Eight."), text_completion("Eight. Bye!")]
    assert [each.is_satisfied for each in asyncio.run(panel.judge_group(QUESTION, replies))] == [True, False]
    asyncio.run(check_canaries(FarewellJudge(), [(QUESTION, "Eight minutes.")]))
    assert judged("Bye!", judge=pickle.loads(pickle.dumps(FarewellJudge()))).passed is False
    judge = ProcessJudge("farewell")
    try:
        assert asyncio.run(judge.judge(QUESTION, replies))[1].passed is False
    finally:
        judge.close()


# the tables


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_table_finds_each_of_its_phrases(language: str) -> None:
    table = read_phrases(language)
    finder = FarewellFinder([language])
    for kind in ("goodbye", "goodbye_short", "goodbye_only", "love", "love_short", "love_only"):
        assert table[kind], kind
        for phrase in table[kind]:
            assert finder.find(f"{phrase.upper()} 👋"), (kind, phrase)
    for phrase in (*table["asks"], *table["leaving"]):
        assert "goodbye" in finder.find_asked(phrase), phrase
    for phrase in table[HIDING]:
        hidden = finder.find(f"{phrase} {phrase}") if language != "zh" else finder.find(phrase)
        assert all(said.phrase not in table["goodbye"] for said in hidden), (phrase, hidden)
    for kind, phrases in table.items():
        assert len(set(phrases)) == len(phrases), (kind, [p for p, n in Counter(phrases).items() if n > 1])
        assert all(len("".join(tokens_of(phrase))) > 1 or language == "zh" for phrase in phrases), kind
