import json

import pytest
from fake_server import FakeServer, Reply

from llamarl.cli.main import main
from llamarl.models.tiny import build_tiny
from tests.pages import read_page

QUIET = ("--quiet", "--votes", "1,3", "--best-of", "3")


@pytest.fixture
def data(tmp_path):
    rows = [{"id": f"p{n}", "problem": f"What is {n} + 1?", "answer": str(n + 1), "level": n % 2} for n in range(4)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    return main(["eval", "budget", *map(str, arguments)])


def voter(body):
    """Votes where the prompt is about voting; every third sample of a plain answer is wrong."""
    question = body["messages"][-1]["content"]
    number = int(question.rpartition("What is ")[2].split()[0])
    if "[TRIAL]" in question:
        return Reply("\n".join(f"[TRIAL] \\boxed{{{number + 1}}} [/TRIAL]" for _ in range(3)), usage=(30, 12))
    return Reply(f"\\boxed{{{number + (body['seed'] % 3 > 0)}}}", usage=(10, 4))


def test_a_server_asked_for_votes(tmp_path, data, capsys):
    arguments = ("--data", data, "--endpoint-model", "org/m", "--ask", "org-m=adaptive", "--out", tmp_path / "out")
    with FakeServer(voter) as server:
        assert run(*arguments, "--endpoint", server.base_url, *QUIET) == 0
        assert "long 100.0%" in capsys.readouterr().out
        assert run(*arguments, "--endpoint", server.base_url, *QUIET, "--json") == 0
        assert len(server.reader.requests) == 4 * 3  # everything is on file
    results = json.loads(capsys.readouterr().out)
    model = results["models"]["org-m"]
    assert model["accuracy"]["value"] == 1
    spent = {axis: rate["value"] for axis, rate in model["budget"].items()}
    assert spent == {"answers": 3, "completion_tokens": 12, "prompt_tokens": 30, "total_tokens": 42}
    assert list(model["levels"]) == ["0", "1"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and {line["answer"] for line in lines if line["prompt_id"] == "p2"} == {"3"}
    assert (tmp_path / "out" / "frontier.png").exists()
    page = read_page(tmp_path / "out" / "report.html")
    answers, tokens, *levels = page.parts("lines")
    assert answers["curves"][-1]["label"] == "org-m" and answers["curves"][-1]["style"] == "dots"
    key = answers["curves"][-1]["key"]
    for chart, budget in ((answers, 3), (tokens, 42)):
        assert chart["table"]["values"][key][chart["table"]["steps"].index(budget)] == 1.0
    assert [chart["x"]["names"] for chart in levels] == [["0", "1"]] * 2


def test_failures_are_counted_and_asked_again(tmp_path, data, capsys):
    is_up = False

    def unsteady(body):
        return voter(body) if is_up or "What is 2" not in body["messages"][-1]["content"] else Reply(body=b"")

    arguments = ("--data", data, "--endpoint-model", "m", "--max-retries", "0", "--out", tmp_path / "out", *QUIET)
    with FakeServer(unsteady) as server:
        assert run(*arguments, "--endpoint", server.base_url) == 0
        shown = capsys.readouterr().out
        assert "1 problems left out" in shown
        assert "3 samples in no number" in shown
        is_up = True
        assert run(*arguments, "--endpoint", server.base_url) == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def ans(text): return text.no", "AttributeError"),
        ("def ans(text): return 3", "made 3 of"),
        ("def ans(text): return [text]", "return the answer as text, or None"),
        ("def ans(): return ''", "no function of a text"),
        ("ans = 3", "no function of a text"),
    ],
)
def test_a_broken_answer_function_is_refused_before_anything_is_asked(tmp_path, data, capsys, function, message):
    (tmp_path / "ans.py").write_text(function)
    spec = f"{tmp_path / 'ans.py'}:ans"
    assert run("--data", data, "--out", tmp_path / "out", "--quiet", *HERE, "--answers", spec) == 2
    shown = capsys.readouterr().err
    assert message in shown and spec in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("body", ["1 / 0", "3"])
def test_a_broken_group_function_is_refused_before_anything_is_asked(tmp_path, data, capsys, body):
    (tmp_path / "grp.py").write_text(f"def grp(prompt, completion): return {body}")
    spec = f"{tmp_path / 'grp.py'}:grp"
    assert run("--data", data, "--out", tmp_path / "out", "--quiet", *HERE, "--groups", spec) == 2
    shown = capsys.readouterr().err
    assert spec in shown and "'p0'" in shown
    assert not (tmp_path / "out").exists()


