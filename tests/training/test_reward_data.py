import json

import duckdb
import pytest
from released_templates import released_tokenizer

from llamarl.core.errors import DataError
from llamarl.models.tiny import char_tokenizer
from llamarl.training.examples import ConversationEncoder, Example, hold_out, read_examples, without_leaks
from llamarl.training.objectives import RewardConfig

TOKENIZER = char_tokenizer("plain")
STRICT, LENIENT = RewardConfig(max_tokens=200), RewardConfig(max_tokens=200, on_bad_row="skip")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(rows, config=STRICT, kind="pairs"):
    return read_examples(rows, kind, ConversationEncoder(TOKENIZER, config.is_response_only), config)


def texts(example):
    return [TOKENIZER.decode(ids, skip_special=False) for ids in example.sequences]


PAIR = {"prompt": "2+2", "chosen": "four", "rejected": "5"}
RENDERED = ["<|user|>2+2<|assistant|>four<eos>", "<|user|>2+2<|assistant|>5<eos>"]


# formats


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [user("2+2")], "chosen": [assistant("four")], "rejected": [assistant("5")]},
        {"prompt": "2+2", "chosen": [assistant("four")], "rejected": [assistant("5")]},
        {"chosen": [user("2+2"), assistant("four")], "rejected": [user("2+2"), assistant("5")]},
        {"prompt": "2+2", "chosen": [user("2+2"), assistant("four")], "rejected": [user("2+2"), assistant("5")]},
        {"prompt": [user("2+2")], "chosen": "four", "rejected": "5"},
        {"prompt": [user("2+2")], "chosen": "four", "rejected": [assistant("5")]},
        {"prompt": "2+2", "chosen": [assistant("four")], "rejected": "5"},
        {"chosen": "2+2four", "rejected": "2+25"},
        {**PAIR, "margin": None, "score_chosen": 3, "source": "x"},
    ],
)
def test_every_format_of_a_pair_gives_the_same_example(row):
    (example,) = read([row]).examples
    assert texts(example) == RENDERED
    assert example.lengths == (5, 2)  # the end token included
    assert (example.target, example.prompt_key) == (0.0, read([PAIR]).examples[0].prompt_key)


def test_implicit_text_is_cut_before_a_space_that_both_share():
    (example,) = read([{"chosen": "The sky is blue", "rejected": "The sky is green"}]).examples
    assert texts(example)[0] == "<|user|>The sky is<|assistant|> blue<eos>"


def test_answers_of_several_turns_and_system_prompts():
    start = [{"role": "system", "content": "be brief"}, user("hi")]
    rows = [{"chosen": [*start, assistant("a"), user("b"), assistant("c")], "rejected": [*start, assistant("z")]}]
    (example,) = read(rows).examples
    assert texts(example)[0] == "<|system|>be brief<|user|>hi<|assistant|>a<eos><|user|>b<|assistant|>c<eos>"


def test_a_rejected_answer_may_begin_like_the_chosen_one():
    turns = [user("hi"), assistant("a")]
    (example,) = read([{"chosen": turns, "rejected": [*turns, user("b"), assistant("c")]}]).examples
    assert texts(example) == [
        "<|user|>hi<|assistant|>a<eos>",
        "<|user|>hi<|assistant|>a<eos><|user|>b<|assistant|>c<eos>",
    ]


def test_margins_and_labels():
    assert read([{**PAIR, "margin": "0.5"}]).examples[0].target == 0.5
    rows = [{"prompt": "p", "completion": f"c{i}", "label": label} for i, label in enumerate([True, 0, "False", " 1"])]
    examples = read(rows, kind="labels").examples
    assert [example.target for example in examples] == [1.0, 0.0, 0.0, 1.0]
    assert texts(examples[0]) == ["<|user|>p<|assistant|>c0<eos>"]


