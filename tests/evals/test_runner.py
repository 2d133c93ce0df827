import asyncio

import pytest
from scripted_chats import ScriptedChat, conversation, conversations, echo

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.evals.conversations import Conversation, Turn
from llamarl.evals.replies import read_responses
from llamarl.evals.runner import MIN_PATIENCE, hold_conversations, run_conversations
from llamarl.models.endpoint import ChatReply
from llamarl.testing import run_virtual


def run(talks, chat, out, **options):
    """The replies, on virtual time."""
    return run_virtual(hold_conversations(talks, chat, out, **options))


def texts(replies):
    return {(reply.key, reply.turn): reply.response for reply in replies}


def fails_at(key, turn, error):
    """Answers, except to this turn of this conversation."""

    def answer(messages, seed):
        user = [m["content"] for m in messages if m["role"] == "user"]
        return error if (user[0].split()[0], len(user)) == (key, turn) else echo(messages, seed)

    return answer


# the conversation


def test_the_history_holds_the_models_own_replies(tmp_path):
    chat = ScriptedChat(lambda messages, seed: f"reply to {messages[-1]['content']}")
    replies = run([conversation("a")], chat, tmp_path, system="Be brief")
    assert [r.response for r in replies] == ["reply to a asks 1", "reply to a asks 2", "reply to a asks 3"]
    assert chat.asked[2][0] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a asks 1"},
        {"role": "assistant", "content": "reply to a asks 1"},
        {"role": "user", "content": "a asks 2"},
        {"role": "assistant", "content": "reply to a asks 2"},
        {"role": "user", "content": "a asks 3"},
    ]
    assert chat.num_closed == 1


def test_thinking_is_neither_graded_nor_remembered_but_kept(tmp_path):
    chat = ScriptedChat(lambda messages, seed: f"<think>why {len(messages)}</think>\n\nyes")
    first, second = run([conversation("a", 2)], chat, tmp_path, strip_thinking="think")
    assert (first.response, first.thinking, second.response, second.thinking) == ("yes", "why 1", "yes", "why 3")
    assert chat.asked[1][0][1] == {"role": "assistant", "content": "yes"}


def test_a_truncated_thought_is_an_empty_reply_and_the_conversation_goes_on(tmp_path):
    chat = ScriptedChat(lambda messages, seed: ChatReply("<think>on and on", "length", 5, 9, seconds=2.0, retries=1))
    first, second = run([conversation("a", 2)], chat, tmp_path, strip_thinking="think")
    assert (first.response, first.thinking, first.finish_reason) == ("", "on and on", "length")
    assert (first.prompt_tokens, first.completion_tokens, first.seconds, first.retries) == (5, 9, 2.0, 1)
    assert second.response == "" and second.error is None


def test_replies_come_in_order_and_equal_the_file(tmp_path):
    talks = [conversation("b", 1), conversation("a", 3), conversation("c", 2)]
    replies = run(talks, ScriptedChat(seconds=lambda messages: 5.0 - len(messages)), tmp_path)
    assert [(r.key, r.turn) for r in replies] == [("b", 1), ("a", 1), ("a", 2), ("a", 3), ("c", 1), ("c", 2)]
    assert read_responses(tmp_path / "responses.jsonl") == {(r.key, r.turn): r for r in replies}


def test_replies_depend_on_key_turn_and_seed_alone(tmp_path):
    talks = conversations(9)
    ragged = ScriptedChat(seconds=lambda messages: 1.0 + hash(messages[-1]["content"]) % 7)
    first = texts(run(talks, ScriptedChat(), tmp_path / "1", max_in_flight=1))
    assert texts(run(talks[::-1], ragged, tmp_path / "2", max_in_flight=5)) == first
    other = texts(run(talks, ScriptedChat(), tmp_path / "3", seed=1))
    assert all(other[place] != first[place] for place in first)
    assert len(set(first.values())) == len(first)


# concurrency


