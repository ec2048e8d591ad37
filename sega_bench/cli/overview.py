"""What there is to run: sweeps, studies, models, sub-commands, keys and examples."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from sega_bench.cli.console import console
from sega_bench.cli.subcommands import SUBCOMMANDS
from sega_bench.config import describe_options

ROOT_KEYS = {
    "name": "the folder's name below output_dir; gains -<model> unless the model is faces",
    "description": "a sentence for the report",
    "model": "a model above; model.path is a diffusers folder, a hub id or one .safetensors file",
    "prompts": "a list, or a .csv, .txt or .jsonl file",
    "prompt_file": "how that file is read: column, limit, columns",
    "negative_prompt": "shared by all cells",
    "seeds": "a list, or N for 0 to N-1",
    "concepts": "a list of texts, of {text, edit_...} mappings, or of lists applied together",
    "method": "sega, composable, prompt or negative",
    "replay": "prompts whose edit is applied to the others",
    "sampling": "scheduler, num_inference_steps, guidance_scale, eta, height, width",
    "edit": "edit_guidance_scale, edit_threshold, edit_warmup_steps and the other edit_... settings",
    "axes": "settings to cross, each with a list of values",
    "zip": "settings whose lists advance together",
    "scores": "the scorers: clip_model, perceptual, attributes, dino, batch_size",
    "verdict": "success, gain, cost: the scores that judge settings; margin: the loss that still works",
    "engine": "device, dtype, micro_batch_size, threads, compile and the like",
    "wandb": "mode (auto, online, offline, disabled), project, entity",
    "launch": "inline, local or slurm; launch.workers and the cluster's options",
    "study": "what a study searches, with which sampler, for which objectives",
    "output_dir": "where folders are created (outputs)",
    "dry_run": "print the plan and run nothing",
    "retry_failed": "try failed cells and scores again",
    "fail_fast": "stop at the first failed cell",
}
"""The configuration's root keys, each with a line of help."""

_EXAMPLES = (
    "+sweep=thresholds",
    "+sweep=thresholds model=sd15 dry_run=true",
    "+sweep=thresholds 'axes.edit_threshold=[0.9,0.95]' 'seeds=[0,1,2]' name=mine",
    "+study=pareto study.trials=30",
    "+sweep=thresholds launch=local launch.workers=2",
    "+sweep=thresholds --cfg job",
    "--multirun +sweep=thresholds,warmup model=faces,sd15",
    "report outputs/thresholds",
)


def print_overview(*, keys: bool = False) -> None:
    """Print sweeps, studies, models, sub-commands and examples, a line each.

    Args:
        keys: also the configuration's root keys.
    """
    console.print("[bold]sega_bench[/]: sweep the settings of semantic guidance, score every image\n")
    for title, group, usage in (
        ("Sweeps", "sweep", "+sweep="),
        ("Studies", "study", "+study="),
        ("Models", "model", "model="),
    ):
        _print_lines(title, {f"{usage}{name}": line for name, line in describe_options(group).items()})
    _print_lines("Sub-commands (each with --help)", SUBCOMMANDS)
    if keys:
        _print_lines("Keys, written key=value", ROOT_KEYS)
    console.print("Examples")
    for arguments in _EXAMPLES:
        console.print(Text(f"  python -m sega_bench {arguments}"), soft_wrap=True)


def _print_lines(title: str, lines: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, line in lines.items():
        table.add_row(name, Text(line))
    console.print(table, "")
