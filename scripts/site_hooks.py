"""What `mkdocs` needs beside mkdocs.yml, so that the pages of docs/ read well on GitHub and as a site.

- Links to files outside docs/: CONTRIBUTING.md, CHANGELOG.md and pictures become part of the site; all other files are
  linked in the repository, whose address stands in pyproject.toml.
- `<!-- file: NAME -->` above a block of code becomes its title; ```python run becomes plain Python.
- ```math blocks hold LaTeX and become MathML, which browsers render without a script.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {ROOT / "CONTRIBUTING.md": "contributing.md", ROOT / "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site, with their places there."""
PICTURES = {".png", ".svg", ".jpg"}
LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the repository's address from pyproject.toml, and adds the fence for mathematics."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url, config.repo_name = project["urls"]["Repository"], project["name"]
    fences = {"custom_fences": [{"name": "math", "class": "formula", "format": formula}]}
    config.mdx_configs["pymdownx.superfences"] = fences
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that lie outside docs/."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(source)))
    for page in DOCS.rglob("*.md"):
        for _, target, _, _ in LINK.findall(page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            uri = picture_uri(picture)
            if picture.suffix in PICTURES and DOCS not in picture.parents and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links to files outside docs/ and the headers of code blocks."""
    source = Path(page.file.abs_src_path or "")
    pieces, start = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [relink(markdown[start : fence.start()], source, page.file.src_uri, config.repo_url or ""), fence[0]]
        start = fence.end()
    pieces.append(relink(markdown[start:], source, page.file.src_uri, config.repo_url or ""))
    text = "".join(pieces)
    text = re.sub(r"^```python run$", "```python", text, flags=re.MULTILINE)
    return re.sub(r"^<!-- file: (\S+) -->\n```(\w+)$", r'```\2 title="\1"', text, flags=re.MULTILINE)


def relink(text: str, source: Path, uri: str, repository: str) -> str:
    """The text of the page at `uri`, each link of which leads to the same file as in the page's `source`."""

    def replace(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if DOCS in target.parents:
            place = target.relative_to(DOCS).as_posix()
        elif target in PAGES:
            place = PAGES[target]
        elif target.suffix in PICTURES:
            place = picture_uri(target)
        else:
            kind = "tree" if target.is_dir() else "blob"
            return f"{link[1]}{repository}/{kind}/main/{target.relative_to(ROOT).as_posix()}{link[3] or ''}{link[4]}"
        return f"{link[1]}{os.path.relpath(place, Path(uri).parent.as_posix())}{link[3] or ''}{link[4]}"

    return LINK.sub(replace, text)


def picture_uri(picture: Path) -> str:
    """The place in the site of a picture outside docs/."""
    return f"assets/{picture.name}"


def formula(source: str, *_: Any, **__: Mapping[str, Any]) -> str:
    """Turns the LaTeX of one block into MathML."""
    # What GitHub wants, in the converter's dialect.
    latex = source.replace("{aligned}", "{align*}").replace(r"\_", "_")
    return f'<div class="formula">{convert(latex, display="block")}</div>'
