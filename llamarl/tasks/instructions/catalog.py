"""The instructions that prompts may ask for: the 25 of IFEval and Multi-IF. Their checkers are in `judges.rules`."""

from collections.abc import Mapping
from typing import Any

Instruction = Mapping[str, Any]
"""`{"id": "keywords:existence", "kwargs": {"keywords": ["river"]}}`; a judge takes one without `kwargs` too."""

IDS = (
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "startend:quotation",
)
"""Every instruction once. Their order decides which are drawn: another one gives other prompts for a seed."""
