"""A study in its folder: opened, searched, checked on held-out prompts and seeds, answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sega_bench.cell import shown
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan
from sega_bench.store import Store
from sega_bench.study import settings as reading
from sega_bench.study.answers import Answers, answer, measured
from sega_bench.study.loop import Step, search
from sega_bench.study.optuna_study import Asking
from sega_bench.study.scoring import Rows, Scores
from sega_bench.study.trials import SETTINGS, Study, asked

STUDY_VERSION = 2
"""Version of study.json; a folder of another version is refused."""


class Conduct:
    """A study at work in a folder whose lock is held.

    Args:
        study: resolved.
        store: its folder.

    Raises:
        UserError: the folder holds another study, or its trials can't be had.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self._study, self._store = study, store
        identity = {"study_version": STUDY_VERSION}
        identity |= reading.identity(study.settings, dict(asked(study)))
        identity = json.loads(json.dumps(identity))
        _check_identity(identity, store.study_path)
        self._asking = Asking(
            study.settings, study.baseline.name, store.study_journal, identity, study.batch, study.start
        )
        store.write_text(store.study_path, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")

    def search(self) -> Iterator[Step]:
        """See :func:`sega_bench.study.loop.search`."""
        return search(self._study, self._asking, lambda: _rows(self._store), self._scorers)

    def _scorers(self) -> Mapping[str, Any]:
        """What made the scores that trials are told, by their names."""
        provenance = (self._store.read_plan() or {}).get("scores", {})
        return {name: provenance.get(name) for name in self._study.settings.names}

    def failed(self) -> set[str]:
        """The keys of the cells that failed."""
        return {key for key, row in _rows(self._store).items() if row["status"] == "failed"}

    def plan(self) -> Plan:
        """The baseline, the trials that were given all blocks, and those that failed: what the views show.

        Settings that were dropped early have scores on too few blocks to stand beside the others. Their cells
        stay in the records, and their estimates in trials.csv.
        """
        everything = len(self._study.blocks)
        shown_ones = (t for t in self._asking.trials() if t.resource == everything or t.state == "failed")
        made = self._study.trying_once()  # the search has tried again what failed
        return made.plan([(trial.params, trial.resource) for trial in shown_ones])

    def answers(self) -> Answers:
        """What was found so far."""
        return answer(Scores(self._study, _rows(self._store)), self._asking.trials())

    def transfer(self, found: Answers) -> Plan | None:
        """The plan that tries what was found on prompts and seeds that were held out; None if none were."""
        apart = self._study.held_out
        if apart is None or not found.best:
            return None
        return apart.plan([(best.trial.params, len(apart.blocks)) for best in found.best])

    def transferred(self, found: Answers, store: Store) -> Answers:
        """The answers with what they scored there.

        Args:
            found: as :meth:`answers` gave it.
            store: the folder of :meth:`transfer`.
        """
        assert self._study.held_out is not None
        scores = Scores(self._study.held_out, _rows(store))
        apart = tuple(measured(scores, best.trial, best.concepts) for best in found.best)
        return replace(found, held_out=apart)


def _rows(store: Store) -> Rows:
    return {row["key"]: row for row in store.rows()[0]}


def _check_identity(identity: dict[str, object], path: Path) -> None:
    """Refuse to mix two studies in one folder."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):  # it says again what it said
        return
    if not isinstance(stored, dict) or stored == identity:
        return
    names = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
    name = names[0]
    own = name if name in SETTINGS else f"study.{name}"
    key = {"blocks": "prompts or seeds", "concepts": "concepts"}.get(name, own)
    raise UserError(
        f"{key}: this folder holds a study of another {name} ({shown(stored.get(name))}): give this one "
        "another name=..., or the old settings"
    )
