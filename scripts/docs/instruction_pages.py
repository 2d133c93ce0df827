"""Writes docs/reference/instructions/: a page for each checkable instruction, and their index.

What an instruction means, and how the modes judge it, is said here by hand; its arguments are checked against the
shipped conversations, its example pair is taken from them, and its company from the conflict table.
"""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from llamarl.evals.conversations import read_conversations
from llamarl.judges.rules import RULES
from llamarl.tasks.instructions import CONFLICTS

COUNT = "whole number, 0 or more"
RELATION = '`"less than"` or `"at least"`'
SAME = "The verdicts are the same."
ALL_LANGUAGES = "Any."


@dataclass(frozen=True, slots=True)
class Page:
    """What is said by hand about one instruction."""

    meaning: str
    """Which texts follow it."""
    arguments: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> (values, meaning)."""
    modes: str = SAME
    """Where the verdicts of the grader released with Multi-IF differ from the repaired ones."""
    languages: str = ALL_LANGUAGES
    google: str = ""
    """Where those of Google's grader differ from both; empty where they are the official ones."""


PAGES: Mapping[str, Page] = {
    "keywords:existence": Page(
        "Every keyword occurs at least once, in either case. Inside a longer word it counts: `art` is in `party`.",
        {"keywords": ("list of at least one text", "words or phrases, each of which must occur")},
        "Official mode takes each keyword as a regular expression: `a.c` is found in `abc`, and one that is no valid "
        "expression makes the instruction ungradable, as does one that could search for ever. Fixed mode takes "
        "keywords literally, and one apostrophe, hyphen, blank or width for another.",
        "Any. Inflected languages need the very form that was given.",
    ),
    "keywords:frequency": Page(
        "A keyword occurs less often than a number, or at least that often, in either case. Hits inside longer words "
        "count; hits do not overlap.",
        {
            "keyword": ("text", "what is counted"),
            "frequency": (COUNT, "the bound"),
            "relation": (RELATION, "which side of the bound"),
        },
        "Official mode takes the keyword as a regular expression; one that is invalid, such as `:(`, fails every reply "
        "under either relation. Fixed mode counts it literally, and takes one apostrophe, hyphen, blank or width for "
        "another.",
        "Any. Inflected forms count only as far as they contain the keyword.",
    ),
    "keywords:forbidden_words": Page(
        "None of the words occurs as a word of its own, in either case. Inside a longer word it may stand: with `art` "
        "forbidden, `party` is allowed.",
        {"forbidden_words": ("list of at least one text", "words or phrases that must not occur")},
        "Official mode misses a word within running Chinese, a Hindi word that ends in a vowel sign, and a word that "
        "ends in punctuation (`C++`), because it asks for a regular expression's word boundary on both sides. Fixed "
        "mode finds all three, and words that stars, underscores, strokes, another apostrophe or full-width letters "
        "disguise: `_art_`, `a**rt**`.",
    ),
    "keywords:letter_frequency": Page(
        "A letter occurs less often than a number, or at least that often, in either case. Accented letters are "
        "letters of their own: `é` is no `e`.",
        {
            "letter": ("one character", "what is counted; in official mode a letter from a to z"),
            "let_frequency": (COUNT, "the bound"),
            "let_relation": (RELATION, "which side of the bound"),
        },
        "Official mode knows the letters a to z; for any other character the released grader draws a random letter, so "
        "the instruction is ungradable here. Fixed mode counts any character; a letter with its accent is "
        "another letter than the one without, however it is composed.",
        "Those in Latin script. Elsewhere it can only ask for Latin letters in foreign names.",
    ),
    "language:response_language": Page(
        "The whole reply is in one given language, as a language detector tells it.",
        {"language": ("two-letter code", "one of 30 languages, such as `fr` or `hi`; in fixed mode also `zh`")},
        "Official mode asks langdetect, which is unsure of short texts, and passes a text without any letters. It has "
        "no name for Chinese, so `zh` is ungradable. Fixed mode asks lingua, knows `zh`, and fails a text without "
        "letters. Lingua knows no Nepali and takes short Hindi for Marathi, so fixed mode tells these three by "
        "langdetect's tables and by their small words; a text of a word or two goes to Hindi.",
        "Any; the language is usually not the conversation's.",
    ),
    "length_constraints:number_sentences": Page(
        "The reply has fewer sentences than a number, or at least that many.",
        {"num_sentences": (COUNT, "the bound"), "relation": (RELATION, "which side of the bound")},
        "Official mode chooses a splitter by the detected language: NLTK's English model for most; in Hindi only the "
        "danda, `!` and `?` end a sentence; in Chinese and Japanese every full stop does, that of `3.5` included, and "
        "so does every line break. Fixed mode has one splitter for all scripts, knows abbreviations of nine languages "
        "and German ordinals, and does not count pieces without a letter, such as a list number.",
        google="Google mode has NLTK's English model for every language, so a Chinese text is mostly one sentence.",
    ),
    "length_constraints:number_paragraphs": Page(
        "The reply has exactly so many paragraphs, divided by three asterisks, `***`. Blank lines do not divide. An "
        "empty first or last paragraph does not count; an empty one in between fails.",
        {"num_paragraphs": (COUNT, "how many, exactly")},
    ),
    "length_constraints:number_words": Page(
        "The reply has fewer words than a number, or at least that many.",
        {"num_words": (COUNT, "the bound"), "relation": (RELATION, "which side of the bound")},
        "Official mode chooses a counter by the detected language. Most texts count as runs of letters, so `l'école` "
        "is two words and a Hindi word is cut at its vowel signs: 13 words count as 20. Texts taken for Chinese or "
        "Japanese count by character. A short Chinese text that langdetect takes for Korean counts as a few long "
        "words. In fixed mode marks belong to words, an apostrophe joins, and each Han or Kana character is a word.",
        google="Google mode counts runs of letters in every language: a Chinese sentence is one word or a few.",
    ),
    "length_constraints:nth_paragraph_first_word": Page(
        "The reply has exactly so many paragraphs, divided by blank lines, and a given one of them starts with a given "
        "word, in either case.",
        {
            "num_paragraphs": (COUNT, "how many, exactly"),
            "nth_paragraph": ("whole number, 1 to `num_paragraphs`", "which one starts with the word"),
            "first_word": ("text", "the word"),
        },
        "Official mode compares what stands before the first blank or ASCII punctuation, so it can never match two "
        "words, nor a Chinese word that no blank follows; and a blank paragraph at the beginning shifts the others. "
        "Fixed mode repairs all of these, and a line of blanks divides too.",
    ),
    "detectable_content:number_placeholders": Page(
        "There are at least so many placeholders in square brackets on one line, such as `[name]`.",
        {"num_placeholders": (COUNT, "how many, at least")},
        "Official mode also counts an empty pair `[]` and the text of a Markdown link. Fixed mode counts neither.",
    ),
    "detectable_content:postscript": Page(
        "There is a postscript, known by its marker. The marker may stand anywhere, in either case. In `P.S.` and "
        "`P.P.S` a blank may stand between the letters.",
        {"postscript_marker": ("text", "how it starts, such as `P.S.`")},
        "Official mode takes other markers as regular expressions; fixed mode takes them literally.",
    ),
    "detectable_format:number_bullet_lists": Page(
        "There are exactly so many Markdown bullets: lines that start with `*` or `-`. Numbered lines are no bullets.",
        {"num_bullets": (COUNT, "how many, exactly")},
        "Official mode also counts a rule such as `---`, and a line that starts with emphasis. In fixed mode a blank "
        "must follow the sign, and rules do not count.",
    ),
    "detectable_format:constrained_response": Page(
        "The reply contains one of three English sentences, word for word, among whatever else. They are "
        "`My answer is yes.`, `My answer is no.` and `My answer is maybe.`",
        languages="Any; the three sentences stay English.",
    ),
    "detectable_format:number_highlighted_sections": Page(
        "There are at least so many passages between single asterisks, `*such as this*`, or double ones, on one line "
        "and not blank. Underscores do not highlight.",
        {"num_highlights": (COUNT, "how many, at least")},
    ),
    "detectable_format:multiple_sections": Page(
        "There are at least so many sections: places where the given word stands before a number, such as `Section 1`. "
        "Case matters, and the number must be in digits.",
        {"section_spliter": ("text", "the word"), "num_sections": (COUNT, "how many, at least")},
        "Official mode takes the word as a regular expression; fixed mode takes it literally.",
    ),
    "detectable_format:json_format": Page(
        "The whole reply is one JSON value of any kind. It may stand in a code fence; nothing may stand around it.",
        modes="Official mode takes NaN and infinities, which JSON has none of, and a fence that is never closed. Fixed "
        "mode takes neither. A key may occur twice in both.",
    ),
    "detectable_format:title": Page(
        "There is a title in double angular brackets on one line, `<<such as this>>`, and it is not blank.",
    ),
    "combination:two_responses": Page(
        "There are two different answers, divided by six asterisks, `******`. Nothing need stand before the first or "
        "after the second, but three answers fail.",
        modes="Official mode takes any difference for one. Fixed mode wants another in more than case and blanks.",
    ),
    "combination:repeat_prompt": Page(
        "The reply starts with the request, word for word, in either case.",
        {"prompt_to_repeat": ("text", "the request")},
    ),
    "startend:end_checker": Page(
        "The reply ends with the phrase, in either case. Only blanks and quotation marks may follow.",
        {"end_phrase": ("text", "the phrase, with its punctuation")},
        "In official mode only straight double quotation marks may follow; in fixed mode any kind.",
    ),
    "startend:quotation": Page(
        "The reply as a whole stands in double quotation marks: the first and the last character are a pair.",
        modes="Official mode knows straight and curly marks and corner brackets. Fixed mode also knows guillemets, low "
        "marks and white corner brackets.",
        google="Google mode knows the straight mark alone.",
    ),
    "change_case:capital_word_frequency": Page(
        "Fewer words than a number are in capitals, or at least that many. Single letters count: English `I`, and `A` "
        "at the start of a sentence.",
        {
            "capital_frequency": (COUNT, "the bound"),
            "capital_relation": (RELATION, "which side of the bound"),
        },
        "Official mode counts NLTK's tokens: a contraction in capitals is two (`DO`, `N'T`). In fixed mode it is one "
        "word, as is a hyphenated word.",
        "Those with capitals. In Hindi and Chinese it can only ask for Latin abbreviations.",
    ),
    "change_case:english_capital": Page(
        "The reply is in English and has no small letters.",
        modes="Official mode detects the language of the capitals as they stand, which langdetect hardly knows, and "
        "passes a text whose language it cannot tell. Fixed mode looks at the text in lower case.",
        languages="Any as the language of the request; the reply is English.",
    ),
    "change_case:english_lowercase": Page(
        "The reply is in English and has no capital letters.",
        modes="Official mode passes a text whose language it cannot tell, and langdetect may take a short text for "
        "another language. Fixed mode asks lingua.",
        languages="Any as the language of the request; the reply is English.",
    ),
    "punctuation:no_comma": Page(
        "There is no comma.",
        modes="Official mode knows the ASCII comma only. Fixed mode also knows those of other scripts, such as `，`, "
        "`、` and `،`.",
    ),
}


