from pathlib import Path

import pytest

from sega_bench.config import PromptFileConfig
from sega_bench.errors import UserError
from sega_bench.prompts import Prompt, read_prompts


def read(path: Path, text: str, **how: object) -> tuple[Prompt, ...]:
    path.write_text(text, encoding="utf-8")
    return read_prompts(str(path), PromptFileConfig(**how))  # type: ignore[arg-type]


def test_lists() -> None:
    assert read_prompts(["a", ""], PromptFileConfig()) == (Prompt("a"), Prompt(""))


def test_text_files_are_a_prompt_a_line(tmp_path: Path) -> None:
    made = read(tmp_path / "p.txt", "\ufeffa face, smiling\n\n  \nzwölf Boxkämpfer\n")
    assert [prompt.text for prompt in made] == ["a face, smiling", "zwölf Boxkämpfer"]


def test_csv_columns_give_prompts_their_own_settings(tmp_path: Path) -> None:
    text = 'text,sd_seed,scale,bad\n"a ""face"", big",7,3.5,blur\nb,8,4,\n'
    columns = {"seed": "sd_seed", "guidance_scale": "scale", "negative_prompt": "bad"}
    first, second = read(tmp_path / "p.csv", text, column="text", columns=columns)
    assert first == Prompt('a "face", big', {"seed": 7, "guidance_scale": 3.5, "negative_prompt": "blur"})
    assert second.own["negative_prompt"] == ""


def test_json_lines_and_a_limit(tmp_path: Path) -> None:
    text = '{"prompt": "a", "s": 1}\n\n{"prompt": "b", "s": 2}\nnot read\n'
    made = read(tmp_path / "p.jsonl", text, limit=2, columns={"seed": "s"})
    assert made == (Prompt("a", {"seed": 1}), Prompt("b", {"seed": 2}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "prompts: there are none"),
        (None, "prompts: there are none"),
        ([True], "prompts[0] is true, a boolean"),
        (["a", False], "YAML reads no, off"),
        ([3], "prompts[0] is 3, but it must be a text"),
        ("a cat", "put it in a list"),
        ("no/such.csv", "cannot be read (No such file or directory)"),
    ],
)
def test_prompts_that_are_none(value: object, words: str) -> None:
    with pytest.raises(UserError) as error:
        read_prompts(value, PromptFileConfig())
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "how", "words"),
    [
        ("p.csv", "text\na\n", {}, "line 2 has no value in column 'prompt'"),
        ("p.csv", "prompt,seed\na\n", {"columns": {"seed": "seed"}}, "no value in column 'seed'"),
        (
            "p.csv",
            "prompt,seed\na,x\n",
            {"columns": {"seed": "seed"}},
            "seed is 'x', but it must be a number",
        ),
        ("p.csv", 'prompt\n"a\n', {}, "unexpected end of data"),
        ("p.csv", "prompt\na\n", {"columns": {"sed": "x"}}, "prompt_file.columns.sed: did you mean seed?"),
        ("p.jsonl", "[1]\n", {}, "line 1 is not a JSON object"),
        ("p.jsonl", '{"prompt": "a"}\n{', {}, "line 2 is not JSON"),
        ("p.jsonl", '{"prompt": false}', {}, "column prompt is false, a boolean"),
        ("p.txt", "\n\n", {}, "there are none"),
        ("p.txt", "a\n", {"limit": 0}, "prompt_file.limit is 0"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, text: str, how: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / name, text, **how)
    assert words in str(error.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("zwölf".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_prompts(str(tmp_path / "p.txt"), PromptFileConfig())