def test_requests_in_flight_stay_at_the_bound_while_work_remains(tmp_path):
    """12 conversations of 3 turns, a second each, 4 at a time: 12 * 3 / 4 = 9 seconds."""
    chat = ScriptedChat()

    async def timed():
        await hold_conversations(conversations(12), chat, tmp_path, max_in_flight=4)
        return asyncio.get_running_loop().time()

    assert run_virtual(timed()) == pytest.approx(9.0)
    assert chat.in_flight_at_start == [1, 2, 3] + [4] * 33


def test_a_slow_conversation_holds_up_nobody(tmp_path):
    """One conversation takes 30 s a turn; meanwhile nearly all others pass through the other place, 3 s each."""
    chat = ScriptedChat(seconds=lambda messages: 30.0 if messages[0]["content"].startswith("c0 ") else 1.0)
    run(conversations(30), chat, tmp_path, max_in_flight=2)
    assert set(chat.in_flight_at_start[1:]) == {2}
    assert [m[-1]["content"] for m, _ in chat.asked].index("c0 asks 3") > 2 * 29


def test_conversations_of_many_turns_begin_first(tmp_path):
    """Five of one turn and one of three, two at a time: 4 seconds; in the order given, the long one would end at 5."""
    talks = [*(conversation(f"s{i}", 1) for i in range(5)), conversation("long", 3)]
    chat = ScriptedChat()

    async def timed():
        await hold_conversations(talks, chat, tmp_path, max_in_flight=2)
        return asyncio.get_running_loop().time()

    assert run_virtual(timed()) == pytest.approx(4.0)
    assert chat.asked[0][0][0]["content"] == "long asks 1"


def test_turns_on_file_do_not_count_as_open(tmp_path):
    """Resumed, the conversation of three turns has one left and comes behind the one that has two."""
    run([conversation("a", 2)], ScriptedChat(), tmp_path, max_in_flight=1)
    chat = ScriptedChat()
    run([conversation("a", 3), conversation("b", 2)], chat, tmp_path, max_in_flight=1)
    assert [messages[-1]["content"] for messages, _ in chat.asked] == ["b asks 1", "b asks 2", "a asks 3"]


def test_fewer_conversations_than_places(tmp_path):
    chat = ScriptedChat()
    assert len(run(conversations(2), chat, tmp_path, max_in_flight=64)) == 6
    assert max(chat.in_flight_at_start) == 2
    assert run([], ScriptedChat(), tmp_path / "none") == []


# failures


def test_a_failed_turn_ends_its_conversation_and_no_other(tmp_path):
    chat = ScriptedChat(fails_at("c1", 2, EndpointError("status 500")))
    replies = {(r.key, r.turn): r for r in run(conversations(3), chat, tmp_path)}
    assert [place for place, r in replies.items() if r.response is None] == [("c1", 2), ("c1", 3)]
    assert replies["c1", 2].error == "status 500" and replies["c1", 2].finish_reason == "error"
    assert replies["c1", 3].error == "not asked, since turn 2 failed"
    assert len(chat.asked) == 8
    assert read_responses(tmp_path / "responses.jsonl") == replies


def test_failures_are_asked_again_and_answers_are_not(tmp_path):
    run(conversations(3), ScriptedChat(fails_at("c1", 2, EndpointError("status 500"))), tmp_path / "1")
    chat = ScriptedChat()
    again = run(conversations(3), chat, tmp_path / "1")
    assert [m[-1]["content"] for m, _ in chat.asked] == ["c1 asks 2", "c1 asks 3"]
    assert texts(again) == texts(run(conversations(3), ScriptedChat(), tmp_path / "2"))


def test_a_refusal_before_any_answer_ends_the_run(tmp_path):
    chat = ScriptedChat(lambda messages, seed: ConfigError("status 401; check the key"))
    with pytest.raises(ConfigError, match="check the key"):
        run(conversations(3), chat, tmp_path)
    assert chat.num_closed == 1 and chat.in_flight == 0


def test_a_refusal_later_is_a_failure_of_that_conversation(tmp_path):
    chat = ScriptedChat(fails_at("c1", 3, ConfigError("status 400: the prompt is too long")))
    replies = run(conversations(3), chat, tmp_path)
    assert [(r.key, r.turn) for r in replies if r.response is None] == [("c1", 3)]
    again = run(conversations(3), ScriptedChat(fails_at("c1", 3, ConfigError("too long"))), tmp_path)
    assert [r.error for r in again if r.response is None] == ["too long"]


