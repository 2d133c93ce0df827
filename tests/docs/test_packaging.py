"""What the package index shows, and what an installed package holds."""

import importlib.util
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_of_the_package_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["llamarl"]
    package = ROOT / "llamarl"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    left_out = [
        str(path.relative_to(package))
        for path in files
        if path.suffix not in (".py", ".md")
        and not any(fnmatch(path.name, pattern.removeprefix("**/")) for pattern in patterns)
    ]
    assert left_out == []
    folders = {path.parent for path in files if path.suffix == ".py"}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_readme_of_the_package_index_leads_to_files_of_the_repository() -> None:
    spec = importlib.util.spec_from_file_location("package_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    repository = PROJECT["project"]["urls"]["Repository"]
    text = setup.absolute_links((ROOT / "README.md").read_text(), repository)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    for link in links:
        if link.startswith(repository):
            path = re.sub(rf"^{re.escape(repository)}/(blob|raw)/main/", "", link)
            assert (ROOT / path.partition("#")[0]).exists(), link
            assert f"{repository}/raw/" in link or Path(path).suffix != ".png", f"{link}: a page, not the picture"


def test_addresses_are_those_of_one_repository() -> None:
    urls = PROJECT["project"]["urls"]
    assert all(url.startswith(urls["Repository"]) for url in urls.values())


def test_what_developers_install_are_extras_of_the_package() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (own,) = [requirement for requirement in extras["dev"] if requirement.startswith("llamarl[")]
    assert set(own.removeprefix("llamarl[").removesuffix("]").split(",")) <= extras.keys()
