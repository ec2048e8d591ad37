import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sega_bench.config import PromptFileConfig
from sega_bench.errors import UserError
from sega_bench.planning.prompts import Prompt, read_prompts


def read(path: Path, text: str, **options: object) -> tuple[Prompt, ...]:
    path.write_text(text, encoding="utf-8")
    return read_prompts(str(path), PromptFileConfig(**options))  # type: ignore[arg-type]


def test_a_list_is_read_as_it_is() -> None:
    assert read_prompts(["a", ""], PromptFileConfig()) == (Prompt("a"), Prompt(""))


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    prompts = read(tmp_path / "p.txt", "\ufeffa face, smiling\n\n  \nzwölf Boxkämpfer\n")
    assert [prompt.text for prompt in prompts] == ["a face, smiling", "zwölf Boxkämpfer"]


def test_csv_columns_give_prompts_their_own_settings(tmp_path: Path) -> None:
    text = 'text,sd_seed,scale,bad\n"a ""face"", big",7,3.5,blur\nb,8,4,\n'
    columns = {"seed": "sd_seed", "guidance_scale": "scale", "negative_prompt": "bad"}
    first, second = read(tmp_path / "p.csv", text, column="text", columns=columns)
    assert first == Prompt('a "face", big', {"seed": 7, "guidance_scale": 3.5, "negative_prompt": "blur"})
    assert second.own["negative_prompt"] == ""


def test_json_lines_are_read_up_to_a_limit(tmp_path: Path) -> None:
    text = '{"prompt": "a", "s": 1}\n\n{"prompt": "b", "s": 2}\nnot read\n'
    prompts = read(tmp_path / "p.jsonl", text, limit=2, columns={"seed": "s"})
    assert prompts == (Prompt("a", {"seed": 1}), Prompt("b", {"seed": 2}))


# str.splitlines breaks at all of these, but only \n and \r\n end a line in prompt files.
BREAKS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
texts = st.text(st.sampled_from('ab, "\n\r\t' + BREAKS), min_size=1, max_size=12)


@given(st.lists(texts.filter(str.strip), min_size=1, max_size=4))
def test_texts_of_csv_and_json_lines_are_read_unchanged(written: list[str]) -> None:
    with TemporaryDirectory() as folder:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([["n", "prompt"], *enumerate(written)])
        path = Path(folder) / "p.csv"
        path.write_bytes(table.getvalue().encode())
        assert [prompt.text for prompt in read_prompts(str(path), PromptFileConfig())] == written
        lines = "\r\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in written)
        path = Path(folder) / "p.jsonl"
        path.write_bytes(lines.encode())
        assert [prompt.text for prompt in read_prompts(str(path), PromptFileConfig())] == written


def test_only_newlines_end_a_line_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(f"a{BREAKS}b\r\nc\rd\n".encode())
    assert [p.text for p in read_prompts(str(tmp_path / "p.txt"), PromptFileConfig())] == [
        f"a{BREAKS}b",
        "c\rd",
    ]


def test_numbers_of_json_are_passed_on_unchanged_for_the_cell_to_check(tmp_path: Path) -> None:
    text = (
        '{"prompt": "a", "s": 7.9}\n{"prompt": "b", "s": 1e999}\n{"prompt": "c", "s": 18446744073709551616}\n'
    )
    prompts = read(tmp_path / "p.jsonl", text, columns={"seed": "s"})
    assert [prompt.own["seed"] for prompt in prompts] == [7.9, float("inf"), 2**64]
    assert prompts[1].origin == {"seed": f"prompts: {tmp_path / 'p.jsonl'} line 2, column s: seed"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "prompts: there are none"),
        (None, "prompts: there are none"),
        ([True], "prompts[0] is true, a boolean"),
        (["a", False], "YAML reads no, off"),
        ([3], "prompts[0] is 3, but it must be a text"),
        ("a cat", "put it in a list"),
        ("no/such.csv", "cannot be read (No such file or directory)"),
        ("~nobody-here/p.csv", "prompts is '~nobody-here/p.csv', but there is no such user"),
        ("a\0.csv", "prompts is 'a\\x00.csv', with '\\x00' at character 2"),
        (["a", "b\ud800"], "prompts[1] is 'b\\ud800', with '\\ud800' at character 2"),
        (["a" * 10_000_000], "prompts[0] has 10,000,000 characters: give at most 10,000"),
    ],
)
def test_invalid_prompts_are_refused(value: object, expected: str) -> None:
    with pytest.raises(UserError) as error:
        read_prompts(value, PromptFileConfig())
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "options", "expected"),
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
        ("p.txt", "a\nb\x1b[31m\n", {}, "line 2, column prompt is 'b\\x1b[31m', with '\\x1b' at character 2"),
        ("p.txt", "a" * 10_001, {}, "line 1, column prompt has 10,001 characters"),
        ("p.csv", "prompt\na\nb, c\n", {}, "line 3 has more fields than the header, which has 1"),
        ("p.csv", "prompt,prompt\na,b\n", {}, "has 2 columns 'prompt'"),
        ("p.csv", "prompt\n" + "a" * 140_000, {}, "line 2 cannot be read (field larger than"),
        ("p.jsonl", '{"prompt": "a", "s": 7}\n{"prompt": "\\ud800", "s": 7}', {}, "line 2, column prompt is"),
        ("p.jsonl", "[" * 100_000, {}, "line 1 is not JSON"),
        (
            "p.jsonl",
            '{"prompt": "a", "s": true}',
            {"columns": {"seed": "s"}},
            "line 1, column s: seed is True",
        ),
        ("p.jsonl", '{"prompt": "a", "s": [7]}', {"columns": {"seed": "s"}}, "column s: seed is [7]"),
        ("p.jsonl", '{"prompt": "a", "s": "x"}', {"columns": {"seed": "s"}}, "column s: seed is 'x'"),
        ("p.jsonl", '{"prompt": "a", "n": 7}', {"columns": {"negative_prompt": "n"}}, "negative_prompt is 7"),
        ("p.txt", "a\n", {"limit": 0}, "prompt_file.limit is 0"),
    ],
)
def test_invalid_files_are_refused(
    tmp_path: Path, name: str, text: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / name, text, **options)
    assert expected in str(error.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("zwölf".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_prompts(str(tmp_path / "p.txt"), PromptFileConfig())
