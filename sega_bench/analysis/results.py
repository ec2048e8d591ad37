"""A sweep read back from its folder, with everything computed from its rows; each once, when first used.

Every view takes a :class:`Results`. None computes a table of its own or reads plan.json again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from sega_bench.analysis import advice, frames, summary
from sega_bench.analysis.best import Criteria, Judged, StudyAnswers
from sega_bench.analysis.claims import claims
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.scores import COST
from sega_bench.analysis.sentences import reasons, sureness_sentences, verdict_sentence
from sega_bench.store import Store

_Table = TypeVar("_Table")


@dataclass(frozen=True)
class Results:
    """The rows of a sweep's present plan and what they say.

    Args:
        store: the sweep's folder.
        plan: the content of plan.json.
        frame: one row per cell, as :func:`sega_bench.load` returns it.
        digest: identifies this state of the folder (64 hex digits); views carry it to show that they are
            up to date.
        answers: a study's answers (:meth:`sega_bench.store.Store.answers`): empty while the study is not
            finished, None for a sweep.
    """

    store: Store
    plan: Mapping[str, Any]
    frame: pd.DataFrame
    digest: str
    answers: StudyAnswers = None
    _per_axis: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Store | str | Path) -> Results:
        """The results in a folder.

        Raises:
            UserError: the folder holds no sweep, or one written by another version.
        """
        store = folder if isinstance(folder, Store) else Store(Path(folder))
        plan, frame, digest, answers = frames.read(store)
        return cls(store, plan, frame, digest, answers)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self.plan["name"])

    @property
    def axes(self) -> list[str]:
        """The settings that vary, in the order in which they were given."""
        return list(self.plan["axes"])

    @property
    def zipped_axes(self) -> list[str]:
        """The axes that advance together."""
        return list(self.plan.get("settings", {}).get("zip") or {})

    @property
    def is_study(self) -> bool:
        """Whether the settings were searched rather than crossed."""
        return self.answers is not None

    @property
    def cost_name(self) -> str:
        """The full name of the perceptual distance in column ``lpips``, such as "LPIPS (AlexNet)"."""
        return str((self.plan["scores"].get(COST) or {}).get("name") or "LPIPS")

    @property
    def criteria(self) -> Criteria:
        """By which settings are judged."""
        return Criteria.of(self.plan)

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """The verdict over all concept sets ("all") and on each; see :mod:`sega_bench.analysis.verdict`."""
        return summary.verdicts(self.frame, self.axes, self.criteria)

    @property
    def verdict_lines(self) -> list[str]:
        """:meth:`verdict_lines_of` all concept sets together."""
        return self.verdict_lines_of(ALL)

    def verdict_lines_of(self, concepts: str) -> list[str]:
        """The verdict and how sure it is, in sentences; nothing for a study, whose answers say it.

        Args:
            concepts: a concept set as JSON, or "all".
        """
        judged = self.judged.get(concepts)
        if self.is_study or judged is None:
            return []
        cost = self.criteria.cost
        cost_name = self.cost_name if cost == COST else cost
        sentence = verdict_sentence(judged, self.axes, cost_name, concepts)
        return [sentence, *sureness_sentences(judged)]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """See :func:`sega_bench.analysis.summary.summarise`."""
        return summary.summarise(self.frame, self.axes, self.answers, self.criteria, self.judged)

    @property
    def pooled(self) -> pd.DataFrame:
        """The summary's rows over all concept sets."""
        return self.summary[self.summary["concepts"] == ALL]

    @property
    def per_concept(self) -> pd.DataFrame:
        """The summary's rows of single concept sets."""
        return self.summary[self.summary["concepts"] != ALL]

    @cached_property
    def claims(self) -> pd.DataFrame:
        """See :func:`sega_bench.analysis.claims.claims`."""
        return claims(self.frame, self.axes, self.answers, self.criteria)

    @cached_property
    def trends(self) -> pd.DataFrame:
        """See :func:`sega_bench.analysis.summary.trends`."""
        return summary.trends(self.frame, self.axes)

    @cached_property
    def advice(self) -> list[str]:
        """See :func:`sega_bench.analysis.advice.next_steps`; nothing for an empty table."""
        if not len(self.frame):
            return []
        steps = advice.next_steps(self.summary, self.trends, self.axes)
        return [*(reasons(self.judged[ALL]) if ALL in self.judged and not self.is_study else ()), *steps]

    def curve(self, axis: str) -> pd.DataFrame:
        """See :func:`sega_bench.analysis.summary.curve`."""
        return self._once("curve", axis, lambda: summary.curve(self.frame, axis, self.axes))

    def areas(self, axis: str) -> pd.DataFrame:
        """See :func:`sega_bench.analysis.summary.areas`."""
        return self._once("areas", axis, lambda: summary.areas(self.summary, axis))

    def _once(self, table: str, axis: str, compute: Callable[[], _Table]) -> _Table:
        if (table, axis) not in self._per_axis:
            self._per_axis[table, axis] = compute()
        result: _Table = self._per_axis[table, axis]
        return result
