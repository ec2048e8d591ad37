"""The layers of the house: what may import what, read from the source itself."""

import ast
from pathlib import Path

import pytest

import sega_bench

PACKAGE = Path(sega_bench.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# Each may import those before it, and nothing after it.
ORDER = (
    "errors",
    "threads",
    "garbage",
    "proportion",
    "cell",
    "faces",
    "config",
    "prompts",
    "sega",
    "scores",
    "processes",
    "atomic",
    "store",
    "resolver",
    "planner",
    "manifest",
    "resume",
    "grader",
    "rescoring",
    "maker",
    "jobs",
    "runner",
    "views",
    "study",
    "progress",
    "signals",
    "launch",
    "benchmark",
    "scaling",
    "command",
    "__main__",
)
ONLY = {
    "wandb": {"views.wandb", "views.wandb_run"},
    "matplotlib": {"views.figures"},
    "hydra": {"config", "command.composing"},
    "optuna": {"study.asking"},
    "sklearn": {"study.importance"},
    "submitit": {"launch.local", "launch.slurm", "launch.worker"},
}


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in it."""
    parts = ("sega_bench", *path.relative_to(PACKAGE).with_suffix("").parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> str:
    """A package's own command line is a composition root like the first: it may import all, and none it."""
    return "__main__" if name.endswith("__main__") else name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    name = module(path)
    if name in ("", "__init__"):  # the public API names everything, lazily
        return
    rank = ORDER.index(layer(name))
    for imported in imports(path):
        if imported.startswith("sega_bench.") and layer(imported[11:]) in ORDER:
            target = layer(imported[11:])
            assert ORDER.index(target) <= rank, f"{name} imports {imported}, which comes after it"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_each_outside_engine_has_one_home(path: Path) -> None:
    for imported in imports(path):
        home = ONLY.get(imported.split(".")[0])
        assert home is None or module(path) in home, f"{module(path)} imports {imported}"


def test_there_is_no_cycle() -> None:
    names = {module(path): path for path in FILES}
    graph = {
        name: {i[11:] for i in imports(path) if i.startswith("sega_bench.") and i[11:] in names} - {name}
        for name, path in names.items()
        if name not in ("", "sega", "scores", "faces", "views")
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_bears_a_public_functions_name() -> None:
    assert not {module(path) for path in FILES} & {"compose", "plan", "run", "load"}