def test_a_labelled_row_mixes_text_and_messages():
    rows = [{"prompt": p, "completion": c, "label": 1} for p in ("p", [user("p")]) for c in ("c", [assistant("c")])]
    assert len({read([row], kind="labels").examples[0].key for row in rows}) == 1


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def test_a_call_is_read_as_the_template_writes_it_or_the_row_is_bad():
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"prompt": "2+3", "chosen": [call], "rejected": "5"}
    tokenizer = released_tokenizer("llama3")
    (example,) = read_examples([row], "pairs", ConversationEncoder(tokenizer), STRICT).examples
    assert '{"name": "add", "parameters": {"a": 2}}<|eom_id|>' in tokenizer.decode(example.sequences[0], False)
    shown = {**row, "chosen": [{**call, "content": ""}]}
    with pytest.raises(DataError, match=r"rows, line 1: .*leaves out the messages' tool_calls"):
        read([shown])
    labelled = {"prompt": "2+3", "completion": [call], "label": True}
    config = RewardConfig(is_response_only=True)
    with pytest.raises(DataError, match="field 'completion': the answer has no text"):
        read([labelled], config, "labels")


def test_a_classifier_may_see_the_response_alone():
    config = RewardConfig(is_response_only=True)
    (example,) = read([{"prompt": "p", "completion": "no way", "label": False}], config, "labels").examples
    assert texts(example) == ["no way<eos>"] and example.lengths == (7,)


def test_tools_reach_the_template():
    tokenizer, tools = char_tokenizer("chatml"), [{"name": "add"}]
    plain, listed, text = (
        read_examples([{**PAIR, "tools": value}], "pairs", ConversationEncoder(tokenizer), STRICT).examples[0]
        for value in (None, tools, json.dumps(tools))
    )
    assert listed == text and "Tools:" in tokenizer.decode(listed.sequences[0])
    assert plain.prompt_key != listed.prompt_key


def test_files_of_every_kind_read_alike(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\n2+2,four,5,\n")
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT '2+2' prompt, 'four' chosen, '5' rejected) TO '{tmp_path}/a.parquet'")
    for suffix in ("jsonl", "csv", "parquet"):
        assert read(tmp_path / f"a.{suffix}").examples == read([PAIR]).examples


# bad rows


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing_field", "field 'rejected'.*a pair has 'chosen' and 'rejected'"),
        ({**PAIR, "rejected": "four"}, "equal_answers", "chosen and rejected are equal; remove the row"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
            "equal_answers",
            "are equal",
        ),
        ({"chosen": "abc", "rejected": "xyz"}, "no_prompt", "share no start; add a column 'prompt'"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "no_prompt",
            "no first mess",
        ),
        ({"chosen": [assistant("b")], "rejected": [assistant("d")]}, "no_prompt", "the answers hold none"),
        ({**PAIR, "chosen": 4}, "bad_messages", "4 is no list of messages; give text or a list of"),
        (
            {**PAIR, "chosen": [{"role": "bot", "content": "a"}], "rejected": [assistant("b")]},
            "bad_role",
            "'bot' is no role",
        ),
        ({**PAIR, "chosen": [user("a")], "rejected": [user("b")]}, "bad_messages", "last message is of role 'user'"),
        ({**PAIR, "margin": "much"}, "bad_margin", "'much' is no finite number"),
        ({**PAIR, "margin": "inf"}, "bad_margin", "'inf' is no finite number"),
        ({**PAIR, "tools": "add"}, "bad_tools", "'add' is no list; give a list of JSON schemas"),
        ({**PAIR, "prompt": "\ud800"}, "lone_surrogate", r"field 'prompt': half a surrogate pair: '\\ud800'; repair"),
        ({"chosen": "p: \ud83d", "rejected": "p: a"}, "lone_surrogate", "field 'chosen': half a surrogate pair"),
        (
            {**PAIR, "chosen": [assistant("b\udc00")], "rejected": [assistant("d")]},
            "lone_surrogate",
            r"field 'chosen\[0\].content': half a surrogate pair",
        ),
        ({**PAIR, "tools": [{"name": "\ud800"}]}, "lone_surrogate", r"field 'tools\[0\].name': half a surrogate pair"),
        ({**PAIR, "chosen": "x" * 300}, "too_long", "306 tokens; max_tokens is 200"),
    ],
)
def test_a_bad_pair_is_an_error_with_its_place_or_counted(row, reason, words):
    with pytest.raises(DataError, match=f"rows, line 2.*{words}.*on_bad_row='skip'"):
        read([{**PAIR, "prompt": "other"}, row])
    data = read([{**PAIR, "prompt": "other"}, row], LENIENT)
    assert len(data.examples) == 1 and data.skip_counts == {reason: 1}


