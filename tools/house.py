"""Print the structure of a source tree in numbers, and fail on import circles.

    python -m tools.house [--summary] [TREE]

Reads the Python files of TREE (default: the current directory) with `ast`; nothing is imported, so that any revision
of the project can be measured. The exit status is 1 when imports form a circle between folders (`stores`), rooms
(`stores.log`; a module directly in a folder is a room of its own) or modules.
"""

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

NOT_ROOMS = {"tests", "tools", "benchmarks"}
MOST_MODULES = 12
SHORT_LINES = 20
OWN = ("self", "cls")
TUPLE_METHODS = {"_replace", "_asdict", "_fields", "_make"}  # the public interface of named tuples
Node = TypeVar("Node", bound=ast.AST)
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One Python file: dotted name (`stores.log.base`; a package has the name of its folder), path and syntax tree."""

    name: str
    path: Path
    lines: int
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]

    def nodes(self, kind: type[Node]) -> list[Node]:
        return [node for node in ast.walk(self.tree) if isinstance(node, kind)]

    def at(self, node: ast.expr) -> str:
        return f"{self.path}:{node.lineno} {ast.unparse(node)}"


@dataclass
class Report:
    """Lines to print: numbers always, lists of places only without `--summary`; circles decide the exit status."""

    lines: list[str] = field(default_factory=list)
    circles: int = 0
    summary: bool = False

    def number(self, what: str, value: object, places: Iterable[str] = ()) -> None:
        self.lines.append(f"{what:<58} {value}")
        if not self.summary:
            self.lines += [f"    {place}" for place in places]


def read_modules(root: Path, folder: Path) -> list[Module]:
    """Every Python file below `folder`, named from `root`."""
    modules = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if path.name == "__init__.py" else parts)
        text = path.read_text(encoding="utf-8")
        modules.append(Module(name, path.relative_to(root), text.count("\n"), ast.parse(text, str(path))))
    return modules


def read_tree(root: Path) -> list[Module]:
    """The modules of all top-level packages of `root` except tests, tools and benchmarks."""
    folders = sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name not in NOT_ROOMS)
    return [module for folder in folders for module in read_modules(root, folder)]


def imported(module: Module, names: set[str]) -> Iterator[str]:
    """Modules of ours that `module` imports anywhere: at the top, inside functions, under TYPE_CHECKING."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.package.split(".")
                base = ".".join(filter(None, [*package[: len(package) - node.level + 1], base]))
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and target != module.name:
                yield target


def import_graph(modules: list[Module]) -> Graph:
    names = {module.name for module in modules}
    return {module.name: set(imported(module, names)) for module in modules}


def grouped(graph: Graph, depth: int) -> Graph:
    """The same graph between the first `depth` parts of the names, without imports inside a group."""
    groups: Graph = {}
    for name, targets in graph.items():
        group = ".".join(name.split(".")[:depth])
        others = {".".join(target.split(".")[:depth]) for target in targets}
        groups.setdefault(group, set()).update(others - {group})
    return groups


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one node: those that reach each other."""
    reached = {name: reachable(graph, name) for name in graph}
    components = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(component) for component in components if len(component) > 1)


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def functions(module: Module) -> Iterator[tuple[int, str]]:
    """(lines, place) of each function and method, nested ones too."""
    for node in module.nodes(ast.FunctionDef) + module.nodes(ast.AsyncFunctionDef):
        yield (node.end_lineno or 0) - node.lineno + 1, f"{module.path}:{node.lineno} {node.name}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in TUPLE_METHODS


def defined_privates(module: Module) -> set[str]:
    """Private names that the file defines: functions, classes, assigned names, attributes of self or cls."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(module.tree) if isinstance(node, kinds)}
    names |= {node.id for node in module.nodes(ast.Name) if isinstance(node.ctx, ast.Store)}
    stored = [node for node in module.nodes(ast.Attribute) if isinstance(node.ctx, ast.Store)]
    names |= {node.attr for node in stored if ast.unparse(node.value) in OWN}
    return {name for name in names if is_private(name)}


def foreign_privates(module: Module, own: set[str]) -> Iterator[tuple[str, str]]:
    """(name, place) of accesses `x._name`, x not self or cls, where `_name` is not among `own`."""
    for node in module.nodes(ast.Attribute):
        if is_private(node.attr) and node.attr not in own and ast.unparse(node.value) not in OWN:
            yield node.attr, module.at(node)


