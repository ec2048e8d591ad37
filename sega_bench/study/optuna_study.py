"""The only module that imports Optuna: its samplers, its storage, and asking and telling.

Optuna's storage holds the suggested parameters; the folder's store holds the scores. A trial that is still
running in the storage, however its command ended, is evaluated by the next command.
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

# User attributes in Optuna's storage. Existing studies hold these names, so they must not change.
_RESOURCE, _IDENTITY, _RETRY_OF, _SCORERS = "resource", "study", "again", "scorers"

_STATES = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}


class OptunaStudy:
    """The trials of one study in Optuna's storage.

    Trials are numbered by the order of asking, without those whose asking a kill cut off. Optuna's own
    numbers count these too, and count a retried trial twice.

    Args:
        settings: the study's.
        name: the study's name in the storage.
        journal: the storage's file if ``settings`` name no other; used under the folder's lock only.
        identity: what all trials in the storage must share (:func:`sega_bench.study.settings.identity`).
        batch: number of trials asked for together, which is NSGA-II's population size.
        first: parameters of the first trial; None leaves them to the sampler.

    Raises:
        UserError: the storage cannot be opened, or holds another study of that name.
    """

    def __init__(
        self,
        settings: StudySettings,
        name: str,
        journal: Path,
        identity: Mapping[str, Any],
        batch: int,
        first: Params | None = None,
    ) -> None:
        self._settings, self._batch, self._first = settings, batch, first
        self._distributions = _distributions(settings.space)
        with _quiet():
            self._study = optuna.create_study(
                storage=_open_journal(journal) if settings.storage is None else _open_url(settings.storage),
                study_name=name,
                directions=[one.direction for one in settings.objectives],
                load_if_exists=True,
            )
            stored = self._study.user_attrs.get(_IDENTITY)
            if stored is None:
                self._study.set_user_attr(_IDENTITY, dict(identity))
            elif stored != identity:
                raise UserError(f"study.storage: it holds another study {name}: choose another name=")
            self._fail_incomplete()

    def trials(self) -> list[Trial]:
        """All trials in the order of asking, a retried one with its retry's values."""
        retries = {
            frozen.user_attrs[_RETRY_OF]: frozen
            for frozen in self._frozen()
            if _RETRY_OF in frozen.user_attrs
        }
        return [
            self._trial(number, retries.get(number, frozen))
            for number, frozen in enumerate(self._first_attempts())
        ]

    def ask(self) -> None:
        """Ask the sampler for one more trial.

        The sampler is seeded anew by the trial's number, so that a resumed study asks for the same trials as
        an uninterrupted one.
        """
        number = len(self._first_attempts())
        with _quiet():
            if (params := self._fixed_params(number)) is not None:
                # A command that was killed after enqueueing has left the trial waiting.
                waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                if not waiting:
                    self._study.enqueue_trial(dict(params))
            self._study.sampler = self._sampler(number)
            self._study.ask(self._distributions)

    def check_scorers(self, scorers: Mapping[str, Any]) -> None:
        """Store the provenance of the told scores, or compare it with the stored one.

        Raises:
            UserError: they differ. A sampler cannot learn from scores of two kinds.
        """
        stored = self._study.user_attrs.get(_SCORERS)
        if stored is None:
            self._study.set_user_attr(_SCORERS, dict(scorers))
        elif stored != json.loads(json.dumps(scorers)):
            names = ", ".join(name for name in scorers if stored.get(name) != scorers[name])
            raise UserError(
                f"study.trials: the images were rescored, but trials were chosen by the old {names}: for "
                "more trials give the study another name=..., or score with the old settings again"
            )

    def set_resources(self, trials: Sequence[Trial], resources: Sequence[int]) -> None:
        """Store the resource of each trial of a batch, before the first of them is told.

        Without this, a kill between two tells would leave a batch partly told, and the next command would
        promote the rest by comparison with these trials instead of among them.

        Args:
            trials: the batch's running trials.
            resources: number of blocks of each.
        """
        frozen = self._first_attempts()
        with _quiet():
            for trial, resource in zip(trials, resources, strict=True):
                self._live(frozen[trial.number]).set_user_attr(_RESOURCE, resource)

    def tell(
        self, trial: Trial, values: Sequence[float] | None, violations: Mapping[str, float], resource: int
    ) -> None:
        """Tell Optuna a trial's values.

        Optuna refuses to tell a failed trial again, so that the values of a successful retry are added as
        another of its trials.

        Args:
            trial: as :meth:`trials` returned it, running or failed.
            values: one per objective; None fails the trial.
            violations: one per constraint, above 0 where violated.
            resource: its number of blocks.
        """
        frozen = self._first_attempts()[trial.number]
        if trial.state == "failed":
            if values is not None:
                self._add_retry(trial.number, frozen, values, violations, resource)
            return
        with _quiet():
            self._study.sampler = RandomSampler()  # keeps the study's sampler out: its hooks run here too
            live = self._live(frozen)
            for name, value in violations.items():
                live.set_constraint(name, value)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(frozen.number, values, state=state)

    def _fixed_params(self, number: int) -> Params | None:
        """Parameters of a trial that the sampler does not choose: a grid's, or the first one's."""
        if self._settings.sampler == "grid":
            return grid(self._settings)[number]
        return self._first if number == 0 else None

    def _fail_incomplete(self) -> None:
        """Fail trials whose asking a kill cut off. GPSampler would count them as running for ever."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._is_complete(frozen):
                self._study.tell(frozen.number, state=TrialState.FAIL)

    def _add_retry(
        self,
        number: int,
        failed: FrozenTrial,
        values: Sequence[float],
        violations: Mapping[str, float],
        resource: int,
    ) -> None:
        with _quiet():
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=failed.params,
                    distributions=failed.distributions,
                    values=values,
                    constraints=dict(violations),
                    user_attrs={_RESOURCE: resource, _RETRY_OF: number},
                )
            )

    def _live(self, frozen: FrozenTrial) -> optuna.trial.Trial:
        """The running trial itself: Optuna has no public way to get one that another process asked for."""
        return optuna.trial.Trial(self._study, frozen._trial_id)

    def _is_complete(self, frozen: FrozenTrial) -> bool:
        """Whether every parameter was suggested: not while waiting, or if the asking was cut off."""
        return frozen.params.keys() == self._distributions.keys()

    def _frozen(self) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if self._is_complete(trial)]

    def _first_attempts(self) -> list[FrozenTrial]:
        """Trials without the retries."""
        return [trial for trial in self._frozen() if _RETRY_OF not in trial.user_attrs]

    def _trial(self, number: int, frozen: FrozenTrial) -> Trial:
        params = {name: frozen.params[name] for name in self._distributions}
        return Trial(number, params, frozen.user_attrs.get(_RESOURCE, 0), _STATES[frozen.state])  # type: ignore[arg-type]

    def _sampler(self, number: int) -> BaseSampler:
        seed = Random(f"{self._settings.sampler_seed} {number}").randrange(2**32)
        if self._settings.sampler == "tpe":
            return TPESampler(seed=seed, multivariate=True)  # models interactions of parameters
        if self._settings.sampler == "nsga2":
            # One batch is one generation; Optuna's smallest population is 2.
            return NSGAIISampler(seed=seed, population_size=max(2, self._batch))
        if self._settings.sampler == "gp":
            # Optuna starts with 10 random trials; a space of few parameters needs fewer.
            return GPSampler(seed=seed, n_startup_trials=min(10, 2 * len(self._distributions) + 1))
        return RandomSampler(seed=seed)


def grid(settings: StudySettings) -> list[Params]:
    """All points of a finite space, shuffled by the sampler's seed."""
    axes = {parameter: setting.values() for setting in settings.space for parameter in setting.parameters}
    points: list[Params] = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    Random(settings.sampler_seed).shuffle(points)
    return points