INTRODUCTION = (
    "The 25 instructions of IFEval and Multi-IF, graded by program. `llamarl eval multi-if` and `llamarl eval ifeval` "
    "grade replies by them, the judge `instructions` rewards completions by them, and `llamarl data instructions` "
    'writes prompts that ask for them. In data an instruction is `{"id": ..., "kwargs": {...}}`.',
    "Each is judged in one of three modes. **Official** gives the verdicts of the grader released with Multi-IF, its "
    "defects included: take it to compare with that benchmark's published numbers. **Google** gives those of the "
    "IFEval that it grew from: take it to compare with IFEval's. It differs from official mode in three instructions, "
    "whose pages say how. **Fixed** repairs the defects: take it to train. It judges a reply as it is "
    "read: invisible characters are not there, accents are composed, and any line break is one.",
    "An instruction whose arguments are missing or make no sense is *ungradable*: left out in fixed mode, false in the "
    "others, and named in the results. An empty reply follows nothing; in google and fixed mode neither does a blank "
    "one.",
    "*Strict* grading takes the reply as it is. *Loose* grading also accepts it without its first line, its last line "
    "or both, and without asterisks.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction in the shipped conversations."""

    instruction: Mapping[str, Any]
    follows: str
    breaks: str
    key: str


def instruction_pages() -> dict[str, str]:
    """File name -> page."""
    examples = shipped_examples()
    pages = {f"{stem(id)}.md": instruction_page(id, examples[id]) for id in RULES}
    return {"index.md": index_page(), **pages}


def stem(id: str) -> str:
    """File name of an instruction's page, without its ending."""
    return id.replace(":", "-").replace("_", "-")


def index_page() -> str:
    """The list of instructions."""
    rows = [f"| [`{id}`]({stem(id)}.md) | {first_sentence(PAGES[id].meaning)} |" for id in RULES]
    paragraphs = "\n\n".join(wrapped(paragraph) for paragraph in INTRODUCTION)
    table = "\n".join(["| instruction | followed if |", "|---|---|", *rows])
    return f"# Checkable instructions\n\n{paragraphs}\n\n{table}\n"


def instruction_page(id: str, example: Example) -> str:
    """The page of one instruction."""
    page = PAGES[id]
    if set(page.arguments) != set(example.instruction["kwargs"]):
        raise SystemExit(f"scripts/docs: {id}: PAGES names {set(page.arguments)}, the rule takes another set")
    if bool(page.google) != ("check_google" in vars(RULES[id])):
        raise SystemExit(f"scripts/docs: {id}: PAGES and the rule disagree on whether google mode has its own verdict")
    rows = [f"| `{name}` | {values} | {meaning} |" for name, (values, meaning) in page.arguments.items()]
    table = "\n".join(["| argument | values | meaning |", "|---|---|---|", *rows]) if rows else "None."
    alone = [other for other in RULES if other != id and other in CONFLICTS[id]]
    company = ", ".join(f"[`{other}`]({stem(other)}.md)" for other in alone) or "nothing else"
    return (
        f"# {id}\n\n{wrapped(page.meaning)}\n\n"
        f"## Arguments\n\n{table}\n\n"
        f"## Example\n\n```json\n{json.dumps(example.instruction, ensure_ascii=False)}\n```\n\n"
        f"Followed:\n\n```text\n{example.follows}\n```\n\nNot followed:\n\n```text\n{example.breaks}\n```\n\n"
        f"From conversation `{example.key}` of the set that the package ships.\n\n"
        f"## Modes\n\n{wrapped(f'{page.modes} {page.google}'.strip())}\n\n"
        f"## Languages\n\n{page.languages}\n\n"
        f"## Company\n\n{wrapped(f'Generated prompts never put it beside {company}.')}\n"
    )


def shipped_examples() -> dict[str, Example]:
    """For each instruction the first passing and failing reply to the turn that brings it, the first language's."""
    file = resources.files("llamarl.evals") / "assets" / "replies.jsonl"
    replies = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    by_place = {(reply["key"], reply["turn"], reply["kind"]): reply for reply in replies}
    found: dict[str, Example] = {}
    for conversation in read_conversations("builtin"):
        for number, turn in enumerate(conversation.turns, start=1):
            good, bad = (by_place[conversation.key, number, kind] for kind in ("pass", "fail"))
            for position, instruction in enumerate(turn.instructions):
                if not bad["expected"][position] and instruction["id"] not in found:
                    found[instruction["id"]] = Example(instruction, good["response"], bad["response"], conversation.key)
    return found


def wrapped(text: str) -> str:
    """The text in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends one."""
    return text.partition(". ")[0].removesuffix(".") + "."
