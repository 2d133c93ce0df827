import pytest
from released_templates import released_tokenizer

from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import load_tokenizer, new_model, save_model
from llamarl.models.template_args import check_template_args, parse_template_args
from llamarl.models.tiny import build_tiny, tiny_config

CHAT = [{"role": "user", "content": "a"}]
SHOWS = "\n{{ messages[0].content }} {{ note | tojson }}"


def test_arguments_reach_every_text_and_the_fingerprint():
    plain, silent = released_tokenizer("qwen3"), released_tokenizer("qwen3", enable_thinking=False)
    assert silent.render(CHAT) == plain.render(CHAT) + "<think>\n\n</think>\n\n"
    assert silent.encode_chat(CHAT) == silent.encode(silent.render(CHAT))
    assert silent.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    "value", [False, True, None, 3, -0.5, 'it\'s "so"\n\\ é🙂 {{ x }}', [1, None], {"a": {"b": None}}]
)
def test_a_saved_template_renders_alike_without_arguments_and_still_takes_others(value):
    tokenizer = released_tokenizer("qwen3", SHOWS, note=value)
    saved = tokenizer.with_default_args()
    assert saved.chat_template_args == {} and saved.render(CHAT) == tokenizer.render(CHAT)
    saved.chat_template_args = {"note": "other"}
    assert saved.render(CHAT) == '\na "other"'
    assert tokenizer.backend.chat_template == SHOWS


def test_an_export_carries_them(tmp_path):
    tokenizer = released_tokenizer("qwen3", enable_thinking=False)
    save_model(new_model(tiny_config("llama", tokenizer), 0), tokenizer, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").render(CHAT) == tokenizer.render(CHAT)
    thinks = load_tokenizer(tmp_path / "out", {"enable_thinking": True})
    assert thinks.render(CHAT) == released_tokenizer("qwen3").render(CHAT)


def test_a_table_or_its_json_text():
    assert parse_template_args('{"a": [1, null]}') == parse_template_args({"a": [1, None]}) == {"a": [1, None]}
    assert parse_template_args(None) == {}


# rejects


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("enable_thinking", "give a JSON object"),
        ("[1]", "dictionary"),
        (3, "dictionary"),
        ({"tools": []}, "tools is not"),
    ],
)
def test_rejects_what_is_no_table_or_not_to_be_chosen(value, problem):
    with pytest.raises(ConfigError, match=f"chat_template_args: .*{problem}"):
        parse_template_args(value)


def test_rejects_an_argument_that_the_template_never_reads(tmp_path):
    template = released_tokenizer("qwen3").backend.chat_template
    check_template_args(template, {"enable_thinking": False})
    with pytest.raises(ConfigError, match=r"chat_template_args\.enable_thinkng: .*; did you mean 'enable_thinking'\?"):
        check_template_args(template, {"enable_thinkng": False})
    with pytest.raises(ConfigError, match=r"chat_template_args\.enable_thinking: .*no such variable; leave it out"):
        load_tokenizer(build_tiny("llama", tmp_path / "m"), {"enable_thinking": False})
