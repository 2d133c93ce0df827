"""Numbers that a reader of the code feels, as one table: one column for each folder that is given.

    python scripts/measure.py                       # of llamarl/
    python scripts/measure.py old/llamarl llamarl   # before and after
    python scripts/measure.py --list                # names what was counted, too

What is counted, and how:

files, lines      Python files below the folder, and all their lines.
body              lines of a function from its first statement after the docstring to its last.
comments          lines with a comment that is no order to a tool (`type:`, `noqa`, `fmt:`), over all lines.
participles       functions whose name ends in a past participle (`judged`, `canaries_watched`) or has one before a
                  preposition (`met_by`), unless it begins with a verb (`check_unused`) or a question (`is_closed`). A
                  participle is a word in -ed that is no plain verb, or one of a list of irregular ones that differ
                  from their verb. Names such as `packed_rows` are those of a quantity and count nowhere.
fragments         docstrings, those below fields included, that do not begin with their subject or verb: the first
                  word is a preposition, a conjunction, a question word, or a pronoun for something not yet named. A
                  phrase that names the thing (`Metrics by task index.`) is no fragment.
getattr           calls of `getattr` and `hasattr` whose object is called something with judge or algorithm.
circles           groups of modules that import each other, through imports inside of functions too; imports for
                  type checkers only don't count.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


PLAIN_VERBS = words("bed bleed breed embed exceed feed heed need proceed red seed shed speed succeed unembed wed weed")
IRREGULAR = words(
    """
    become begun borne bound broken brought built caught chosen done drawn driven eaten fallen fed felt
    forgotten fought found frozen given gone got held hidden kept known laid learnt led left lent lost made
    meant met paid said seen sent shown sold spent spoken stood sunk sworn taken taught thought thrown told torn
    understood won worn written
    """
)
PREPOSITIONS = words("as at by for from in into of on per to with within without")
BEGINNINGS = words(
    """
    accept ask build check choose count draw drop find keep list load make note raise read refuse remove require split
    wait write well without why is has are was can does should may must num max min test
    """
)
NO_SUBJECT = PREPOSITIONS | words(
    """
    above after against also among and because before below beside between beyond but how if instead it its like
    likewise not only or over since so than that their then these they this those through under unless until
    what when where whether which while who whom whose why
    """
)


@dataclass
class Numbers:
    """What one folder holds."""

    files: int = 0
    lines: int = 0
    bodies: list[int] = field(default_factory=list)
    comments: int = 0
    participles: list[str] = field(default_factory=list)
    fragments: list[str] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    circles: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line of the table."""
        bodies = sorted(self.bodies) or [0]
        return [
            ("files", f"{self.files:,}"),
            ("lines", f"{self.lines:,}"),
            ("body, median", f"{statistics.median(bodies):g}"),
            ("body, 90th percentile", str(bodies[int(0.9 * (len(bodies) - 1))])),
            ("body, longest", str(bodies[-1])),
            ("comments", f"{self.comments / max(1, self.lines):.1%}"),
            ("functions named by a participle", str(len(self.participles))),
            ("docstrings without a subject", str(len(self.fragments))),
            ("getattr, hasattr on judges and algorithms", str(len(self.lookups))),
            ("import circles", str(len(self.circles))),
        ]


def measure(folder: Path) -> Numbers:
    """Counts what lies below a folder."""
    numbers = Numbers()
    imports: dict[str, list[tuple[str, ...]]] = {}
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree, place = ast.parse(source), str(path.relative_to(folder))
        numbers.files += 1
        numbers.lines += source.count("\n")
        numbers.comments += count_comments(source)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                numbers.bodies.append(body_lines(node))
                if is_participle(node.name):
                    numbers.participles.append(f"{place}:{node.lineno} {node.name}")
            if is_lookup(node):
                numbers.lookups.append(f"{place}:{node.lineno} {ast.unparse(node)}")
        for line, text in docstrings(tree):
            if is_fragment(text):
                numbers.fragments.append(f"{place}:{line} {text.strip().splitlines()[0]}")
        imports[module_name(path, folder)] = list(imported(tree))
    numbers.circles = circles({module: resolve(names, imports.keys()) for module, names in imports.items()})
    return numbers


def count_comments(source: str) -> int:
    """Lines with a comment that is no order to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not re.match(r"#\s*(type:|noqa|fmt:|!)", text) or " - " in text for text in texts)


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last one; 0 where there is none."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno is not None else 0


def is_participle(name: str) -> bool:
    """True for a name that says what was done instead of what to do."""
    parts = name.strip("_").lower().split("_")
    if parts[0] in BEGINNINGS:
        return False
    found = [(p.endswith("ed") and len(p) > 3 and p not in PLAIN_VERBS) or p in IRREGULAR for p in parts]
    return found[-1] or any(is_past and after in PREPOSITIONS for is_past, after in zip(found, parts[1:], strict=False))


def is_fragment(docstring: str) -> bool:
    """True for a docstring whose first word is none that a sentence about the thing begins with."""
    first = re.match(r"[\s(]*([A-Za-z-]+)", docstring)
    return bool(first) and first[1].lower() in NO_SUBJECT


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and text of each docstring: of the module, of classes and functions, and below fields."""
    for node in ast.walk(tree):
        for statement in node.body if isinstance(node, ast.Module | ast.ClassDef | Function) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def is_lookup(node: ast.AST) -> bool:
    """True for `getattr` or `hasattr` of a judge or an algorithm."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
        return False
    thing = ast.unparse(node.args[0]).lower()
    return node.func.id in ("getattr", "hasattr") and ("judge" in thing or "algorithm" in thing)


def module_name(path: Path, folder: Path) -> str:
    """The dotted name of a module, the folder's own name first."""
    parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Yields for each import, but for type checkers only, the names that the module may have, the longest first."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.module) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def resolve(names: Iterable[tuple[str, ...]], modules: Collection[str]) -> set[str]:
    """The modules among the names: of each import the first that is one."""
    return {found for each in names if (found := next((name for name in each if name in modules), None)) is not None}


def circles(imports: dict[str, set[str]]) -> list[str]:
    """The groups of modules that reach each other, each as one text."""
    reached = {module: reach(module, imports) for module in imports}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return [" <-> ".join(group) for group in sorted(groups)]


def reach(start: str, imports: dict[str, set[str]]) -> set[str]:
    """All modules that importing one leads to; itself only where a circle leads back."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        new = imports[module] - {module} - found
        found |= new
        waiting += new
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1] / "llamarl"])
    parser.add_argument("--list", action="store_true", help="name what was counted")
    arguments = parser.parse_args()
    columns = [measure(folder.resolve()) for folder in arguments.folders]
    print(f"| | {' | '.join(str(folder) for folder in arguments.folders)} |")
    print(f"|---|{'---|' * len(columns)}")
    for rows in zip(*(column.rows() for column in columns), strict=True):
        print(f"| {rows[0][0]} | {' | '.join(value for _, value in rows)} |")
    if arguments.list:
        for column in columns:
            for title in ("participles", "fragments", "lookups", "circles"):
                print(f"\n{title}:", *getattr(column, title), sep="\n  ")


if __name__ == "__main__":
    main()
