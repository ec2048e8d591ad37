import ast
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sega_bench
from sega_bench.errors import UserError, check_count, mistakes_in_one_line, nearest


@given(st.text())
def test_a_mistake_is_one_printable_line(message: str) -> None:
    told = str(UserError(message))
    assert told.isprintable()
    assert len(told) <= 1003


def test_a_long_mistake_is_cut() -> None:
    assert str(UserError("a" * 10_000_000)) == "a" * 1000 + "..."


def test_the_nearest_is_told_as_it_is_written() -> None:
    assert nearest("treshold", ["scale", "threshold"]) == "did you mean threshold? "
    assert nearest("eulre", {"euler", "ddim"}, str.upper) == "did you mean EULER? "
    assert nearest("xyz", ["threshold"]) == ""


def test_counts_have_two_ends() -> None:
    check_count("n", 1, 3)
    check_count("n", 3, 3)
    with pytest.raises(UserError, match=r"^n is 0, but it must be at least 1$"):
        check_count("n", 0, 3)
    with pytest.raises(UserError, match=r"^n is 1001, but it must be at most 1,000$"):
        check_count("n", 1001, 1000)


# --- what the commands do with it ---

COMMANDS = {
    "benchmark.__main__": ["seeeds=1", "--parts", "counts"],
    "scaling.__main__": ["seeeds=1"],
    "scores.__main__": ["{}"],
    "store.__main__": ["verify", "{}"],
    "study.__main__": ["{}", "{}"],
    "views.figures": ["{}"],
    "views.grids": ["{}"],
    "views.report.__main__": ["{}"],
    "views.sets": ["{}"],
    "views.wandb": ["{}"],
}
"""Those beside the first one (tests/test_cli.py), each with a mistake; ``{}`` is an empty folder."""


@pytest.mark.parametrize("module", COMMANDS)
def test_a_mistake_reads_the_same_in_every_command(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(f"sega_bench.{module}").main([word.format(tmp_path) for word in COMMANDS[module]])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ")
    assert (said.count("\n"), said[-1]) == (1, "\n")
    assert list(tmp_path.iterdir()) == []


def test_no_command_words_its_mistakes_itself() -> None:
    package = Path(sega_bench.__file__).parent
    told: set[str] = set()
    for path in set(package.rglob("*.py")) - {package / "errors.py"}:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or node) == "UserError":
                assert "exit" not in ast.unparse(node), path
        if 'if __name__ == "__main__"' in text and "mistakes_in_one_line" in text:
            told.add(".".join(path.relative_to(package).with_suffix("").parts))
    assert told == {"__main__", *COMMANDS}


def test_what_is_no_mistake_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), mistakes_in_one_line():
        print(1 / 0)
    assert capsys.readouterr().err == ""
