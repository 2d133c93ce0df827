import asyncio
import hashlib
import json

import pytest
import torch
from fake_server import Reply, transport
from scripted_chats import build_talker, conversation, conversations

from llamarl.core.errors import ConfigError
from llamarl.core.sampling import Sampling
from llamarl.evals.conversations import Conversation, Turn, read_conversations
from llamarl.evals.runner import hold_conversations, run_conversations
from llamarl.generation.chats import EndpointChat, NativeChat
from llamarl.models import checkpoint
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
from llamarl.models.tiny import build_tiny, char_tokenizer, tiny_config
from llamarl.testing import run_virtual

HELLO = [{"role": "user", "content": "hello"}]


# a server


def endpoint_chat(script, sampling=None, extra=None, **settings):
    config = EndpointConfig(base_url="http://server/v1", model="m", **settings)
    served = transport(script)
    return EndpointChat(ChatEndpoint(config, transport=served), sampling, extra=extra), served


def by_hash(body):
    """An answer that depends on everything in the request."""
    return Reply(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16])


def test_the_request_holds_conversation_sampling_and_a_seed_of_31_bits():
    sampling = Sampling(max_tokens=5, temperature=0.5, top_k=3, stop=("\n\n",))
    chat, served = endpoint_chat(Reply("yes"), sampling, {"reasoning_effort": "low"})
    reply = run_virtual(chat.reply(HELLO, (5 << 40) + 7))
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("yes", "stop", 7, 3)
    assert served.requests == [
        {
            "model": "m",
            "messages": HELLO,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 1.0,
            "seed": 7,
            "stop": ["\n\n"],
            "top_k": 3,
            "reasoning_effort": "low",
        }
    ]


def test_the_record_holds_what_answers_depend_on_and_no_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-value")
    chat, _ = endpoint_chat(Reply("yes"), Sampling(temperature=0.0), {"a": 1}, api_key_env="SOME_KEY")
    assert chat.record()["model"] == "m" and chat.record()["sampling"]["temperature"] == 0.0
    assert chat.record()["extra"] == {"a": 1}
    assert "secret" not in json.dumps(chat.record())


def first_fails(*failures):
    """Every second request is answered, the others get the failures in turn."""
    count = iter(range(10_000))

    def script(body):
        number = next(count)
        return failures[number // 2 % len(failures)] if number % 2 == 0 else by_hash(body)

    return script


def test_trouble_that_passes_leaves_no_trace_in_the_replies(tmp_path):
    """429 with a wish, 500, garbage, silence, a broken connection: each once before every answer."""
    trouble = (
        Reply(status=429, headers={"Retry-After": "20"}),
        Reply(status=500),
        Reply(body=b"<html>"),
        Reply(body=b'{"choices": []}'),
        Reply(hangs=True),
        Reply(drops=True),
    )
    smooth, _ = endpoint_chat(by_hash)
    rough, served = endpoint_chat(first_fails(*trouble), timeout_seconds=30.0)
    expected = run_virtual(hold_conversations(conversations(4), smooth, tmp_path / "smooth"))
    replies = run_virtual(hold_conversations(conversations(4), rough, tmp_path / "rough", max_in_flight=1))
    assert [r.response for r in replies] == [r.response for r in expected]
    assert [r.retries for r in replies] == [1] * 12 and len(served.requests) == 24


@pytest.mark.parametrize(
    "trouble",
    [Reply(status=429), Reply(status=503), Reply(body=b"\xff\x00 nothing"), Reply(body=b""), Reply(hangs=True)],
)
def test_trouble_that_stays_is_counted(tmp_path, trouble):
    def script(body):
        return trouble if "c1 asks 2" in body["messages"][-1]["content"] else Reply("fine")

    chat, served = endpoint_chat(script, max_retries=2)
    replies = run_virtual(hold_conversations(conversations(3), chat, tmp_path))
    assert [(r.key, r.turn) for r in replies if r.response is None] == [("c1", 2), ("c1", 3)]
    assert "after 3 tries" in next(r.error for r in replies if r.response is None)
    assert len(served.requests) == 1 + 3 + 6


@pytest.mark.parametrize(
    ("reply", "response"),
    [
        (Reply(""), ""),
        (Reply(None), ""),
        (Reply("x" * (1 << 20), finish_reason="length"), "x" * (1 << 20)),
        (Reply("half \ud83d here"), "half \ufffd here"),
        (Reply("\u202eمرحبا\u202c"), "\u202eمرحبا\u202c"),
    ],
    ids=["empty", "null", "megabyte", "lone surrogate", "right to left"],
)
def test_strange_replies_pass_into_the_next_question(tmp_path, reply, response):
    chat, served = endpoint_chat(reply)
    first, second = run_virtual(hold_conversations([conversation("a", 2)], chat, tmp_path))
    assert first.response == second.response == response
    assert served.requests[1]["messages"][1] == {"role": "assistant", "content": response}
    assert first.finish_reason == reply.finish_reason


def test_requests_in_flight_at_a_server(tmp_path):
    chat, served = endpoint_chat(lambda body: Reply(latency_seconds=1.0), max_concurrency=8)
    run_virtual(hold_conversations(conversations(20), chat, tmp_path, max_in_flight=8))
    assert served.max_in_flight == 8


# a checkpoint


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("models") / "tiny")


