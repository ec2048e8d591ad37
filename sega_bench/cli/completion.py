"""Tab completion of sub-commands, config groups and keys, for bash, zsh and fish.

eval "$(sega-bench completion bash)"      # in ~/.bashrc
eval "$(sega-bench completion zsh)"       # in ~/.zshrc, after compinit
sega-bench completion fish | source       # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from sega_bench.cli.subcommand import parser_of
from sega_bench.cli.subcommands import SUBCOMMANDS, is_subcommand, load
from sega_bench.config import Config, EditConfig, SamplingConfig, options

_GROUPS = {"model": "", "scores": "", "launch": "", "sweep": "+", "study": "+"}
"""Config groups, each with the prefix that Hydra wants before its name."""

_SCRIPTS = {
    # COMP_WORDBREAKS splits words at = and :, so the text before the last of these is cut off again.
    "bash": """_sega_bench() {
  local line="${COMP_LINE:0:COMP_POINT}" word candidates before
  word="${line##* }"
  read -ra before <<< "${line% *}"
  mapfile -t candidates < <(sega-bench completion candidates -- "${before[@]}" "$word")
  COMPREPLY=($(compgen -W "${candidates[*]}" -- "$word"))
  [[ "$word" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
}
complete -o default -o nospace -F _sega_bench sega-bench""",
    "zsh": """_sega_bench() {
  local -a candidates
  candidates=("${(@f)$(sega-bench completion candidates -- "${(@)words[1,CURRENT]}")}")
  compadd -S '' -- $candidates || _files
}
compdef _sega_bench sega-bench""",
    "fish": """complete -c sega-bench -a \
'(sega-bench completion candidates -- (commandline -cpo) (commandline -ct))'""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("shell", choices=[*_SCRIPTS, "candidates"], metavar="{bash,zsh,fish}")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Print the shell's script; or the candidates for a command line's last word."""
    if args.shell in _SCRIPTS:
        print(_SCRIPTS[args.shell])
    else:
        print(*candidates(args.words[1:]), sep="\n")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word of a command line can be: a setting, or a flag of the sub-command before it.

    Args:
        words: the command line without the program; the last one is being typed, and may be empty.
    """
    *before, current = words or [""]
    if is_subcommand(before):
        return [flag for flag in _flags(before[0]) if flag.startswith(current)]
    names = [] if before else list(SUBCOMMANDS)
    return sorted(word for word in (*names, *_settings(current)) if word.startswith(current))


def _flags(name: str) -> list[str]:
    if name not in SUBCOMMANDS:
        return []
    parser = parser_of(name, load(name))
    return sorted(flag for action in parser._actions for flag in action.option_strings if flag[:2] == "--")


def _settings(current: str) -> Iterator[str]:
    """Every ``group=choice`` and ``key=``; of nested keys only the level that is being typed."""
    prefix = current[:1] if current[:1] in ("+", "~") else ""
    for group, plus in _GROUPS.items():
        yield from (f"{plus}{group}={choice}" for choice in options(group))
    yield from _keys(Config, prefix, current)


def _keys(schema: Any, prefix: str, current: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    for one in fields(schema):
        name = f"{prefix}{one.name}"
        if one.name in ("axes", "zip"):
            yield from (f"{name}.{setting}=" for setting in _axis_names())
        elif not is_dataclass(hints[one.name]):
            yield f"{name}="
        elif current.startswith(f"{name}."):
            yield from _keys(hints[one.name], f"{name}.", current)
        else:
            yield f"{name}."


def _axis_names() -> list[str]:
    """The settings that can be an axis."""
    settings = [one.name for schema in (EditConfig, SamplingConfig) for one in fields(schema)]
    return [*settings, "method", "negative_prompt"]
