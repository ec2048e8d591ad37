"""A study in its folder: opened, searched, validated on held-out prompts and seeds, and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan
from sega_bench.store import Store
from sega_bench.study.answers import Answers, compute_answers, score_trial
from sega_bench.study.loop import Step, search
from sega_bench.study.optuna_study import OptunaStudy
from sega_bench.study.scoring import Rows, Scores
from sega_bench.study.settings import identity
from sega_bench.study.trials import SETTINGS, Study, fixed_settings

STUDY_VERSION = 2
"""Version of study.json; a folder of another version is refused."""


class StudyRun:
    """A study at work in a folder whose lock is held.

    Args:
        study: resolved.
        store: its folder.

    Raises:
        UserError: the folder holds another study, or Optuna's storage cannot be opened.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self._study, self._store = study, store
        contents = {"study_version": STUDY_VERSION, **identity(study.settings, fixed_settings(study))}
        contents = json.loads(json.dumps(contents))  # tuples become lists, as in the stored file
        _check_identity(contents, store.study_path)
        self._optuna_study = OptunaStudy(
            study.settings,
            study.baseline.name,
            store.study_journal,
            contents,
            study.batch,
            study.baseline_params,
        )
        # Last, so that a refused command leaves no study.json behind.
        store.write_text(store.study_path, json.dumps(contents, indent=1, ensure_ascii=False) + "\n")

    def search(self) -> Iterator[Step]:
        """See :func:`sega_bench.study.loop.search`."""
        return search(self._study, self._optuna_study, lambda: _rows(self._store), self._scorers)

    def _scorers(self) -> Mapping[str, Any]:
        """Provenance of the scores that the study reads, by column."""
        provenance = (self._store.read_plan() or {}).get("scores", {})
        return {name: provenance.get(name) for name in self._study.settings.names}

    def failed(self) -> set[str]:
        """Keys of the failed cells."""
        return {key for key, row in _rows(self._store).items() if row["status"] == "failed"}

    def plan(self) -> Plan:
        """Plan what the views show: the baseline, the trials on all blocks, and the failed trials.

        A pruned trial's scores cover too few blocks for a comparison with these. Its cells stay in the
        records, and its estimates in trials.csv.
        """
        n_blocks = len(self._study.blocks)
        trials = [t for t in self._optuna_study.trials() if t.resource == n_blocks or t.state == "failed"]
        study = self._study.without_retries()  # the search has already retried failed cells
        return study.plan([(trial.params, trial.resource) for trial in trials])

    def answers(self) -> Answers:
        """The study's answers from the stored scores."""
        return compute_answers(Scores(self._study, _rows(self._store)), self._optuna_study.trials())

    def held_out_plan(self, answers: Answers) -> Plan | None:
        """Plan the best settings on the held-out prompts and seeds; None without these, or without a best."""
        held_out = self._study.held_out
        if held_out is None or not answers.best:
            return None
        return held_out.plan([(best.trial.params, len(held_out.blocks)) for best in answers.best])

    def with_held_out(self, answers: Answers, store: Store) -> Answers:
        """Add the best settings' held-out scores to the answers.

        Args:
            answers: as :meth:`answers` returned them.
            store: the folder in which :meth:`held_out_plan` ran.
        """
        assert self._study.held_out is not None
        scores = Scores(self._study.held_out, _rows(store))
        held_out = tuple(score_trial(scores, best.trial, best.concepts) for best in answers.best)
        return replace(answers, held_out=held_out)


def _rows(store: Store) -> Rows:
    return {row["key"]: row for row in store.rows()[0]}


def _check_identity(identity: Mapping[str, object], path: Path) -> None:
    """Refuse to mix two studies in one folder."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: it is written again
        return
    if not isinstance(stored, dict) or stored == identity:
        return
    name = next(name for name in {**stored, **identity} if stored.get(name) != identity.get(name))
    own_key = name if name in SETTINGS else f"study.{name}"
    key = {"blocks": "prompts or seeds", "concepts": "concepts"}.get(name, own_key)
    raise UserError(
        f"{key}: this folder holds a study of another {name} ({abbreviated(stored.get(name))}): give this "
        "one another name=..., or the old settings"
    )
