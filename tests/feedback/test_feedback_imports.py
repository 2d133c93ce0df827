import subprocess
import sys


def test_feedback_and_its_commands_import_without_torch_or_databases():
    program = (
        "import sys, llamarl.feedback;"
        "print(sorted({'torch', 'transformers', 'duckdb', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
