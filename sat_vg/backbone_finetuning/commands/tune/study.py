"""The trials of a search in an Optuna study on SQLite: which are there, which is next, and how each ended.

Trial number n is a pure function of the seed, n, and the trials that had ended before, so a search that was killed
goes on with the same trials. A process holds the lock of its trial's folder; where a trial is said to run and nobody
holds its lock, its process died, and the next one takes it over.
"""

import shlex
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sat_vg.backbone_finetuning.commands.tune.search import Search
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.plain_values import as_flags
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.folder_lock import is_in_use, lock_folder
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed

STORAGE, TRIALS = "study.db", "trials"
_NAME, _IDENTITY, REASON, EPOCHS = "sat-vg tune", "identity", "reason", "epochs"
LEFT_TO_LP_FT = "fields that lp_ft sets"  # none in searches of versions in which it set nothing
IMAGES = "images"  # of what must be the same, a hash that tells nobody anything
_AT_RANDOM = 5  # trials before TPE chooses, and before one may be stopped early
_AMONG_BEST = 5  # trials by which importances are told; a tenth of a short search would be one or two
_WAIT_S = 60  # for another process that writes
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning, module="optuna")


@dataclass(frozen=True)
class TrialRow:
    """A trial as tables show it."""

    number: int  # from 1
    state: str  # ``done``, ``pruned``, ``failed``, ``running``
    values: dict[str, Any]  # by dimension
    score: float | None  # its best epoch's measure; of a pruned one its last; None where it has none
    epochs: int  # that it was trained, or has been so far
    reason: str | None  # why it failed