def mixins(modules: list[Module]) -> list[str]:
    """Classes with more than one base class that is defined in this tree."""
    classes = [(module, node) for module in modules for node in module.nodes(ast.ClassDef)]
    names = {node.name for _, node in classes}
    return [
        f"{module.path}:{node.lineno} {node.name}({', '.join(map(ast.unparse, node.bases))})"
        for module, node in classes
        if sum(ast.unparse(base).split("[")[0].rpartition(".")[2] in names for base in node.bases) > 1
    ]


def untested(root: Path, modules: list[Module]) -> list[str]:
    """Modules `a/b/c.py` without `tests/a/b/test_c.py` (or `tests/test_c.py`, where tests are one flat folder)."""
    paths = [module.path for module in modules]
    tests = {path.relative_to(root / "tests") for path in (root / "tests").rglob("test_*.py")}
    return [str(p) for p in paths if not tests & {Path(f"test_{p.name}"), p.parent / f"test_{p.name}"}]


def report_sizes(report: Report, files: list[Module]) -> None:
    folders = Counter(str(module.path.parent) for module in files).most_common()
    report.number("modules", len(files))
    report.number("folders", len(folders), [f"{count:3} {name}" for name, count in folders])
    report.number("most modules in a folder", f"{folders[0][1]} ({folders[0][0]})")
    report.number(f"folders of more than {MOST_MODULES} modules", sum(n > MOST_MODULES for _, n in folders))
    longest = max(files, key=lambda module: module.lines)
    report.number("lines a module, median", median(module.lines for module in files))
    report.number("lines of the longest module", f"{longest.lines} ({longest.path})")
    found = sorted(each for module in files for each in functions(module)) or [(0, "none")]
    report.number("functions", len(found))
    report.number("lines a function, median", median(lines for lines, _ in found))
    short = sum(lines <= SHORT_LINES for lines, _ in found) / len(found)
    report.number(f"functions of at most {SHORT_LINES} lines", f"{short:.1%}")
    report.number("lines of the longest function", f"{found[-1][0]} ({found[-1][1]})")


def report_circles(report: Report, modules: list[Module]) -> None:
    graph = import_graph(modules)
    for what, part in (("folders", grouped(graph, 1)), ("rooms", grouped(graph, 2)), ("modules", graph)):
        found = circles(part)
        report.circles += len(found)
        edges = [f"{a} -> {b}" for circle in found for a in circle for b in sorted(part[a] & set(circle))]
        report.number(f"import circles between {what}", f"{len(found)} of {len(part)} nodes", edges)


def report_habits(report: Report, root: Path, modules: list[Module]) -> None:
    defined = {module.name: defined_privates(module) for module in modules}
    everywhere = set().union(*defined.values())
    packages: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        packages[module.package] |= defined[module.name]
    by_package = [use for m in modules for use in foreign_privates(m, packages[m.package])]
    by_module = [use for m in modules for use in foreign_privates(m, defined[m.name])]
    ours = [place for name, place in by_package if name in everywhere]
    report.number("uses of privates across packages", len(ours), ours)
    report.number("uses of privates across modules", sum(name in everywhere for name, _ in by_module))
    tests = read_modules(root, root / "tests")
    uses = [use for m in tests for use in foreign_privates(m, defined_privates(m)) if use[0] in everywhere]
    report.number("uses of privates in tests", len(uses), [place for _, place in uses])
    report.number("classes with several bases of ours (mixins)", len(mixins(modules)), mixins(modules))
    calls = [m.at(node) for m in modules for node in m.nodes(ast.Call) if ast.unparse(node.func) == "hasattr"]
    report.number("calls of hasattr", len(calls), calls)


def measure(root: Path, summary: bool = False) -> Report:
    modules = read_tree(root)
    files = [module for module in modules if not module.is_package]
    report = Report(summary=summary)
    report_sizes(report, files)
    report_circles(report, modules)
    missing = untested(root, files)
    tested = f"{len(files) - len(missing)} of {len(files)}"
    report.number("modules with a test of their name", tested, missing)
    report_habits(report, root, modules)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", nargs="?", type=Path, default=Path("."), help="root of the tree")
    parser.add_argument("--summary", action="store_true", help="numbers only, without the lists of places")
    options = parser.parse_args()
    report = measure(options.tree, options.summary)
    print("\n".join(report.lines))
    return int(report.circles > 0)


if __name__ == "__main__":
    raise SystemExit(main())
