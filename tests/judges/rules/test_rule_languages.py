import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamarl.judges.rules.languages import Langdetect, Lingua, load_profiles
from llamarl.judges.rules.length import SCRIPTS

package = pytest.importorskip("langdetect.detector_factory")
pytest.importorskip("lingua")

ALPHABETS = [
    "abcde fghij klmno",
    "ABC DEF GH",
    "कखगघ िीु्",
    "汉字文，。",
    "かなカナー ",
    "привет мир ",
    "ăđơệ́ ̀eu",
    "한국어 ",
    "กขคง ",
    "٣مرحبا ",
    "\ud800\u200d☺",
    " \n.,!-12 http://x.y a@b.c [^]",
]


@pytest.fixture(scope="module")
def reference() -> Any:
    """The package itself, its languages in alphabetical order."""
    factory = package.DetectorFactory()
    factory.load_json_profile([file.read_text("utf-8") for file in sorted(Path(package.PROFILES_DIRECTORY).iterdir())])
    return factory


@pytest.mark.parametrize("seed", [0, 7])
def test_the_package_gives_the_same_answers(reference: Any, seed: int) -> None:
    generator = random.Random(seed)
    ours = Langdetect(seed)
    reference.set_seed(seed)
    for _ in range(150):
        letters = "".join(generator.sample(ALPHABETS, generator.choice([1, 1, 2, 3])))
        text = "".join(generator.choices(letters, k=generator.choice([1, 2, 4, 12, 60, 300])))
        detector = reference.create()
        detector.append(text)
        try:
            expected = detector.detect()
        except package.LangDetectException:
            expected = None
        assert ours.detect(text) == expected, text


def test_without_its_script_a_language_is_never_the_likeliest() -> None:
    profiles = load_profiles()
    for code, script in SCRIPTS.items():
        if code in profiles.languages:
            column = profiles.languages.index(code)
            for gram, row in profiles.gram_rows.items():
                if not script.search(gram):
                    assert profiles.frequencies[row, column] <= 0.9 * profiles.frequencies[row].max()


def test_seeded_answers_stay_and_unseeded_answers_wander() -> None:
    text = "OK done"
    assert len({Langdetect(0).detect(text) for _ in range(20)}) == 1
    assert len({Langdetect(None).detect(text) for _ in range(60)}) > 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This is a rather ordinary sentence.", "en"),
        ("C'est une phrase tout à fait ordinaire.", "fr"),
        ("यह एक साधारण वाक्य है।", "hi"),
        ("今天天气很好，我们去公园散步。", "zh"),
        ("मुझे पानी चाहिए", "hi"),
        ("नमस्ते", "hi"),
        ("खाना तैयार है", "hi"),
        ("मला पाणी पाहिजे", "mr"),
        ("आज हवामान छान आहे", "mr"),
        ("यो राम्रो छ", "ne"),
        ("काठमाडौं नेपालको राजधानी हो", "ne"),
        ("ಇದು ಒಂದು ಸಾಮಾನ್ಯ ವಾಕ್ಯ", "kn"),
        ("ഇത് ഒരു വാചകം", "ml"),
        ("12 + 3", None),
        ("\ud800\ud800", None),
        ("", None),
    ],
)
def test_lingua(text: str, code: str | None) -> None:
    assert Lingua().detect(text) == code


@pytest.mark.parametrize(
    ("package_name", "mode", "instruction", "extra"),
    [
        ("langdetect", "official", "punctuation:no_comma", "multiif"),
        ("emoji", "official", "punctuation:no_comma", "multiif"),
        ("lingua", "fixed", "change_case:english_capital", "multiif"),
        ("langdetect", "fixed", "change_case:english_capital", "multiif"),
        ("nltk", "official-punkt", "punctuation:no_comma", "multiif"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package_name: str, mode: str, instruction: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules[{package_name!r}] = None\n"
        "from llamarl.core.errors import MissingDependencyError\n"
        "from llamarl.judges.rules import Grader\n"
        f"mode, _, splitter = {mode!r}.partition('-')\n"
        f"try: Grader(mode, sentence_splitter=splitter or 'rules').checklist([{{'id': {instruction!r}}}])\n"
        "except MissingDependencyError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert f"pip install 'llamarl[{extra}]'" in output


FAKE_NLTK = """
import os

class PunktTokenizer:
    def __init__(self):
        if "NO_DATA" in os.environ:
            raise LookupError("no punkt_tab")
    def tokenize(self, text):
        return text.split("|")

def word_tokenize(text):
    return text.split()
"""


def _with_fake_nltk(folder: Path, **environment: str) -> str:
    (folder / "nltk.py").write_text(FAKE_NLTK)
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from llamarl.core.errors import ConfigError\n"
        "from llamarl.judges.rules import Grader\n"
        "try: grader = Grader('official')\n"
        "except ConfigError as error: print(error); sys.exit()\n"
        "kwargs = {'num_sentences': 3, 'relation': 'at least'}\n"
        "grade = grader.grade('a|b|c', [{'id': 'length_constraints:number_sentences', 'kwargs': kwargs}])\n"
        "print(grader.record()['sentence_splitter'], grade.strict)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return result.stdout


def test_official_mode_cuts_sentences_with_punkt(tmp_path: Path) -> None:
    assert _with_fake_nltk(tmp_path) == "punkt (True,)\n"


def test_official_mode_refuses_to_start_without_punkt_data(tmp_path: Path) -> None:
    message = _with_fake_nltk(tmp_path, NO_DATA="1")
    assert "python -m nltk.downloader punkt_tab" in message and "sentence_splitter='rules'" in message