def test_a_server_that_only_fails_ends_the_run(tmp_path):
    chat = ScriptedChat(lambda messages, seed: EndpointError("status 503"))
    with pytest.raises(
        EndpointError, match=f"{MIN_PATIENCE} turns failed one after another, the last with: status 503"
    ):
        run(conversations(200), chat, tmp_path)
    assert len(chat.asked) < MIN_PATIENCE + 16
    with pytest.raises(EndpointError, match=f"all {3 * 5} turns failed, the first with: status 503"):
        run(conversations(5), chat, tmp_path / "few")


def test_other_errors_are_not_swallowed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(conversations(9), ScriptedChat(lambda messages, seed: ZeroDivisionError()), tmp_path)


# going on


@pytest.mark.parametrize("num_before", [0, 1, 7, 26, 27])
def test_going_on_gives_what_one_stretch_gives(tmp_path, num_before):
    """Stopped after so many answers; the rest is asked once, and the same comes out."""
    talks = conversations(9)
    whole = texts(run(talks, ScriptedChat(), tmp_path / "whole"))

    class Dying(ScriptedChat):
        async def reply(self, messages, seed):
            if len(self.asked) >= num_before:
                raise asyncio.CancelledError
            return await super().reply(messages, seed)

    if num_before < 27:
        with pytest.raises(asyncio.CancelledError):
            run(talks, Dying(), tmp_path / "parts", max_in_flight=1)
    else:
        run(talks, ScriptedChat(), tmp_path / "parts")
    chat = ScriptedChat()
    assert texts(run(talks, chat, tmp_path / "parts", max_in_flight=5)) == whole
    assert len(chat.asked) == 27 - num_before


def test_more_conversations_and_turns_may_follow(tmp_path):
    run(conversations(2, num_turns=1), ScriptedChat(), tmp_path / "parts")
    chat = ScriptedChat()
    grown = run(conversations(4), chat, tmp_path / "parts")
    assert texts(grown) == texts(run(conversations(4), ScriptedChat(), tmp_path / "whole"))
    assert len(chat.asked) == 10
    assert len(run(conversations(1), ScriptedChat(), tmp_path / "parts")) == 3


def test_changed_questions_are_refused(tmp_path):
    run([conversation("a")], ScriptedChat(), tmp_path)
    chat = ScriptedChat()
    changed = Conversation("a", "en", (Turn("a asks 1", ()), Turn("something else", ())))
    with pytest.raises(DataError, match="conversation 'a', turn 2 answers another question"):
        run([conversation("b"), changed], chat, tmp_path)
    assert chat.asked == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 3}, "seed was 0, now 3"),
        ({"system": "Be brief"}, "system was None, now 'Be brief'"),
        ({"strip_thinking": "think"}, "strip_thinking was 'none', now 'think'"),
    ],
)
def test_changed_settings_are_refused(tmp_path, change, difference):
    run([conversation("a")], ScriptedChat(), tmp_path)
    with pytest.raises(ConfigError, match=difference):
        run([conversation("a")], ScriptedChat(), tmp_path, **change)
    with pytest.raises(ConfigError, match=r"chat\.model was None, now 'other'"):
        run([conversation("a")], ScriptedChat(settings={"kind": "scripted", "model": "other"}), tmp_path)
    run([conversation("a")], ScriptedChat(), tmp_path, max_in_flight=3)


# rejects


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_in_flight": 0}, "max_in_flight=0"), ({"strip_thinking": "maybe"}, "thinking rule 'maybe'")],
)
def test_rejects_settings(tmp_path, options, message):
    chat = ScriptedChat()
    with pytest.raises(ConfigError, match=message):
        run_conversations(conversations(1), chat, tmp_path, **options)
    assert chat.num_closed == 1


def test_rejects_two_conversations_of_one_key(tmp_path):
    with pytest.raises(DataError, match="first 'a'"):
        run([conversation("a"), conversation("a")], ScriptedChat(), tmp_path)
