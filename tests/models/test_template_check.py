import pytest
from released_templates import RELEASED, released_tokenizer

from llamarl.core.errors import ConfigError
from llamarl.models.template_check import check_template
from llamarl.models.templates import STYLES
from llamarl.models.tiny import char_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer

# Qwen3's manner: thinking stays in the last answer only.
DROPS_THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|{{ m['role'] }}|>{{ c }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# DeepSeek-R1's manner: the generation prompt opens a thinking block that the history leaves out.
OPENS_THINKING = STYLES["plain"].template.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
# Mistral 7B v0.3's manner: the system message moves to the last user message.
MOVES_SYSTEM = (
    "{% set sys = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>"
    "{% if loop.last or loop.index == loop.length - 1 %}{% if m['role'] == 'user' %}{{ sys }}{% endif %}{% endif %}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_with(template, style="plain"):
    tokenizer = char_tokenizer(style)
    tokenizer.backend.chat_template = template
    return tokenizer


def check(tokenizer, **options):
    return check_template(tokenizer, tiny_config("llama", tokenizer), **options)


@pytest.mark.parametrize("style", STYLES)
def test_every_shipped_style_keeps_history(style):
    report = check(char_tokenizer(style), is_multi_turn=True)
    assert set(report.limits) == (set() if style == "chatml" else {"tools_ignored"})


@pytest.mark.parametrize(
    ("family", "limits", "refused"),
    [
        ("smollm2", set(), ()),
        ("qwen2.5", set(), ()),
        ("qwen3", {"thinking_dropped", "tools_ignored"}, ("tool called",)),
        ("deepseek-r1", {"thinking_dropped", "tools_ignored"}, ("tool called",)),
        ("llama3", {"tools_ignored"}, ()),
        (
            "mistral",
            {"history_rewritten", "tools_ignored"},
            ("tool called",),
        ),
        ("gemma", {"tools_ignored"}, ("one turn with system", "two turns with system", "tool called")),
    ],
)
def test_the_forms_of_released_templates_pass_with_their_limits(family, limits, refused):
    report = check(released_tokenizer(family))
    assert (set(report.limits), report.refused) == (limits, refused)


@pytest.mark.parametrize("family", [family for family, made in RELEASED.items() if made.bos])
def test_a_second_bos_in_front_is_refused_whatever_else_the_token_stands_for(family):
    doubled = "{{ bos_token }}" + RELEASED[family].template
    with pytest.raises(ConfigError, match="starts with two"):
        check(released_tokenizer(family, doubled))


def test_one_bos_where_template_and_tokenizer_both_write_it():
    tokenizer = released_tokenizer("llama3")
    assert tokenizer.backend.encode("a")[0] == tokenizer.bos_id
    ids = tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert ids.count(tokenizer.bos_id) == 1 and "no_bos" not in check(tokenizer).limits


def test_thinking_switched_off_by_an_argument():
    report = check(released_tokenizer("qwen3", enable_thinking=False))
    assert "thinking_dropped" in report.limits


def test_limits_are_told_where_prompts_meet_them():
    report = check(released_tokenizer("deepseek-r1"))
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    names = [
        {limit.split(":")[0] for limit in report.limits_for(prompts)}
        for prompts in (
            [([question], None), ([question], [])],
            [([question], [{"type": "function"}])],
            [([question, answer, question], None)],
        )
    ]
    assert names == [set(), {"tools_ignored"}, {"thinking_dropped"}]
    assert check(tokenizer_with(None)).limits_for([([question], None)])[0].startswith("no_template: ")


def test_a_model_that_only_reads_needs_no_end_token_and_no_generation_prompt():
    tokenizer = tokenizer_with(STYLES["plain"].template.replace("<|assistant|>{% endif %}", "<|tool|>{% endif %}"))
    config = tiny_config("llama", tokenizer)
    tokenizer.backend.eos_token = None
    report = check_template(Tokenizer(tokenizer.backend), config, is_policy=False)
    assert "turn_end" not in report.limits
    tokenizer.backend.chat_template = "{{ bos_token }}{{ bos_token }}" + tokenizer.backend.chat_template
    tokenizer.backend.bos_token = "<|system|>"
    with pytest.raises(ConfigError, match="starts with two"):
        check_template(Tokenizer(tokenizer.backend), config, is_policy=False)


# names of what a template does wrong, and the template
HOSTILE = {
    "attribute": "{{ messages.nothing.there }}",
    "undefined call": "{{ nothing() }}",
    "division": "{{ 1 / 0 }}",
    "unsafe": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "overflow": "{{ 2.0 ** 10000 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{% if true %}" * 300 + "x" + "{% endif %}" * 300,
    "deep expression": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "syntax": "{% for m in messages %}",
    "huge": "{% for a in range(9999) %}{% for b in range(999) %}{{ 'aaaaaaaa' }}{% endfor %}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "no text": "{{ none }}",
    "rewrites": "{{ messages[0].content | upper }}",
    "number": 7,
    "list": ["a"],
    "names without default": {"rag": "x"},
    "by name, no text": {"default": 7},
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_template_does_ends_in_one_error(template):
    with pytest.raises(ConfigError, match="chat template") as caught:
        check(tokenizer_with(template))
    assert len(str(caught.value)) < 2000


def test_names_the_chats_a_template_refuses():
    assert check(char_tokenizer("gemma")).refused == ("one turn with system", "two turns with system", "tool called")
    assert check(char_tokenizer("plain")).refused == ("tool called",)  # it has no place for the call


@pytest.mark.parametrize("template", [DROPS_THINKING, OPENS_THINKING])
def test_dropped_thinking_is_a_limit_even_for_several_turns(template):
    report = check(tokenizer_with(template), is_multi_turn=True)
    assert "one sample per turn" in report.limits["thinking_dropped"]


def test_rewritten_history_is_a_limit_for_single_turns_and_an_error_for_several():
    tokenizer = tokenizer_with(MOVES_SYSTEM)
    report = check(tokenizer)
    assert "two turns with system" in report.limits["history_rewritten"]
    with pytest.raises(ConfigError, match=r"(?s)two turns with system.*before: '<\|user.*after:"):
        check(tokenizer, is_multi_turn=True)


def test_a_turn_end_that_is_no_end_token_is_a_limit():
    report = check(tokenizer_with(STYLES["plain"].template.replace("{{ eos_token }}", "|")))
    assert "'|'" in report.limits["turn_end"]


def test_no_template_is_a_limit():
    report = check(tokenizer_with(None))
    assert set(report.limits) == {"no_template"}


def test_a_bos_that_only_plain_text_gets_is_a_limit():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(STYLES["llama3"].template.replace("{{ bos_token }}", ""), "llama3")
    bos = (tokenizer.backend.bos_token, tokenizer.bos_id)
    tokenizer.backend.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert "no_bos" in check(tokenizer).limits


def test_rejects_two_bos():
    with pytest.raises(ConfigError, match=r"starts with two '<\|begin_of_text\|>'"):
        check(tokenizer_with("{{ bos_token }}" + STYLES["llama3"].template, "llama3"))


def test_a_bos_that_is_also_the_end_token_may_end_turns_but_not_start_twice():
    tokenizer = tokenizer_with("{{ bos_token }}" + STYLES["plain"].template)
    tokenizer.backend.bos_token = "<eos>"
    assert "history_rewritten" not in check(tokenizer).limits
    tokenizer.backend.chat_template = "{{ bos_token }}" + tokenizer.backend.chat_template
    with pytest.raises(ConfigError, match="two '<eos>'"):
        check(tokenizer)


def test_rejects_a_generation_prompt_that_no_answer_follows():
    template = STYLES["plain"].template.replace("<|assistant|>{% endif %}", "<|tool|>{% endif %}")
    with pytest.raises(ConfigError, match=r"(?s)'one turn'.*before: '<\|user\|>Hello<\|tool\|>'"):
        check(tokenizer_with(template))


def test_rejects_a_template_that_refuses_a_plain_question():
    with pytest.raises(ConfigError, match="refuses messages"):
        check(tokenizer_with("{{ raise_exception('no') }}"))


def test_rejects_a_tokenizer_larger_than_the_embedding():
    tokenizer = char_tokenizer("plain")
    config = tiny_config("llama", tokenizer, vocab_size=tokenizer.vocab_size - 1)
    with pytest.raises(ConfigError, match="not of the same model"):
        check_template(tokenizer, config)


def test_rejects_end_ids_outside_the_vocabulary():
    with pytest.raises(ConfigError, match="up to 4000"):
        check(Tokenizer(char_tokenizer("plain").backend, (4000,)))


def test_rejects_end_tokens_that_disagree():
    tokenizer = char_tokenizer("plain")
    with pytest.raises(ConfigError, match=r"'<eos>' has id 2, but the model ends at \[5\]"):
        check_template(tokenizer, tiny_config("llama", tokenizer, eos_token_id=5))


def test_end_tokens_of_the_generation_config_count_as_agreement():
    tokenizer = char_tokenizer("plain")
    config = tiny_config("llama", tokenizer, eos_token_id=5)
    assert "history_rewritten" not in check_template(Tokenizer(tokenizer.backend, (2, 5)), config).limits


def test_rejects_a_tokenizer_without_end_token():
    tokenizer = char_tokenizer("plain")
    config = tiny_config("llama", tokenizer)
    tokenizer.backend.eos_token = None
    with pytest.raises(ConfigError, match="end token"):
        check_template(Tokenizer(tokenizer.backend), config)