class SearchStudy:
    """The study of a search, in a folder that several processes share.

    ``identity`` is what must be the same for a search to go on, by name. In the ``first_epochs`` no trial is pruned;
    None: none ever is. Raises ConfigError where the folder holds another search (what differs is named) or something
    else, or cannot be written to.
    """

    def __init__(
        self, out: Path, search: Search, identity: Mapping[str, Any], maximises: bool, first_epochs: int | None
    ) -> None:
        self.out, self._search = out, search
        pruner = (
            optuna.pruners.NopPruner()
            if first_epochs is None
            else optuna.pruners.MedianPruner(n_startup_trials=_AT_RANDOM - 1, n_warmup_steps=first_epochs + 1)
        )
        try:
            out.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._study = self._open(pruner, "maximize" if maximises else "minimize")
                self._require_same(identity)
                for values in search.combinations or ():
                    self._study.enqueue_trial(values, skip_if_exists=True)
        except OSError as error:
            raise ConfigError(
                f"the folder {str(out)!r} cannot be written to ({error.strerror or error}); choose another --out"
            ) from error

    def _open(self, pruner: optuna.pruners.BasePruner, direction: Literal["minimize", "maximize"]) -> optuna.Study:
        path, trials = self.out / STORAGE, self.out / TRIALS
        if not path.exists() and trials.is_dir() and any(trials.iterdir()):
            raise ConfigError(
                f"{str(trials)!r} holds trials of a search whose {STORAGE} is gone; choose another --out"
            )
        try:
            storage = optuna.storages.RDBStorage(
                "sqlite:///study.db",
                engine_kwargs={"creator": lambda: sqlite3.connect(path, _WAIT_S, check_same_thread=False)},
            )
            others = [name for name in optuna.get_all_study_names(storage) if name != _NAME]
            if others:
                raise ConfigError(
                    f"{str(path)!r} holds another study ({others[0]!r}), none of sat-vg tune; choose another --out"
                )
            return optuna.create_study(
                storage=storage, pruner=pruner, study_name=_NAME, direction=direction, load_if_exists=True
            )
        except (OptunaError, SQLAlchemyError, sqlite3.Error, RuntimeError) as error:
            raise ConfigError(
                f"{str(path)!r} is no storage of a search that this version can read "
                f"({str(error).splitlines()[0]}); choose another --out"
            ) from error

    def _require_same(self, identity: Mapping[str, Any]) -> None:
        earlier = self._study.user_attrs.get(_IDENTITY)
        if earlier is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(_IDENTITY, dict(identity))
            return
        if not isinstance(earlier, dict):
            raise ConfigError(
                f"{str(self.out / STORAGE)!r} holds a study that sat-vg tune did not begin; choose another --out"
            )
        # A field that came with a later version has its default's meaning.
        defaults = {name: value for name, value in FinetuneConfig.defaults().items() if name in identity}
        if LEFT_TO_LP_FT not in earlier and not earlier.get("strategy") and self._trained_all_stages_at_once():
            earlier = {**earlier, "strategy": "full"}  # what an unset strategy meant, and does no longer
        earlier = {**defaults, LEFT_TO_LP_FT: [], **earlier}
        identity = {LEFT_TO_LP_FT: [], **identity}
        different = [name for name in {**earlier, **identity} if earlier.get(name) != identity.get(name)]
        # Of what is searched, no trial has the value that stands beside the search.
        names = [name for name in different if name not in self._search.names]
        if names:
            differences = "".join(f"\n  {line}" for line in _shown_differences(names, earlier, identity)[:8])
            raise ConfigError(
                f"{str(self.out)!r} holds another search, of which its trials are:{differences}\n"
                f"Use {_flags_that_go_on(names, earlier, identity)} to go on, or another --out for this one"
            )

    def _trained_all_stages_at_once(self) -> bool:
        """Whether trials without a strategy did, as in earlier versions; now ``lp_ft`` may be chosen."""
        base = self._search.base
        if "row" in self._search.names or not base.pretrained or (base.says_what_is_trained and not base.strategy):
            return False
        logs = [self.folder_of(one.number + 1) / "logs" / METRICS for one in self._study.get_trials(deepcopy=False)]
        first_lines = [entry for log in logs if log.exists() for _, entry in read_metric_lines(log).lines[:1]]
        return any(entry.get("phase") == "full" for entry in first_lines)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes of this search from choosing or ending a trial meanwhile."""
        with alone_with(self.out / ".choosing.lock"):
            yield

    def folder_of(self, number: int) -> Path:
        """The folder of a trial by its number."""
        return self.out / TRIALS / f"{number:04d}"

    @contextmanager
    def next_trial(self, most: int) -> Iterator["RunningTrial | None"]:
        """The next trial, locked against other processes: one whose process died, or a new one; None: no more."""
        with ExitStack() as stack:
            with self._alone():
                trial = self._orphan() or self._new(most)
                if trial is not None:
                    stack.enter_context(lock_folder(self.folder_of(trial.number + 1), "choose another --out"))
            yield None if trial is None else RunningTrial(self, self._study, trial, self._values_of(trial))

    def _orphan(self) -> Trial | None:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = [one for one in running if not is_in_use(self.folder_of(one.number + 1))]
        return Trial(self._study, left[0]._trial_id) if left else None

    def _new(self, most: int) -> Trial | None:
        trials = self._study.get_trials(deepcopy=False)
        waiting = sum(one.state == TrialState.WAITING for one in trials)
        is_over = len(trials) - waiting >= most or (self._search.combinations is not None and not waiting)
        return None if is_over else self._study.ask()

    def _values_of(self, trial: Trial) -> dict[str, Any]:
        """Let the trial choose what it has not chosen yet."""
        seed = self._search.base.seed
        for place, dimension in enumerate(self._search.dimensions):
            # A generator for each choice: one that was killed between two of them goes on with the same.
            own_seed = derive_seed(seed, Purpose.SEARCH, trial.number, place) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(
                seed=own_seed, n_startup_trials=_AT_RANDOM, constant_liar=True
            )
            dimension.suggest(trial)
        return dict(trial.params)

    def rows(self) -> list[TrialRow]:
        """The trials that were begun: those that are done, best first, then the others in their order."""
        rows = [_row_of(one) for one in self._study.get_trials(deepcopy=False) if one.state != TrialState.WAITING]
        sign = -1 if self._study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        scores = {row.number: row.score or 0.0 for row in rows if row.state == "done"}
        return sorted(rows, key=lambda row: (row.state != "done", sign * scores.get(row.number, 0.0), row.number))

    def importances(self) -> dict[str, float]:
        """The share of each dimension in what tells the best trials from all (PED-ANOVA; Watanabe et al., 2023).

        The best are a tenth, five at least, and at most half. Empty where fewer than two dimensions or five finished
        trials leave nothing to tell apart.
        """
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        names = [n for n in self._search.names if len({one.params[n] for one in done}) > 1]
        if len(done) < _AT_RANDOM or len(names) < 2 or len({one.value for one in done}) < 2:
            return {}
        best_share = min(0.5, max(0.1, _AMONG_BEST / len(done)))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best_share)
        return optuna.importance.get_param_importances(self._study, evaluator=evaluator, params=names)


@dataclass
class RunningTrial:
    """A trial that this process runs."""

    _search: SearchStudy
    _study: optuna.Study
    _trial: Trial
    values: dict[str, Any]  # by dimension
    _is_below: bool = False

    @property
    def number(self) -> int:
        """From 1."""
        return self._trial.number + 1

    @property
    def folder(self) -> Path:
        """Of its files."""
        return self._search.folder_of(self.number)

    def is_below_median(self, scores: Mapping[int, float]) -> bool:
        """Report scores by epoch, from 1, in their order, and whether the trial is to be stopped after one."""
        known = {*self._study.get_trials(deepcopy=False)[self._trial.number].intermediate_values}
        judged = max(known, default=0) - 1  # a process that was killed may not have judged its last one
        for epoch in sorted(scores):
            if self._is_below:  # what came after does not count
                break
            if epoch not in known:
                self._trial.report(scores[epoch], epoch)
            if epoch > judged:
                self._is_below = self._trial.should_prune()
        return self._is_below

    def end(self, epochs: int, score: float | None = None, reason: str | None = None) -> None:
        """Write down how it ended: with a score, with the reason of a failure, or, with neither, pruned."""
        self._trial.set_user_attr(EPOCHS, epochs)
        if reason is not None:
            self._trial.set_user_attr(REASON, reason)
        state = TrialState.COMPLETE if score is not None else TrialState.FAIL if reason else TrialState.PRUNED
        with self._search._alone():
            self._study.tell(self._trial.number, score, state=state)


@contextmanager
def explaining_storage(out: Path) -> Iterator[None]:
    """Turn errors of Optuna and SQLite into a WriteError that says what to do."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        raise WriteError(
            f"{str(out / STORAGE)!r} cannot be written to ({str(error).splitlines()[0]}): make room and run the same "
            "command again, which goes on"
        ) from error


