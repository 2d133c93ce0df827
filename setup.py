"""The README as the package index shows it: its links, relative in the repository, lead to the repository's address.

Everything else stands in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def absolute_links(text: str, repository: str) -> str:
    """The text with every relative link led to the repository, and every picture to its file there."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?://)([^)\s]+\))", rf"\g<1>{repository}/raw/main/\g<2>", text)
    return re.sub(r"(\]\()(?!https?://|#)([^)\s]+\))", rf"\g<1>{repository}/blob/main/\g<2>", text)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"])
    setup(long_description=readme, long_description_content_type="text/markdown")