def test_an_answer_function_that_fails_later_loses_no_reply(tmp_path, data, capsys):
    function = tmp_path / "ans.py"
    function.write_text("def ans(text): return None if '4' in text else text.no if '3' in text else text")
    arguments = ("--data", data, "--endpoint-model", "m", "--out", tmp_path / "out", *QUIET, "--answers")
    with FakeServer(voter) as server:
        assert run(*arguments, f"{function}:ans", "--endpoint", server.base_url) == 2
        shown = capsys.readouterr().err
        assert "prompt 'p2': answers" in shown and "no reply is lost" in shown
    replies = tmp_path / "out" / "samples" / "m" / "responses.jsonl"
    assert len(replies.read_text().splitlines()) == 4 * 3


def test_spellings_of_an_answer_are_one_vote(tmp_path, capsys):
    path = tmp_path / "half.jsonl"
    path.write_text('{"id": "p", "prompt": "half of 1", "answer": "1/2"}\n')
    spellings = iter([r"\frac{1}{2}", "0.5", "1/2", "7", "7"])
    options = ("--data", path, "--quiet", "--votes", "5", "--best-of", "1", "--max-in-flight", "1", "--json")
    with FakeServer(lambda body: Reply(rf"\boxed{{{next(spellings)}}}")) as server:
        who = ("--endpoint", server.base_url, "--endpoint-model", "m")
        assert run(*options, *who, "--out", tmp_path / "out") == 0
    curve = json.loads(capsys.readouterr().out)["baselines"]["m"]["self_consistency"]
    assert curve["5"]["accuracy"]["value"] == 1


def test_checkpoints_on_the_chain(tmp_path, capsys):
    model = build_tiny("llama", tmp_path / "model", max_position_embeddings=256)
    models = ("--model", f"a={model}", "--model", f"b={model}", "--ask", "a=S", "--baseline", "b")
    out = ("--data", "builtin", "--limit", "3", "--max-tokens", "4", "--out", tmp_path / "out")
    assert run(*models, *out, *QUIET, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results["baselines"]) == ["b"]
    assert list(results["baselines"]["b"]["gain"]) == ["a"]
    assert results["settings"]["judge"] == "chain"
    settings = json.loads((tmp_path / "out" / "samples" / "a" / "settings.json").read_text())
    assert settings["chat"]["sampling"]["max_tokens"] == 4


HERE = ("--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "m")
REFUSED = {
    "nobody answers": ((), "no model given: use --model"),
    "a server without a name": (("--endpoint", "http://127.0.0.1:1/v1"), "belong together"),
    "a model without a name": (("--model", "DIR"), "write NAME=DIR"),
    "a name twice": (("--model", "a=x", "--model", "a=y"), "--model a=y: a=x is given already; give each name once"),
    "a name with a slash": (("--model", "a/b=x"), "write NAME=DIR"),
    "a name taken": (("--model", "m=x", *HERE), "has that name already"),
    "an unknown baseline": ((*HERE, "--baseline", "n"), "--baseline n: no model"),
    "an unknown model asked": ((*HERE, "--ask", "n=plain"), "--ask n: no model"),
    "asked nohow": ((*HERE, "--ask", "m"), "write NAME=HOW"),
    "asked otherwise": ((*HERE, "--ask", "m=nicely"), "choose from plain, voting, adaptive"),
    "a chain's mode elsewhere": ((*HERE, "--ask", "m=S"), "choose from plain"),
    "no sizes": ((*HERE, "--votes", "1,x"), "--votes: must be a whole number; got 'x'"),
    "no votes": ((*HERE, "--votes", "0"), "--votes: must be at least 1; got 0"),
    "too few samples": ((*HERE, "--samples", "4"), "ask for 8"),
    "greedy votes": ((*HERE, "--temperature", "0"), "all samples of a problem would be equal"),
    "a template for a server": ((*HERE, "--chat-template", "x"), "does nothing with an endpoint alone"),
    "a key for a checkpoint": (("--model", "a=x", "--api-key-env", "K"), "does nothing with checkpoints alone"),
    "no answers": ((*HERE, "--answers", "best"), "choose stated or whole"),
    "no groups": ((*HERE, "--groups", "llamarl.data.groups:nothing"), "nothing"),
    "a split of a file": ((*HERE, "--split", "test"), "data.jsonl has no splits"),
    "no problems": ((*HERE, "--limit", "0"), "--limit: must be at least 1; got 0"),
    "no judge": ((*HERE, "--judge", "nobody"), "nobody"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_anything_is_asked(tmp_path, data, capsys, name):
    arguments, message = REFUSED[name]
    assert run("--data", data, "--out", tmp_path / "out", "--quiet", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_problem_without_an_answer_is_refused_at_once(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "p", "prompt": "1 + 1"}\n')
    assert run("--data", path, "--out", tmp_path / "out", "--quiet", *HERE) == 2
    assert "'p'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