def _row_of(trial: FrozenTrial) -> TrialRow:
    states = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return TrialRow(
        number=trial.number + 1,
        state=states.get(trial.state, "running"),
        values=dict(trial.params),
        score=trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        epochs=trial.user_attrs.get(EPOCHS, len(trial.intermediate_values)),
        reason=trial.user_attrs.get(REASON),
    )


def _newly_left(earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Fields that ``lp_ft`` sets in this search and did not set in the earlier one."""
    return [name for name in identity[LEFT_TO_LP_FT] if name not in earlier[LEFT_TO_LP_FT]]


def _shown_differences(names: Sequence[str], earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """A line for each of ``names`` in which two searches differ."""
    plain = [name for name in names if name not in (IMAGES, LEFT_TO_LP_FT)]
    lines = [f"{name}: was {earlier.get(name)!r}, now {identity.get(name)!r}" for name in plain]
    lines += ["the images have changed"] if IMAGES in names else []
    newly_left = _newly_left(earlier, identity)
    if newly_left:
        values = ", ".join(repr(earlier.get(name)) for name in newly_left)
        lines.append(
            f"{', '.join(newly_left)}: {'were' if len(newly_left) > 1 else 'was'} {values} also where lp_ft trains, "
            "which now sets its own"
        )
    elif LEFT_TO_LP_FT in names:
        left = [name for name in earlier[LEFT_TO_LP_FT] if name not in identity[LEFT_TO_LP_FT]]
        lines.append(f"{', '.join(left)}: lp_ft set its own, and now they are given")
    return lines


def _flags_that_go_on(names: Sequence[str], earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """The flags with which this search is the earlier one, or words where flags alone do not make it so.

    A field that nobody set may be among them: its default has changed since.
    """
    newly_left, defaults = _newly_left(earlier, identity), FinetuneConfig.defaults()
    known = [name for name in dict.fromkeys([*names, *newly_left]) if name in defaults and name in earlier]
    told = {*known, *([LEFT_TO_LP_FT] if newly_left else [])}
    if not told >= {*names}:
        return "the same again"
    return shlex.join(as_flags({name: earlier[name] for name in known}))
