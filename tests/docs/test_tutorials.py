"""The notebooks run from top to bottom, as in Jupyter inside a running event loop, and hold no outputs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))


def read(notebook: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All cells, and the programs of those that are code."""
    cells = json.loads(notebook.read_text())["cells"]
    return cells, ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    namespace: dict[str, Any] = {"__name__": "__main__"}

    async def run_cells() -> None:
        for number, program in enumerate(read(notebook)[1]):
            exec(compile(program, f"{notebook.name}, code cell {number}", "exec"), namespace)

    try:
        asyncio.run(run_cells())
    finally:
        torch.set_num_threads(threads)
    run = namespace["run"]
    assert run.summary.steps == 22 and (run.run_dir / "model" / "model.safetensors").is_file()
    rewards = namespace["rewards"]
    assert sum(rewards[-5:]) > sum(rewards[:5]), "it learns"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook: Path) -> None:
    for cell in read(notebook)[0]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
