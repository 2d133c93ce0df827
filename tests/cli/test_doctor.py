import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llamarl.cli.doctor import CORE, EXTRAS, GIB, Machine, diagnose, look, report
from llamarl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ALL = frozenset((*CORE, *(module for extra in EXTRAS.values() for module in extra.modules)))
FINE = {
    **{"torch": "2.13.0+cpu", "gpus": ("H200",), "cores": 8, "memory_bytes": 64 * GIB, "cpu": "AVX512"},
    **{"has_bf16": True, "has_vnni": True, "shared_bytes": 8 * GIB, "disk_bytes": 100 * GIB, "open_files": 4096},
    "modules": ALL,
}


def test_a_machine_that_lacks_nothing() -> None:
    findings = diagnose(Machine(**FINE))
    assert {finding.state for finding in findings} == {"ok"}
    assert all(finding.found and not finding.without and not finding.remedy for finding in findings)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"python": (3, 10, 4)}, "Python", "broken 3.10.4 nothing works Install 3.11"),
        (
            {"torch": "", "torch_error": "OSError: libc"},
            "torch",
            "broken OSError: libc no model runs pip install torch",
        ),
        ({"modules": ALL - {"scipy", "rich"}}, "packages", "broken scipy, rich pip install llamarl"),
        ({"gpus": ()}, "GPU", "lacking none processors"),
        ({"memory_bytes": GIB}, "memory", "lacking 1.0 GiB 16 bytes a parameter"),
        ({"memory_bytes": None}, "memory", "lacking not found"),
        ({"cpu": "AVX2", "gpus": ()}, "vector units", "lacking AVX2 slower"),
        ({"has_bf16": False}, "bf16", "lacking slow"),
        ({"has_vnni": None}, "VNNI", "lacking int8 refused"),
        ({"sandbox_error": "bwrap not found"}, "sandbox", "lacking bwrap not found code judge apt install bubblewrap"),
        ({"shared_bytes": 64 << 20}, "/dev/shm", "lacking 0.1 GiB weights --shm-size"),
        ({"disk_bytes": 0}, "disk", "lacking 0.0 GiB checkpoints"),
        ({"open_files": 256}, "open files", "lacking 256 ulimit -n"),
        ({"modules": ALL - {"lingua"}}, "multiif", "lacking lingua Multi-IF pip install 'llamarl[multiif]'"),
        *(
            ({"modules": ALL - {extra.modules[0]}}, name, f"lacking {extra.modules[0]} pip install 'llamarl[{name}]'")
            for name, extra in EXTRAS.items()
        ),
    ],
)
def test_what_lacks_is_said_in_one_line(change: dict[str, object], name: str, words: str) -> None:
    findings = diagnose(Machine(**{**FINE, **change}))
    finding = next(finding for finding in findings if finding.name == name)
    line = finding.line()
    assert finding.without and "\n" not in line and line.split()[0] == finding.state
    assert all(word in line for word in words.split()) or words in line, line


def test_extras_that_are_here_share_a_line_and_those_that_lack_a_remedy() -> None:
    lacking = ALL - {"lingua", "nltk", "wandb"}
    lines = list(report(diagnose(Machine(**{**FINE, "modules": lacking}))))
    (here,) = (line for line in lines if line.split()[1] == "extras")
    assert here.split()[2:] == [*(f"{name}," for name in EXTRAS if name not in ("multiif", "wandb", "gguf")), "gguf"]
    assert lines[-3:] == [
        "lacking  multiif          no judge of instructions, no Multi-IF or IFEval",
        "lacking  wandb            no Weights & Biases",
        "all that lacks: pip install 'llamarl[multiif,wandb]', or those of them that you need",
    ]
    assert "all that lacks" not in "\n".join(report(diagnose(Machine(**FINE))))


def test_every_extra_of_the_package_is_among_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev", "bench", "docs"}
    names = {requirement.split(">")[0].split(";")[0] for requirement in project["dependencies"]}
    assert set(CORE) == names - {"sniffio"}  # which httpx brings


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it lacks, the core works: these tests run."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24] for line in lines] == [line[:24] for line in report(diagnose(look()))]
    assert {line.split()[0] for line in lines} <= {"ok", "lacking", "all"}
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["is_broken"] is False
    assert told["findings"][0] == {
        **{"name": "Python", "state": "ok", "found": ".".join(map(str, sys.version_info[:3]))},
        **{"without": "", "remedy": ""},
    }


def test_without_bubblewrap_it_says_so_and_exits_with_0() -> None:
    environment = {**os.environ, "PATH": "/nonexistent"}
    words = [sys.executable, "-m", "llamarl", "doctor", "--json"]
    done = subprocess.run(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["sandbox"]["state"] == "lacking" and findings["sandbox"]["found"] == "bwrap not found"
    assert "apt install bubblewrap" in findings["sandbox"]["remedy"]


def test_a_torch_that_cannot_be_imported_breaks_the_core(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open\\nshared object')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = [sys.executable, "-m", "llamarl", "doctor"]
    done = subprocess.run(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "torch  " in line]
    assert line.startswith("broken") and "OSError: libtorch.so: cannot open" in line and "pip install torch" in line