def test_a_template_that_refuses_is_a_bad_row():
    rows = [
        {
            "prompt": [{"role": "system", "content": "x"}, user("y")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        }
    ]
    with pytest.raises(DataError, match="line 1: the chat template refuses"):
        read_examples(rows, "pairs", ConversationEncoder(char_tokenizer("gemma")), STRICT)


def test_bad_labels():
    for row, words in [
        ({"prompt": "p", "completion": "c"}, "field 'label'"),
        ({"prompt": "p", "completion": "c", "label": "good"}, "'good' is neither true nor false"),
    ]:
        with pytest.raises(DataError, match=words):
            read([row], kind="labels")


def test_a_duplicate_is_refused_or_its_first_kept():
    rows = [PAIR, {**PAIR, "prompt": "other"}, {**PAIR, "margin": 1.0}]
    with pytest.raises(DataError, match="rows, line 3: the same as rows, line 1; remove it"):
        read(rows)
    data = read(rows, LENIENT)
    assert [example.target for example in data.examples] == [0.0, 0.0] and data.skip_counts == {"duplicate": 1}


def test_a_contradiction_is_refused_or_neither_kept():
    rows = [PAIR, {**PAIR, "chosen": "5", "rejected": "four"}, PAIR, {**PAIR, "prompt": "other"}]
    with pytest.raises(DataError, match="rows, line 2: says the opposite of rows, line 1"):
        read(rows)
    data = read(rows, LENIENT)
    assert len(data.examples) == 1 and data.skip_counts == {"contradiction": 2, "duplicate": 1}


def test_labels_contradict_each_other_too():
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in (True, True, False)]
    with pytest.raises(DataError, match="the same as rows, line 1"):
        read(rows, kind="labels")
    with pytest.raises(DataError, match="no usable row; the first of 3 bad rows"):
        read(rows, LENIENT, kind="labels")


def test_nothing_usable_is_an_error():
    with pytest.raises(DataError, match="no usable row"):
        read([])
    with pytest.raises(DataError, match="no usable row; the first of 1 bad rows: rows, line 1"):
        read([{}], LENIENT)


# sides


