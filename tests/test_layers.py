"""The layers of the package: what may import what, read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import sega_bench

PACKAGE = Path(sega_bench.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    "version",
    "errors",
    "system",
    "stats",
    "cell",
    "faces",
    "config",
    "sega",
    "scores",
    "store",
    "planning",
    "execution",
    "analysis",
    "views",
    "tracking",
    "rescoring",
    "study",
    "launch",
    "benchmark",
    "cli",
    "__main__",
)
"""Each room may import those before it, and none after it."""

HOMES = {
    "wandb": {"tracking.reporter", "tracking.wandb_run"},
    "matplotlib": {"views.paper.figures"},
    "hydra": {"config", "cli.compose"},
    "optuna": {"study.optuna_study"},
    "sklearn": {"study.importance"},
    "submitit": {"launch.local", "launch.slurm", "launch.worker"},
}
"""Libraries that only these modules may import."""


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in it."""
    parts = ("sega_bench", *path.relative_to(PACKAGE).with_suffix("").parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str:
    return name.split(".")[0]


def own_imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports; the package itself (``__version__``) is none."""
    names = {module(file) for file in FILES}
    for imported in imports(path):
        name = imported.removeprefix("sega_bench.")
        if imported.startswith("sega_bench.") and name in names and name != module(path):
            yield name


def cycle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A cycle of the graph, if there is one."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        done.add(name)
        return next(filter(None, (visit(target, (*path, name)) for target in graph.get(name, ()))), None)

    return next(filter(None, (visit(name, ()) for name in graph)), None)


def test_every_room_has_its_place() -> None:
    rooms = {room(module(path)) for path in FILES} - {"", "__init__"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    name = module(path)
    if name in ("", "__init__"):  # the public API names everything, lazily
        return
    for target in own_imports(path):
        assert ORDER.index(room(target)) <= ORDER.index(room(name)), f"{name} imports {target}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_each_outside_engine_has_one_home(path: Path) -> None:
    for imported in imports(path):
        home = HOMES.get(imported.split(".")[0])
        assert home is None or module(path) in home, f"{module(path)} imports {imported}"


def test_no_modules_import_each_other() -> None:
    # A room's face hands names on lazily, as the package's does.
    faces = {module(path) for path in FILES if path.name == "__init__.py"} | {"__init__"}
    graph = {module(path): set(own_imports(path)) - faces for path in FILES if module(path) not in faces}
    assert cycle(graph) is None


def test_no_packages_import_each_other() -> None:
    """Of the rooms, and of the folders inside each of them."""
    for depth in (1, 2):
        graph: dict[str, set[str]] = {}
        for path in FILES:
            folder = path.relative_to(PACKAGE).parent.parts[:depth]
            if not folder:
                continue
            here = graph.setdefault(".".join(folder), set())
            for target in own_imports(path):
                parts = target.split(".")
                is_package = (PACKAGE / Path(*parts)).is_dir()
                package = ".".join((parts if is_package else parts[:-1])[:depth])
                if package and not ".".join(folder).startswith(package):
                    here.add(package)
        assert cycle(graph) is None


def test_no_module_bears_a_public_functions_name() -> None:
    assert not {module(path) for path in FILES} & {"compose", "plan", "run", "load"}
