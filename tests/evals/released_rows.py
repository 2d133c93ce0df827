"""Rows in the form of the released Multi-IF data, made up."""

import csv
import json

from llamarl.evals.conversations import read_conversations

COLUMNS = ["turns", "responses"]
COLUMNS += [f"turn_{n}_{field}" for n in (1, 2, 3) for field in ("prompt", "instruction_id_list", "kwargs")]
COLUMNS += ["key", "turn_index", "language"]

NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
LOWER = {"id": "change_case:english_lowercase", "kwargs": {}}
TITLE = {"id": "detectable_format:title", "kwargs": {}}


def keyword(word):
    return {"id": "keywords:existence", "kwargs": {"keywords": [word]}}


def released_row(key, language, instructions, num_turns=3, missing=""):
    """Turn t asks for the first t instructions; turns beyond `num_turns` are missing."""
    row = {"turns": "", "responses": "", "key": key, "turn_index": "0", "language": language}
    for turn in (1, 2, 3):
        here = instructions[:turn]
        has_turn = turn <= num_turns
        message = json.dumps({"role": "user", "content": f"{key}, turn {turn}"})
        row[f"turn_{turn}_prompt"] = message if has_turn else missing
        row[f"turn_{turn}_instruction_id_list"] = json.dumps([i["id"] for i in here]) if has_turn else missing
        row[f"turn_{turn}_kwargs"] = json.dumps([json.dumps(i["kwargs"]) for i in here]) if has_turn else missing
    return row


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def small_set():
    """English and French, one conversation of two turns."""
    rows = [
        released_row("1:0:en", "English", [NO_COMMA, keyword("river"), NO_COMMA]),
        released_row("2:0:en", "English", [keyword("sun"), NO_COMMA, keyword("moon")]),
        released_row("3:0:fr", "French", [NO_COMMA, keyword("mer"), TITLE]),
        released_row("4:0:fr", "French", [NO_COMMA, TITLE], num_turns=2),
    ]
    return read_conversations(rows)
