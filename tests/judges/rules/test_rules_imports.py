import subprocess
import sys


def test_rules_import_without_torch_and_without_optional_packages() -> None:
    program = (
        "import sys, llamarl.judges.rules as rules\n"
        "grade = rules.grade('so be it', [{'id': 'punctuation:no_comma'}])\n"
        "assert grade.strict == (True,)\n"
        "print([name for name in ('torch', 'numpy', 'nltk', 'langdetect', 'lingua', 'emoji') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