def many(count, start=0):
    return [{"prompt": f"p{i // 2}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(start, start + count)]


def test_no_prompt_is_on_both_sides_and_the_split_is_stable_under_growth():
    train, held_out = hold_out(read(many(400)).examples, 0.25)
    assert len(train) + len(held_out) == 400 and 60 < len(held_out) < 140
    assert not {e.prompt_key for e in train} & {e.prompt_key for e in held_out}
    _, grown = hold_out(read(many(500)).examples, 0.25)
    assert {e.key for e in held_out} <= {e.key for e in grown}
    assert hold_out(read(many(4)).examples, 0.0) == (list(read(many(4)).examples), [])


def test_a_split_that_leaves_a_side_empty_is_refused():
    with pytest.raises(DataError, match=r"held_out=0.1 of 1 prompts leaves 2 rows to train on and 0 to measure on"):
        hold_out(read(many(2)).examples, 0.1)


def test_evaluation_prompts_in_the_training_data_are_refused_or_left_out_of_training():
    train, evaluation = read(many(6)), read([{"prompt": "p0", "chosen": "new", "rejected": "old"}])
    with pytest.raises(DataError, match=r"data\.jsonl: 2 training rows have a prompt of the evaluation data"):
        without_leaks(train, evaluation.examples, STRICT, "data.jsonl")
    kept, num_leaks = without_leaks(train, evaluation.examples, LENIENT, "data.jsonl")
    assert (len(kept), num_leaks) == (4, 2)
    with pytest.raises(DataError, match="nothing is left to train on"):
        without_leaks(read(many(2)), evaluation.examples, LENIENT, "data.jsonl")


def implicit(*texts):
    """Rows without a prompt column, of consecutive texts."""
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return read([{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs])


def leaks(train, evaluation):
    try:
        return without_leaks(train, evaluation.examples, LENIENT, "data.jsonl")[1]
    except DataError:
        return len(train.examples)


@pytest.mark.parametrize("prompt", ["WRITE 3 words", " Write  3\twords\n", "write 3 words"])
def test_prompts_are_told_apart_without_regard_to_case_and_spaces(prompt):
    evaluation = read([{**PAIR, "prompt": "Write 3 words"}, {**PAIR, "prompt": [user("Write 4 words")]}])
    assert leaks(read([{**PAIR, "prompt": prompt}]), evaluation) == 1
    assert leaks(read([{**PAIR, "prompt": "Write 3 words, please"}, {**PAIR, "prompt": "Write 3"}]), evaluation) == 0


@pytest.mark.parametrize(
    ("chosen", "rejected", "start"),
    [
        ("\n\nHuman: Hi\n\nAssistant: I am", "\n\nHuman: Hi\n\nAssistant: I do", "\n\nHuman: hi\n\nAssistant: You "),
        ("### Instruction:\nadd\n### Response:\nso 4", "### Instruction:\nadd\n### Response:\nso 5", None),
        ("[INST] add\n [/INST] so 4", "[INST] add\n [/INST] so 5", "[INST] add [/INST] but "),
        ("<|im_start|>user\n2\n<|im_start|>assistant\nso 4", "<|im_start|>user\n2\n<|im_start|>assistant\nso 5", None),
        ("write a word moon", "write a word mars", "Write a word "),
        ("write a word moon", "write a word moor", "Write a word the "),
    ],
)
def test_whole_texts_of_one_prompt_are_a_leak_although_their_answers_begin_alike(chosen, rejected, start):
    start = start or chosen.rpartition("so")[0] + "but "
    train, evaluation = implicit(chosen, rejected), implicit(f"{start}x1", f"{start}y2")
    assert leaks(train, evaluation) == leaks(evaluation, train) == 1
    assert hold_out_sides([*train.examples, *evaluation.examples]) == 1


def hold_out_sides(examples):
    """On how many sides these examples are, whatever the share."""
    fillers = [Example(((index, 1), (index, 2)), (1, 1), f"user filler {index}", 0.0) for index in range(200)]
    return max(
        sum(any(example in side for example in examples) for side in hold_out([*examples, *fillers], share / 50))
        for share in range(5, 46)
    )


def test_an_open_prompt_is_any_prompt_that_it_begins_with_but_no_other():
    known = read([{**PAIR, "prompt": text} for text in ("write", "write 3 words", "write 30 words")])
    assert leaks(known, implicit("write 3 words so moon", "write 3 words so sun")) == 2
    assert leaks(known, implicit("read 3 words moon", "read 3 words sun")) == 0
    three = [*known.examples[:2], *implicit("write 3 words so moon", "write 3 words so sun").examples]
    assert hold_out_sides(three) == 1
    with pytest.raises(DataError, match="where texts only begin alike, give both files a column 'prompt'"):
        without_leaks(implicit("add 2 is 4", "add 2 is 5"), implicit("add 2", "add 3").examples, STRICT, "d")
