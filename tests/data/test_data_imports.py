import subprocess
import sys


def test_data_and_judges_import_without_heavy_packages() -> None:
    code = (
        "import sys, llamarl.data, llamarl.judges\n"
        "heavy = {'torch', 'transformers', 'datasets', 'duckdb', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
