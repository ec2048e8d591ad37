"""The one place that knows Optuna: samplers by name, where its trials are kept, asking and telling.

Optuna's storage says which settings were asked for; what they scored is the store's to say. A trial that was
asked and not told, whatever ended that command, is evaluated by the next one.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sega_bench.errors import UserError
from sega_bench.study.settings import StudySettings
from sega_bench.study.space import Params, Setting
from sega_bench.study.trials import Trial

_RESOURCE, _IDENTITY, _AGAIN, _SCORERS = "resource", "study", "again", "scorers"

State = {TrialState.RUNNING: "asked", TrialState.COMPLETE: "told", TrialState.FAIL: "failed"}


class Asking:
    """The trials of one study, in Optuna's storage.

    Args:
        settings: of the study.
        name: of the study in the storage.
        journal: the file that is the storage where ``settings`` name none; only the holder of the folder's
            lock may use it.
        identity: what must be as it was in the storage (:func:`sega_bench.study.settings.identity`).
        batch: how many trials are asked for together: NSGA-II's generation.
        start: values of the first trial; None leaves them to the sampler.

    Raises:
        UserError: the storage can't be had, or holds another study of that name.
    """

    def __init__(
        self,
        settings: StudySettings,
        name: str,
        journal: Path,
        identity: Mapping[str, Any],
        batch: int,
        start: Params | None = None,
    ) -> None:
        self._settings, self._batch, self._start = settings, batch, start
        self._distributions = _distributions(settings.space)
        with _quiet():
            self._study = optuna.create_study(
                storage=_file(journal) if settings.storage is None else _database(settings.storage),
                study_name=name,
                directions=[one.direction for one in settings.objectives],
                load_if_exists=True,
            )
            stored = self._study.user_attrs.get(_IDENTITY)
            if stored is None:
                self._study.set_user_attr(_IDENTITY, dict(identity))
            elif stored != identity:
                raise UserError(f"study.storage: it holds another study {name}: choose another name=")
            self._give_up_torn()

    def trials(self) -> list[Trial]:
        """Those that were asked for in whole, in the order of asking."""
        later = {frozen.user_attrs[_AGAIN]: frozen for frozen in self._all() if _AGAIN in frozen.user_attrs}
        return [self._trial(number, later.get(number, one)) for number, one in enumerate(self._whole())]

    def ask(self) -> None:
        """Ask for one trial more.

        Its random numbers depend on how many were asked for before and on nothing else, so that a study that
        was killed asks what it would have asked.
        """
        number = len(self._whole())
        with _quiet():
            if (given := self._given(number)) is not None:
                waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                if not waiting:
                    self._study.enqueue_trial(dict(given))
            self._study.sampler = self._sampler(number)
            self._study.ask(self._distributions)

    def check_scorers(self, scorers: Mapping[str, Any]) -> None:
        """Keep what made the scores that are told, or compare it with what is kept.

        Raises:
            UserError: it is another: of two kinds of scores no sampler can make sense.
        """
        stored = self._study.user_attrs.get(_SCORERS)
        if stored is None:
            self._study.set_user_attr(_SCORERS, dict(scorers))
        elif stored != json.loads(json.dumps(scorers)):
            names = ", ".join(name for name in scorers if stored.get(name) != scorers[name])
            raise UserError(
                f"study.trials: the pictures were scored anew, but trials were chosen by the old {names}: "
                "for more of them give the study another name=..., or score with the old settings again"
            )

    def _given(self, number: int) -> Params | None:
        """A trial's values where they are none of a sampler's business."""
        if self._settings.sampler == "grid":
            return grid(self._settings)[number]
        return self._start if number == 0 else None

    def _give_up_torn(self) -> None:
        """End what a kill left of trials whose asking it cut off: GP takes them to be under way for ever."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.params.keys() != self._distributions.keys():
                self._study.tell(frozen.number, state=TrialState.FAIL)

    def grant(self, trials: Sequence[Trial], resources: Sequence[int]) -> None:
        """Keep how many blocks each of a batch was given, before the first of them is told.

        A kill between two of them would else leave a batch of which some are told, and who of the others goes
        on would be decided beside these instead of among them.

        Args:
            trials: that were asked for and not told.
            resources: of each.
        """
        frozen = self._whole()
        with _quiet():
            for trial, resource in zip(trials, resources, strict=True):
                live = optuna.trial.Trial(self._study, frozen[trial.number]._trial_id)
                live.set_user_attr(_RESOURCE, resource)

    def tell(
        self, trial: Trial, values: Sequence[float] | None, excess: Mapping[str, float], resource: int
    ) -> None:
        """Tell what a trial scored.

        Optuna can't be told of a failed trial again: what it scored at last becomes another one there.

        Args:
            trial: as :meth:`trials` gives it, asked; or failed, and tried again.
            values: of each objective; None of a trial that failed.
            excess: by how much each constraint is missed, none where it is not above 0.
            resource: how many blocks it was given.
        """
        frozen = self._whole()[trial.number]
        if trial.state == "failed":
            if values is not None:
                self._add(trial.number, frozen, values, excess, resource)
            return
        with _quiet():
            self._study.sampler = RandomSampler()  # telling is none of a sampler's business
            live = optuna.trial.Trial(self._study, frozen._trial_id)
            for name, value in excess.items():
                live.set_constraint(name, value)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(frozen.number, values, state=state)

    def _add(
        self,
        number: int,
        failed: FrozenTrial,
        values: Sequence[float],
        excess: Mapping[str, float],
        resource: int,
    ) -> None:
        with _quiet():
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=failed.params,
                    distributions=failed.distributions,
                    values=values,
                    constraints=dict(excess),
                    user_attrs={_RESOURCE: resource, _AGAIN: number},
                )
            )

    def _all(self) -> list[FrozenTrial]:
        """Optuna's trials without those that wait, or whose asking was cut off."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self._distributions.keys()]

    def _whole(self) -> list[FrozenTrial]:
        """Those that were asked for, each once."""
        return [trial for trial in self._all() if _AGAIN not in trial.user_attrs]

    def _trial(self, number: int, frozen: FrozenTrial) -> Trial:
        params = {name: frozen.params[name] for name in self._distributions}
        return Trial(number, params, frozen.user_attrs.get(_RESOURCE, 0), State[frozen.state])  # type: ignore[arg-type]

    def _sampler(self, number: int) -> BaseSampler:
        seed = Random(f"{self._settings.sampler_seed} {number}").randrange(2**32)
        if self._settings.sampler == "tpe":
            return TPESampler(seed=seed, multivariate=True)
        if self._settings.sampler == "nsga2":
            return NSGAIISampler(seed=seed, population_size=max(2, self._batch))
        if self._settings.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=min(10, 2 * len(self._distributions) + 1))
        return RandomSampler(seed=seed)


def grid(settings: StudySettings) -> list[Params]:
    """All settings of a space that has an end of them, in an order that the seed decides."""
    axes = {parameter: setting.values() for setting in settings.space for parameter in setting.parameters}
    points: list[Params] = [dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())]
    Random(settings.sampler_seed).shuffle(points)
    return points


def _distributions(searched: Sequence[Setting]) -> dict[str, BaseDistribution]:
    return {name: _distribution(setting) for setting in searched for name in setting.parameters}


def _distribution(setting: Setting) -> BaseDistribution:
    if setting.choices:
        return CategoricalDistribution(setting.choices)
    if setting.is_whole:
        return IntDistribution(
            int(setting.low), int(setting.high), step=int(setting.step or 1), log=setting.log
        )
    return FloatDistribution(setting.low, setting.high, step=setting.step, log=setting.log)


def _file(journal: Path) -> JournalStorage:
    try:
        _clear_killed(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{journal}: it is damaged: remove it, and the study begins anew; its images and scores are kept"
        ) from error


def _clear_killed(journal: Path) -> None:
    """Remove what a killed writer left: its lock, for nobody else is here, and a line that it did not end.

    Optuna would wait for the first, and append to the second and never read it again.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        with open(journal, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _database(url: str) -> optuna.storages.BaseStorage:
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # whatever a driver raises; what it says may hold the password
        raise UserError(
            f"study.storage: this database can't be had ({type(error).__name__}): give SQLAlchemy's URL of "
            "one, such as sqlite:////path/to/a/file, or null for a file in the folder"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log, and without its warnings of what it may change."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