def native_texts(model, out, talks, sampling, max_in_flight=64, **settings):
    chat = NativeChat(model, sampling, **settings)
    return {(r.key, r.turn): r.response for r in run_conversations(talks, chat, out, max_in_flight=max_in_flight)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_native_replies_do_not_depend_on_company(model, tmp_path, temperature):
    """Slots, requests in flight and order change who shares the batch, and nothing else."""
    sampling = Sampling(max_tokens=24, temperature=temperature)
    talks = [conversation(f"c{i}", 1 + i % 3) for i in range(13)]
    ways = [(talks, 64, 64), (talks[::-1], 64, 5), (talks, 3, 13), (talks, 1, 1)]
    replies = [
        native_texts(model, tmp_path / str(i), order, sampling, in_flight, slots=slots)
        for i, (order, slots, in_flight) in enumerate(ways)
    ]
    assert replies[1:] == replies[:1] * 3
    assert len(set(replies[0].values())) > 5


def test_with_one_slot_even_bf16_replies_are_equal(model, tmp_path):
    sampling = Sampling(max_tokens=24)
    talks = conversations(5)
    one = native_texts(model, tmp_path / "1", talks, sampling, precision="bf16", slots=1)
    assert native_texts(model, tmp_path / "2", talks[::-1], sampling, 2, precision="bf16", slots=1) == one


def test_conversations_in_flight_are_decoded_together(model, tmp_path):
    chat = NativeChat(model, Sampling(max_tokens=16, temperature=0.0), slots=8)
    step, active = chat._batcher.step, []

    def counted():
        finished = step()
        active.append(chat._batcher.num_active)
        return finished

    chat._batcher.step = counted
    run_conversations(conversations(8), chat, tmp_path, max_in_flight=8)
    assert max(active) == 8 and len(active) < 8 * 3 * 16 / 4


@pytest.mark.parametrize(("slots", "should_reuse"), [(8, True), (1, False)])
def test_a_later_turn_reads_only_what_is_new(model, tmp_path, slots, should_reuse):
    """With one slot it reads all, so that a run which is resumed repeats to the last bit."""
    chat = NativeChat(model, Sampling(max_tokens=16), slots=slots)
    replies = run_conversations(conversations(4), chat, tmp_path, max_in_flight=4)
    num_history = sum(reply.prompt_tokens for reply in replies if reply.turn < 3)
    assert (chat._batcher.num_recalled >= num_history) == should_reuse
    assert should_reuse or chat._batcher.num_recalled == 0


def test_native_replies_are_those_of_the_generator(model):
    chat = NativeChat(model, Sampling(max_tokens=16, temperature=0.0))
    reply = asyncio.run(chat.reply(HELLO, seed=0))
    tokenizer, module = checkpoint.load_tokenizer(model), checkpoint.load_model(model)
    ids = list(tokenizer.encode_chat(HELLO))
    assert reply.prompt_tokens == len(ids)
    drawn = []
    for _ in range(16):
        with torch.no_grad():
            drawn.append(int(module(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
        if drawn[-1] in tokenizer.eos_ids:
            break
    assert (reply.text, reply.completion_tokens) == (tokenizer.decode(drawn), len(drawn))
    assert reply.finish_reason == ("stop" if drawn[-1] in tokenizer.eos_ids else "length")


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(model):
    free = asyncio.run(NativeChat(model, Sampling(max_tokens=16)).reply(HELLO, seed=3)).text
    stop = free[6:8]
    cut = asyncio.run(NativeChat(model, Sampling(max_tokens=16, stop=("~~~", stop))).reply(HELLO, seed=3))
    assert cut.text == free[: free.index(stop)] and cut.finish_reason == "stop"


def test_an_answer_gets_the_room_there_is(model):
    chat = NativeChat(model, Sampling(max_tokens=5000, temperature=0.0))
    reply = asyncio.run(chat.reply([{"role": "user", "content": "x" * 1950}], seed=0))
    assert reply.prompt_tokens + reply.completion_tokens <= 2048
    assert reply.completion_tokens == 2048 - reply.prompt_tokens or reply.finish_reason == "stop"


def test_a_conversation_that_fills_the_context_is_a_failure(model, tmp_path):
    talks = [Conversation("long", "en", (Turn("x" * 3000, ()), Turn("more", ()))), conversation("short", 1)]
    replies = run_conversations(talks, NativeChat(model, Sampling(max_tokens=4)), tmp_path)
    assert [r.response is None for r in replies] == [True, True, False]
    assert "fill the model's context of 2048" in replies[0].error


def test_lone_surrogates_in_a_question_are_no_trouble(model):
    reply = asyncio.run(NativeChat(model, Sampling(max_tokens=2)).reply([{"role": "user", "content": "\ud83d"}], 0))
    assert reply.completion_tokens <= 2


def test_a_checkpoint_without_template_needs_one(tmp_path):
    tokenizer = char_tokenizer("plain")
    tokenizer.backend.chat_template = None
    module = checkpoint.new_model(tiny_config("llama", tokenizer), seed=0)
    checkpoint.save_model(module, tokenizer, tmp_path / "base")
    with pytest.raises(ConfigError, match=r"no chat template, .* a \.jinja file, or one of plain, "):
        NativeChat(tmp_path / "base")
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    named = NativeChat(tmp_path / "base", chat_template="plain")
    own = NativeChat(tmp_path / "base", Sampling(max_tokens=1), chat_template=str(tmp_path / "own.jinja"))
    assert asyncio.run(own.reply(HELLO, 0)).prompt_tokens == len("hello")
    assert own.record()["tokenizer"] != named.record()["tokenizer"]
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        NativeChat(tmp_path / "base", chat_template="chatm")


def test_a_template_that_refuses_the_system_message_ends_the_run(tmp_path):
    build_tiny("gemma2", tmp_path / "gemma")
    with pytest.raises(ConfigError, match="this template knows user and assistant only"):
        run_conversations(conversations(2), NativeChat(tmp_path / "gemma"), tmp_path / "out", system="Be brief")


def test_an_unknown_architecture_runs_on_the_fallback_and_says_so(tmp_path):
    build_tiny("gpt_neox", tmp_path / "neox", max_position_embeddings=512)
    chat = NativeChat(tmp_path / "neox", Sampling(max_tokens=4))
    assert "gpt_neox" in chat.record()["generator"]
    assert all(r.response is not None for r in run_conversations(conversations(2), chat, tmp_path / "out"))
    with pytest.raises(ConfigError, match="int8"):
        NativeChat(tmp_path / "neox", precision="int8")


def test_other_weights_are_another_record(model, tmp_path):
    other = build_tiny("llama", tmp_path / "other", seed=2, max_position_embeddings=2048)
    assert NativeChat(model).record()["weights"] == NativeChat(model).record()["weights"]
    assert NativeChat(model).record()["weights"] != NativeChat(other).record()["weights"]


def test_a_broken_decode_step_ends_the_run(model, tmp_path):
    chat = NativeChat(model, Sampling(max_tokens=4))

    def broken():
        raise RuntimeError("out of memory")

    chat._batcher.step = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        run_conversations(conversations(3), chat, tmp_path)


def test_the_shipped_set_runs_on_both(model, tmp_path):
    talks = read_conversations("builtin")
    chat, served = endpoint_chat(by_hash)
    replies = run_virtual(hold_conversations(talks, chat, tmp_path / "endpoint", max_in_flight=16))
    assert len(replies) == len(served.requests) == sum(len(talk.turns) for talk in talks)
    native = run_conversations(talks[:16], NativeChat(model, Sampling(max_tokens=8)), tmp_path / "native")
    assert all(r.response is not None for r in (*replies, *native))


def test_closing_while_decoding_leaves_the_chat_usable(model):
    async def interrupted():
        chat = NativeChat(model, Sampling(max_tokens=500, temperature=0.0))
        task = asyncio.create_task(chat.reply(HELLO, 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await chat.close()
        return chat

    chat = asyncio.run(interrupted())
    assert chat._batcher.num_requests == 0
    fresh = NativeChat(model, Sampling(max_tokens=500, temperature=0.0))
    assert asyncio.run(chat.reply(HELLO, 0)).text == asyncio.run(fresh.reply(HELLO, 0)).text
