"""The rules of the house, checked: `python -m tests.architecture` prints a line for each, and exits with 1 on a breach.

Reads the source with `ast` (every import counts: inside functions, and for type checkers alone), and starts small
programs where a rule is about what is really loaded. Knows where things stand, nothing of what they compute.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tests import footprint, plug_in_kinds

ROOT = Path(__file__).parent.parent
FLOORS = ("namm_core", "workers", "orchestrator")
"""From the lowest: a floor imports those before it, and never one behind it."""
MEASURED = (*FLOORS, "benchmarks", "examples", "tests")
"""Folders whose modules have a limit of lines."""
LINES = 400
FOREIGN = {"torch", "transformers", "numpy", "safetensors", "numba", "triton", "huggingface_hub"}
"""What `namm_core` may import, since it travels with the weights; the last three only where they are installed."""

Graph = Mapping[str, set[str]]


def main() -> int:
    """Prints what every rule found; returns the exit status."""
    failed = 0
    for rule in RULES:
        found = list(rule())
        failed += bool(found)
        title = (rule.__doc__ or rule.__name__).splitlines()[0]
        print(f"{'BROKEN' if found else 'ok':8}{title}")
        for line in found:
            print(f"        - {line}")
    return 1 if failed else 0


def no_import_up_a_floor(root: Path = ROOT) -> Iterator[str]:
    """No floor imports a floor above it."""
    for floor, above in ((floor, FLOORS[i + 1 :]) for i, floor in enumerate(FLOORS)):
        for module, names in imports(root, floor).items():
            for name in sorted(names):
                if name.split(".")[0] in above:
                    yield f"{module} imports {name}"


def the_core_stands_alone(root: Path = ROOT) -> Iterator[str]:
    """`namm_core` imports torch, transformers and what they bring, nothing else."""
    allowed = {"namm_core", "__future__"} | FOREIGN | set(sys.stdlib_module_names)
    for module, names in imports(root, "namm_core").items():
        for name in sorted(names):
            if name.split(".")[0] not in allowed:
                yield f"{module} imports {name}"


def no_circle_of_files(root: Path = ROOT) -> Iterator[str]:
    """No files of a floor import each other in a circle."""
    for floor in FLOORS:
        yield from map(" -> ".join, circles(within(root, floor)))


def no_circle_of_folders(root: Path = ROOT) -> Iterator[str]:
    """No folders of a floor import each other in a circle (a file on the floor itself counts as a folder)."""
    for floor in FLOORS:
        rooms: dict[str, set[str]] = {}
        for module, names in within(root, floor).items():
            if module != floor:  # a floor's face shows what is in all of its rooms
                rooms.setdefault(room(module), set()).update(room(name) for name in names if name != floor)
        for own, others in rooms.items():
            others.discard(own)
        for circle in circles(rooms):
            yield " -> ".join(circle) + f" ({'; '.join(_between(root, floor, circle))})"


def no_long_module(root: Path = ROOT) -> Iterator[str]:
    """No module has more than 400 lines."""
    for folder in MEASURED:
        for path in sorted((root / folder).rglob("*.py")):
            if (lines := len(path.read_text().splitlines())) > LINES:
                yield f"{path.relative_to(root)}: {lines}"


def plug_in_folders_hold_plug_ins() -> Iterator[str]:
    """Plug-in folders hold plug-ins and nothing else."""
    yield from _plug_ins()


def readers_start_light() -> Iterator[str]:
    """The dispatcher, `namm report`, `namm runs` and `--dry-run` load no Ray, torch, transformers or MLflow."""
    yield from footprint.heavy()


def reports_start_fast() -> Iterator[str]:
    """`namm report` takes at most 0.5 s of processor time beyond Python's own start with NumPy."""
    yield from footprint.slow()


def one_file_adds_one_thing() -> Iterator[str]:
    """To add a policy, scorer, task source, target or search, one file is written, and none of ours is touched."""
    yield from _plug_ins(str(plug_in_kinds.NEWCOMERS))


RULES: tuple[Callable[[], Iterable[str]], ...] = (
    no_import_up_a_floor,
    the_core_stands_alone,
    no_circle_of_files,
    no_circle_of_folders,
    no_long_module,
    plug_in_folders_hold_plug_ins,
    readers_start_light,
    reports_start_fast,
    one_file_adds_one_thing,
)


def _plug_ins(*folder: str) -> list[str]:
    """What `tests.plug_in_kinds` prints, in a process that no other plug-ins were added to."""
    command = [sys.executable, "-m", "tests.plug_in_kinds", *folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() + done.stderr.splitlines()[-1:]


def imports(root: Path, package: str) -> dict[str, set[str]]:
    """What each module of a package imports, by dotted names; names of ours are resolved to modules."""
    modules = {_dotted(root, path): path for path in sorted((root / package).rglob("*.py"))}
    return {module: set(_imported(root, path, module)) for module, path in modules.items()}


def within(root: Path, floor: str) -> dict[str, set[str]]:
    """`imports`, of modules of the same floor alone."""
    graph = imports(root, floor)
    return {module: {name for name in names if name in graph and name != module} for module, names in graph.items()}


def room(module: str) -> str:
    """The folder right below the floor that a module stands in, or the module itself where it stands in none."""
    return ".".join(module.split(".")[:2])


def circles(graph: Graph) -> list[list[str]]:
    """A shortest circle through the first name of each set of names that reach each other."""
    found: list[list[str]] = []
    done: set[str] = set()
    for start in sorted(graph):
        if start in done or not (circle := _around(graph, start)):
            continue
        done |= {name for name in _reached(graph, start) if start in _reached(graph, name)}
        found.append(circle)
    return found


def _around(graph: Graph, start: str) -> list[str] | None:
    """A shortest way from a name back to itself."""
    ways, seen = [[start]], set()
    while ways:
        way = ways.pop(0)
        for name in sorted(graph.get(way[-1], ())):
            if name == start:
                return [*way, start]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return None


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    new = {start}
    while new:
        new = set().union(*(graph.get(name, set()) for name in new)) - found
        found |= new
    return found


def _between(root: Path, floor: str, circle: list[str]) -> Iterator[str]:
    """One import for each step of a circle of folders."""
    graph = within(root, floor)
    for own, other in zip(circle, circle[1:], strict=False):
        yield next(
            f"{module} imports {name}"
            for module, names in sorted(graph.items())
            if room(module) == own
            for name in sorted(names)
            if room(name) == other
        )


def _imported(root: Path, path: Path, module: str) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if _is_module(root, inner) else base


def _is_module(root: Path, dotted: str) -> bool:
    path = root.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _dotted(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


if __name__ == "__main__":
    sys.exit(main())
