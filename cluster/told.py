"""What a study has come to, as plain JSON: the page and people read this, not the study."""

import warnings
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from ser.sweep import WORDS, SweepConfig

SCHEMA = 1
LEAST = 4  # completed trials below which importances would be noise alone


def tell(study: optuna.Study, config: SweepConfig) -> dict[str, Any]:
    """Trials, the best of them, and how much each key mattered.

    Importances are those of PED-ANOVA (Watanabe et al., IJCAI 2023; for conditional keys its extension of 2026): shares of what
    tells the better trials from the others, over completed trials. They are of this space and these trials.
    """
    trials = study.get_trials(deepcopy=False)
    objectives = [
        {
            "title": one.title,
            "metric": one.metric,
            "direction": one.towards,
            "words": WORDS.get(one.metric, ""),
        }
        for one in config.objectives
    ]
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = sorted(study.best_trials, key=lambda t: t.number) if done else []
    if len(objectives) == 1:
        best = best[:1]
    return {
        "schema": SCHEMA,
        "name": study.study_name,
        "objectives": objectives,
        "keys": [key for key in config.space if any(key in trial.params for trial in trials)],
        "log": [key for key, one in config.space.items() if one.log],
        "sampler": config.sampler.model_dump(),
        "pruner": config.pruner.model_dump(),
        "asked": config.trials,
        "counts": {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState},
        "trials": [_trial(trial) for trial in trials],
        "best": [trial.number for trial in best],
        "importances": {one["title"]: _importances(study, done, i) for i, one in enumerate(objectives)},
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "values": trial.values,
        "params": trial.params,
        "steps": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "failures": trial.user_attrs.get("failures", 0),
        "interruptions": trial.user_attrs.get("interruptions", 0),
        "why": trial.user_attrs.get("why", ""),
    }


def _importances(study: optuna.Study, done: list[FrozenTrial], index: int) -> dict[str, float] | None:
    """Key -> share; None where the trials cannot tell."""
    if len(done) < LEAST or len({trial.values[index] for trial in done}) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: trial.values[index]
            )
        except (ValueError, RuntimeError):  # too few different values
            return None
    return {key: float(share) for key, share in found.items()}
