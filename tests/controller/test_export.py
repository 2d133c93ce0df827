import json
from pathlib import Path

import pytest

from llamarl.controller.directory import RECIPE_FILE
from llamarl.controller.export import export_run
from llamarl.core.errors import CheckpointError
from llamarl.models.tiny import build_tiny


@pytest.mark.parametrize("target", ["model", "model/inside", "."])
def test_an_export_onto_the_base_model_is_refused(target: str, tmp_path: Path) -> None:
    model = build_tiny("llama", tmp_path / "model")
    (tmp_path / "run").mkdir()
    recipe = {"model": str(model), "data": {"source": "prompts.jsonl"}, "judges": [{"function": "rewards.py:f"}]}
    (tmp_path / "run" / RECIPE_FILE).write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r"the result is made from .*; choose another directory"):
        export_run(tmp_path / "run", tmp_path / target)
