import json

import pytest
from fake_server import FakeServer, Reply
from released_rows import NO_COMMA, TITLE, keyword, released_row, write_csv

from llamarl.cli.main import main
from llamarl.models.tiny import build_tiny

QUIET = ("--quiet", "--mode", "fixed")


@pytest.fixture
def data(tmp_path):
    rows = [
        released_row("1:0:en", "English", [NO_COMMA, keyword("river"), TITLE]),
        released_row("2:0:fr", "French", [NO_COMMA, keyword("mer"), TITLE]),
        released_row("3:0:fr", "French", [NO_COMMA, TITLE], num_turns=2),
    ]
    return write_csv(tmp_path / "data.csv", rows)


def responses(path, text="the river, <<a title>>", keys=("1:0:en", "2:0:fr"), turns=(1, 2, 3)):
    rows = [{"key": key, "turn": turn, "response": text} for key in keys for turn in turns]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    return main(["eval", *map(str, arguments)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# grading what exists


def test_grade(tmp_path, data, capsys):
    out = tmp_path / "out"
    grade = ("--grade", responses(tmp_path / "r.jsonl"), "--out", out, "--sentence-splitter", "rules")
    assert run("multi-if", "--data", data, *grade, "--plain") == 0
    shown = capsys.readouterr().out
    assert "official mode" in shown
    assert "fixed mode" in shown
    assert "2 turns without a reply" in shown
    verdicts = lines(out / "verdicts.jsonl")
    assert len(verdicts) == 6 * 2
    assert verdicts[4] == {
        "key": "1:0:en",
        "turn": 3,
        "mode": "official",
        "strict": [False, True, True],
        "loose": [False, True, True],
    }
    assert (out / "accuracy.png").exists()


def test_json_is_one_object(tmp_path, data, capsys):
    grade = ("--grade", responses(tmp_path / "r.jsonl"), "--out", tmp_path / "out")
    assert run("multi-if", "--data", data, *grade, *QUIET, "--json", "--seed", "3") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["out"] == str(tmp_path / "out")
    assert shown["bootstrap"]["seed"] == 3
    assert shown["generation"] is None


@pytest.mark.parametrize("turns", ["2", "1,2"])
def test_languages_turns_and_limit(tmp_path, data, turns):
    grade = ("--grade", responses(tmp_path / "r.jsonl"), "--out", tmp_path / "out", *QUIET)
    assert run("multi-if", "--data", data, *grade, "--languages", "fr", "--turns", turns, "--limit", "1") == 0
    assert [(row["key"], row["turn"]) for row in lines(tmp_path / "out" / "verdicts.jsonl")] == [
        ("2:0:fr", 1),
        ("2:0:fr", 2),
    ]


def test_ifeval(tmp_path):
    row = {"key": 7, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "Write.", "response": "no comma"}) + "\n")
    arguments = ("--data", tmp_path / "data.jsonl", "--grade", tmp_path / "r.jsonl", "--out", tmp_path / "out")
    assert run("ifeval", *arguments, *QUIET) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["benchmark"] == "ifeval"
    assert results["modes"]["fixed"]["pooled"]["turns"]["1"]["overall"]["value"] == 1
    assert "checkers" in results["modes"]["fixed"]["grader"]


