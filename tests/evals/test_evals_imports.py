import subprocess
import sys


def test_evaluations_and_their_commands_import_without_torch():
    program = (
        "import sys, llamarl.evals, llamarl.evals.runner, llamarl.generation.chats, llamarl.cli.eval_commands;"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib', 'nltk'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
