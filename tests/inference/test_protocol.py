"""Bodies of requests: what is done, what is refused by name, what is ignored."""

import pytest
from pydantic import ValidationError

from llamarl.core.config import describe_errors
from llamarl.inference.protocol import ChatBody, CompletionBody

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_body_becomes_the_sampling_that_it_asks_for() -> None:
    body = CompletionBody.model_validate(
        {"prompt": "a", "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "stop": "x", "n": 2, "logprobs": 0}
    )
    sampling = body.sampling(7)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.stop) == (0, 0.1, ("x",))
    assert (body.max_tokens, body.num_top) == (16, 0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("ab", ("ab",)), ([1, 2], ((1, 2),)), (["a", "b"], ("a", "b")), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_a_prompt_is_text_or_ids_or_several_of_them(prompt: object, prompts: object) -> None:
    assert CompletionBody.model_validate({"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize(
    "field",
    [
        *({"echo": True}, {"suffix": "b"}, {"best_of": 2}, {"logit_bias": {"5": 1}}, {"frequency_penalty": 0.1}),
        *({"presence_penalty": 1}, {"repetition_penalty": 1.1}, {"ignore_eos": True}, {"stop_token_ids": [3]}),
        *({"min_tokens": 1}, {"prompt_logprobs": 0}, {"echo": 1}),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(field: dict[str, object]) -> None:
    (name,) = field
    with pytest.raises(ValidationError, match=f"{name}: is not done here"):
        CompletionBody.model_validate({"prompt": "a", **field})


@pytest.mark.parametrize(
    "field",
    [
        *({"tools": [{}]}, {"tool_choice": "required"}, {"response_format": {"type": "json_object"}}),
        *({"reasoning_effort": "low"}, {"modalities": ["audio"]}, {"functions": [{}]}, {"verbosity": "low"}),
    ],
)
def test_so_is_one_of_a_chat(field: dict[str, object]) -> None:
    (name,) = field
    with pytest.raises(ValidationError, match=f"{name}: is not done here"):
        ChatBody.model_validate({"messages": HELLO, **field})


def test_what_changes_nothing_is_ignored() -> None:
    neutral = {"echo": False, "best_of": 1, "logit_bias": {}, "frequency_penalty": 0.0, "suffix": None, "stop": None}
    body = CompletionBody.model_validate({"prompt": "a", "user": "me", "metadata": {"a": "b"}, **neutral})
    assert body == CompletionBody(prompt="a")
    chat = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert ChatBody.model_validate({"messages": HELLO, "service_tier": "auto", **chat}) == ChatBody.model_validate(
        {"messages": HELLO}
    )


def test_an_unknown_name_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="max_tokenz"):
        CompletionBody.model_validate({"prompt": "a", "max_tokenz": 3})


def test_content_may_come_in_parts_of_text() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    history = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None}
    body = ChatBody.model_validate({"messages": [history, {"role": "user", "content": parts}]})
    assert [message.turn() for message in body.messages] == [
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content: required"),
        ({"messages": [{"role": "king", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text"),
        ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs: needs logprobs"),
        ({"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, "differs from max_tokens"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "needs stream: true"),
        ({"messages": HELLO, "n": 0}, "n"),
        ({"messages": HELLO, "top_p": 0.0}, "top_p"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "seed": 1 << 63}, "seed"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatBody.model_validate(values)


@pytest.mark.parametrize("prompt", [[], [[]], [1.5], [True], [[1, "a"]], 5, ["a"] * 129])
def test_a_prompt_that_is_none_gets_one_message(prompt: object) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate({"prompt": prompt})
    message = describe_errors(caught.value, CompletionBody)
    assert message.startswith("prompt: must be text, token ids, or 1 to 128 of either; got ")
    assert "\n" not in message


def test_a_wrong_message_is_not_told_of_as_a_missing_one() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"messages": [{"role": "user"}]})
    assert describe_errors(caught.value, ChatBody) == "messages.0: content: required, but not given"
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"messages": []})
    assert describe_errors(caught.value, ChatBody) == "messages: must have at least 1 entries; got []"