def test_compare(tmp_path, data, capsys):
    for name, text in (("a", "the sea"), ("b", "the river, no title")):
        replies = responses(tmp_path / f"{name}.jsonl", text)
        assert run("multi-if", "--data", data, "--grade", replies, "--out", tmp_path / name, *QUIET) == 0
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "difference") == 0
    assert "b minus a" in capsys.readouterr().out
    assert (tmp_path / "difference" / "comparison.png").exists()
    assert run("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["modes"]["fixed"]["pooled"]["turns"]["1"]["overall"]["difference"] < 0


# generating


def answer(body):
    return Reply(f"turn {len(body['messages'])}: the river", finish_reason="length")


def test_an_endpoint_is_asked_with_the_models_own_replies_and_once(tmp_path, data, capsys):
    arguments = ("multi-if", "--data", data, "--out", tmp_path / "out", *QUIET, "--model", "m", "--system", "Be brief.")
    with FakeServer(answer) as server:
        assert run(*arguments, "--endpoint", server.base_url) == 0
        assert run(*arguments, "--endpoint", server.base_url) == 0  # everything is on file
        requests = server.reader.requests
    assert len(requests) == 8
    longest = max(requests, key=lambda body: len(body["messages"]))
    assert [message["role"] for message in longest["messages"]] == ["system", *("user", "assistant") * 2, "user"]
    assert longest["messages"][2]["content"] == "turn 2: the river"
    assert (longest["max_tokens"], longest["temperature"], longest["top_p"]) == (1024, 0.6, 0.9)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["generation"]["seed"] == 42
    assert results["truncation"]["rate"] == 1
    assert "100.0% of replies cut" in capsys.readouterr().out


def test_other_settings_are_no_resume(tmp_path, data, capsys):
    arguments = ("multi-if", "--data", data, "--out", tmp_path / "out", *QUIET, "--model", "m")
    with FakeServer(answer) as server:
        assert run(*arguments, "--endpoint", server.base_url) == 0
        assert run(*arguments, "--endpoint", server.base_url, "--temperature", "0") == 2
    assert "temperature was 0.6, now 0.0" in capsys.readouterr().err


def test_failed_turns_are_counted_and_asked_again(tmp_path, data, capsys):
    is_up = False

    def unsteady(body):
        is_french = "fr" in body["messages"][0]["content"]
        return answer(body) if is_up or not is_french else Reply(body=b"")

    arguments = ("multi-if", "--data", data, "--out", tmp_path / "out", *QUIET, "--model", "m", "--max-retries", "0")
    with FakeServer(unsteady) as server:
        assert run(*arguments, "--endpoint", server.base_url) == 0
        assert "5 turns without a reply" in capsys.readouterr().out
        is_up = True
        assert run(*arguments, "--endpoint", server.base_url) == 0
        assert "without a reply" not in capsys.readouterr().out
        assert len(server.reader.requests) == 3 + 2 + 5


def test_a_checkpoint_of_ones_own(tmp_path, data):
    model = build_tiny("llama", tmp_path / "model", max_position_embeddings=2048)
    arguments = ("multi-if", "--data", data, "--model", model, "--out", tmp_path / "out", *QUIET)
    assert run(*arguments, "--max-tokens", "4") == 0
    assert len(lines(tmp_path / "out" / "responses.jsonl")) == 8
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["generation"]["chat"]["kind"] == "native"
    assert results["generation"]["chat"]["sampling"]["max_tokens"] == 4


# refusals

REFUSED = {
    "nobody answers": ((), "no model given: use --model"),
    "a name is missing": (("--endpoint", "http://127.0.0.1:1/v1"), "no model given: use --model"),
    "two answer": (("--grade", "r.jsonl", "--out", "o", "--model", "m"), "leave out --model"),
    "nowhere to write": (("--grade", "r.jsonl"), "needs --out"),
    "sampling of replies that exist": (("--grade", "r.jsonl", "--out", "o", "--top-p", "1"), "--top-p does nothing"),
    "a template for a server": (
        ("--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--chat-template", "x"),
        "--chat-template does nothing with --endpoint",
    ),
    "a key for a checkpoint": (("--model", "m", "--api-key-env", "KEY"), "--api-key-env does nothing"),
    "a later turn alone": (("--model", "m", "--turns", "1,3"), "a later turn needs those before it"),
    "no number of turns": (("--model", "m", "--turns", "x"), "--turns: must be a whole number; got 'x'"),
    "too many turns": (("--model", "m", "--turns", "4"), "--turns: must be at most 3; got 4"),
    "an unknown language": (("--model", "m", "--languages", "en,xx"), "language 'xx' is unknown"),
    "no object": (("--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--extra", "[1]"), "--extra"),
    "no JSON": (("--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--extra", "{"), "--extra"),
    "no address": (("--endpoint", "nowhere", "--model", "m"), "--endpoint: base_url"),
    "nobody grades": (("--model", "m", "--workers", "0"), "--workers: must be at least 1; got 0"),
    "nobody in flight": (("--model", "m", "--max-in-flight", "0"), "--max-in-flight: must be at least 1; got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, data, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    responses(tmp_path / "r.jsonl")
    arguments, message = REFUSED[name]
    assert run("multi-if", "--data", data, *QUIET, *arguments) == 2
    assert message in capsys.readouterr().err


def test_official_mode_says_how_to_get_punkt(tmp_path, data, capsys):
    nltk = pytest.importorskip("nltk")
    try:
        nltk.PunktTokenizer()
    except LookupError:
        pass
    else:
        pytest.skip("NLTK's Punkt data is here")
    grade = ("--grade", responses(tmp_path / "r.jsonl"), "--out", tmp_path / "out", "--quiet")
    assert run("multi-if", "--data", data, *grade) == 2
    assert "nltk.downloader punkt_tab" in capsys.readouterr().err


def test_the_same_model_goes_to_the_same_directory(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FakeServer(answer) as server:
        model = ("--endpoint", server.base_url, "--model", "org/My model")
        assert run("multi-if", "--data", data, *model, *QUIET, "--limit", "1") == 0
    assert (tmp_path / "runs" / "multi-if-org-My-model" / "results.json").exists()
