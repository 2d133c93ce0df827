"""Writes a reply that follows a list of instructions: the proof that they can be followed together."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llamarl.judges.rules.words import count_words

FILLER = {
    "en": [
        "There is a lot to tell about this",
        "Many people learn it as children",
        "In the end it is good for us all",
        "Old friends often meet there and talk",
        "It is simple and it makes us happier",
    ],
    "fr": [
        "Il y a beaucoup de choses à dire ici",
        "Les gens l'apprennent dans leur enfance",
        "Tout le monde aime en parler le matin",
        "On se retrouve là entre amis",
        "Cela reste simple pour les parents",
    ],
    "ru": [
        "Об этом можно рассказать очень много",
        "Люди узнают это ещё в детстве",
        "Старые друзья любят говорить об этом",
        "Это просто и приятно для всех",
        "Мы думаем об этом каждый день",
    ],
    "hi": [
        "इसके बारे में बहुत कुछ कहा जा सकता है",
        "लोग इसे बचपन में ही सीख लेते हैं",
        "पुराने मित्र इस पर बातें करते हैं",
        "यह सबके लिए बहुत सरल और अच्छा है",
        "हम हर दिन इसके बारे में सोचते हैं",
    ],
    "it": [
        "Ci sono molte cose da dire su questo",
        "La gente lo impara da bambini",
        "Tutti amano parlarne al mattino",
        "Gli amici si trovano insieme e discutono",
        "Il risultato resta semplice per noi",
    ],
    "pt": [
        "Há muitas coisas a dizer sobre isto",
        "As pessoas aprendem isso na infância",
        "Todos gostam de falar disso de manhã",
        "Os amigos se encontram ali e conversam",
        "Isso continua simples para os pais",
    ],
    "es": [
        "Hay muchas cosas para contar sobre esto",
        "La gente lo aprende en la infancia",
        "Todos disfrutan al hablar de ello",
        "Los amigos se encuentran allí y charlan",
        "Esto sigue siendo simple para los padres",
    ],
    "zh": [
        "关于这件事可以说很多话",
        "大家小时候就知道它",
        "老朋友常常一起谈论它",
        "这对我们都很简单",
        "我们每天都会想到这个问题",
    ],
}
STOPS = {"hi": "।", "zh": "。"}


def solve(instructions: Sequence[Mapping[str, Any]], language: str) -> str:
    """A reply in the language, or in the one that is asked for."""
    by_id = {instruction["id"]: instruction["kwargs"] for instruction in instructions}
    is_english = "change_case:english_capital" in by_id or "change_case:english_lowercase" in by_id
    spoken = by_id.get("language:response_language", {}).get("language", "en" if is_english else language)
    text = _Writer(by_id, spoken).text()
    if "change_case:english_capital" in by_id:
        return text.upper()
    return text.lower() if "change_case:english_lowercase" in by_id else text


class _Writer:
    def __init__(self, by_id: Mapping[str, Mapping[str, Any]], language: str) -> None:
        self.by_id, self.stop = by_id, STOPS.get(language, ".")
        self.gap = "" if language == "zh" else " "
        self.filler = [line for line in FILLER[language] if self._is_allowed(line)]
        self.next = 0

    def text(self) -> str:
        sentences, words = (
            self._at_least("number_sentences", "num_sentences"),
            self._at_least("number_words", "num_words"),
        )
        is_short = self.by_id.get("length_constraints:number_sentences", {}).get("relation") == "less than"
        extra = [self.sentence() for _ in range(sentences - len(self._blocks()))]
        body = self._compose(extra, [])
        more: list[str] = []
        while count_words(body) < words + 5 * bool(words):
            (more if is_short else extra).append(self.line() if is_short else self.sentence())
            body = self._compose(extra, more)
        return body

    def line(self) -> str:
        self.next += 1
        return self.filler[self.next % len(self.filler)]

    def sentence(self) -> str:
        return self.line() + self.stop

    def brief(self) -> str:
        return " ".join(self.line().split()[:4])

    def _is_allowed(self, line: str) -> bool:
        letter = self.by_id.get("keywords:letter_frequency", {})
        words = self.by_id.get("keywords:forbidden_words", {}).get("forbidden_words", [])
        words = [*words, self.by_id.get("keywords:frequency", {}).get("keyword", "\0")]
        is_rare = letter.get("let_relation") == "less than"
        return not any(w in line.lower() for w in words) and not (is_rare and letter["letter"] in line.lower())

    def _at_least(self, id: str, name: str) -> int:
        kwargs = self.by_id.get(f"length_constraints:{id}", {})
        return kwargs[name] if kwargs.get("relation") == "at least" else 0

    def _compose(self, extra: list[str], more: list[str]) -> str:
        self.next = 0
        kwargs = self.by_id
        blocks = self._blocks()
        blocks[0] = self._inner(blocks[0], extra, more)
        if "detectable_content:postscript" in kwargs:
            blocks[-1] += f"\n{kwargs['detectable_content:postscript']['postscript_marker']} {self.sentence()}"
        if "startend:end_checker" in kwargs:
            blocks[-1] += f"\n{kwargs['startend:end_checker']['end_phrase']}"
        divider = "\n***\n" if "length_constraints:number_paragraphs" in kwargs else "\n\n"
        text = ("\n******\n" if "combination:two_responses" in kwargs else divider).join(blocks)
        if "combination:repeat_prompt" in kwargs:
            text = f"{kwargs['combination:repeat_prompt']['prompt_to_repeat']}\n{text}"
        if "detectable_format:json_format" in kwargs:
            return json.dumps({"answer": text.replace("\n", " ")}, ensure_ascii=False)
        return f'"{text}"' if "startend:quotation" in kwargs else text

    def _blocks(self) -> list[str]:
        by_id = self.by_id
        number = 2 if "combination:two_responses" in by_id else 1
        number = by_id.get("length_constraints:number_paragraphs", {}).get("num_paragraphs", number)
        first = by_id.get("length_constraints:nth_paragraph_first_word", {})
        blocks = [self.line() for _ in range(first.get("num_paragraphs", number))]
        if first:
            nth = first["nth_paragraph"] - 1
            blocks[nth] = f"{first['first_word'].capitalize()} {blocks[nth]}"
        return [block + self.stop for block in blocks]

    def _inner(self, block: str, extra: list[str], more: list[str]) -> str:
        """The first block with everything that has no place of its own, one sentence of its own holding the tokens."""
        tokens = self._tokens()
        if tokens or more:
            block = block[:-1] + " " + " ".join([*more, *tokens]) + self.stop
        if "detectable_format:title" in self.by_id:
            block = f"<<{self.brief()}>>\n{block}"
        if "detectable_format:constrained_response" in self.by_id:
            block += " My answer is yes."
        block += self.gap + self.gap.join(extra) if extra else ""
        sections = self.by_id.get("detectable_format:multiple_sections", {"num_sections": 0, "section_spliter": ""})
        for number in range(1, sections["num_sections"] + 1):
            block += f"\n{sections['section_spliter']} {number}\n{self.brief()}{self.stop}"
        for _ in range(self.by_id.get("detectable_format:number_bullet_lists", {}).get("num_bullets", 0)):
            block += f"\n* {self.brief()}{self.stop}"
        return block

    def _tokens(self) -> list[str]:
        by_id = self.by_id
        words = [word for word in self.filler[0].split() if len(word) > 1]
        tokens = list(by_id.get("keywords:existence", {}).get("keywords", []))
        frequency, letter = by_id.get("keywords:frequency", {}), by_id.get("keywords:letter_frequency", {})
        capital = by_id.get("change_case:capital_word_frequency", {})
        if frequency.get("relation") == "at least":
            tokens += [frequency["keyword"]] * frequency["frequency"]
        if letter.get("let_relation") == "at least":
            tokens += [letter["letter"] * 2] * ((letter["let_frequency"] + 1) // 2)
        if capital.get("capital_relation") == "at least":
            tokens += ["DNA"] * capital["capital_frequency"]
        placeholders = by_id.get("detectable_content:number_placeholders", {}).get("num_placeholders", 0)
        highlights = by_id.get("detectable_format:number_highlighted_sections", {}).get("num_highlights", 0)
        tokens += [f"[{words[n % len(words)]}]" for n in range(placeholders)]
        return tokens + [f"*{words[n % len(words)]}*" for n in range(highlights)]