def _distributions(space: Sequence[Setting]) -> dict[str, BaseDistribution]:
    return {name: _distribution(setting) for setting in space for name in setting.parameters}


def _distribution(setting: Setting) -> BaseDistribution:
    if setting.choices:
        return CategoricalDistribution(setting.choices)
    if setting.is_integer:
        return IntDistribution(
            int(setting.low), int(setting.high), step=int(setting.step or 1), log=setting.log
        )
    return FloatDistribution(setting.low, setting.high, step=setting.step, log=setting.log)


def _open_journal(path: Path) -> JournalStorage:
    try:
        _clear_killed(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: it is damaged: remove it, and the study begins anew; its images and scores are kept"
        ) from error


def _clear_killed(journal: Path) -> None:
    """Remove a killed writer's lock and its unfinished last line.

    The folder's lock excludes another writer. Optuna would wait for the journal's lock, and would append to
    the unfinished line and then never read it.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        with open(journal, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _open_url(url: str) -> optuna.storages.BaseStorage:
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # any driver's; its message may contain the password
        raise UserError(
            f"study.storage: cannot open this database ({type(error).__name__}): give SQLAlchemy's URL of "
            "one, such as sqlite:////path/to/a/file, or null for a file in the folder"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log, and its warnings about experimental features."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
