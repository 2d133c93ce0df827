import subprocess
import sys


def test_prompts_are_drawn_without_torch_and_without_optional_packages() -> None:
    program = (
        "import sys\n"
        "from llamarl.tasks.instructions import draw_draft, to_row\n"
        "to_row(draw_draft('zh', seed=0, index=0, turns=3))\n"
        "print([name for name in ('torch', 'numpy', 'nltk', 'langdetect', 'lingua', 'emoji') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
