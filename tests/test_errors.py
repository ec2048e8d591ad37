import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import subcommand

import sega_bench
from sega_bench.cli.subcommands import SUBCOMMANDS
from sega_bench.errors import UserError, check_count, exit_on_user_error, nearest


@given(st.text())
def test_a_user_error_is_one_printable_line(message: str) -> None:
    line = str(UserError(message))
    assert line.isprintable()
    assert len(line) <= 1003


def test_a_long_user_error_is_truncated() -> None:
    assert str(UserError("a" * 10_000_000)) == "a" * 1000 + "..."


def test_the_nearest_name_is_suggested_in_its_written_form() -> None:
    assert nearest("treshold", ["scale", "threshold"]) == "did you mean threshold? "
    assert nearest("eulre", {"euler", "ddim"}, str.upper) == "did you mean EULER? "
    assert nearest("xyz", ["threshold"]) == ""


def test_counts_have_a_lower_and_an_upper_bound() -> None:
    check_count("n", 1, 3)
    check_count("n", 3, 3)
    with pytest.raises(UserError, match=r"^n is 0, but it must be at least 1$"):
        check_count("n", 0, 3)
    with pytest.raises(UserError, match=r"^n is 1001, but it must be at most 1,000$"):
        check_count("n", 1001, 1000)


# --- user errors of the commands ---

COMMANDS = {
    "benchmark": ["seeeds=1", "--parts", "counts"],
    "compare": ["{}", "{}"],
    "completion": ["csh"],
    "figures": ["{}"],
    "grids": ["{}"],
    "report": ["{}"],
    "score": ["{}"],
    "sets": ["{}"],
    "study": ["{}"],
    "verify": ["{}"],
    "wandb": ["{}"],
}
"""Each sub-command with a mistake; ``{}`` is an empty folder."""


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_reports_a_user_error_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subcommand(name, *(word.format(tmp_path) for word in COMMANDS[name])) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert (message.count("\n"), message[-1]) == (1, "\n")
    assert list(tmp_path.iterdir()) == []


def test_no_command_handles_user_errors_itself() -> None:
    package = Path(sega_bench.__file__).parent
    callers: set[str] = set()
    for path in set(package.rglob("*.py")) - {package / "errors.py"}:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or node) == "UserError":
                assert "exit" not in ast.unparse(node), path
        if "with exit_on_user_error()" in text:
            callers.add(".".join(path.relative_to(package).with_suffix("").parts))
    assert callers == {"cli.main", "faces.evaluate"}


def test_any_other_exception_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        print(1 / 0)
    assert capsys.readouterr().err == ""
