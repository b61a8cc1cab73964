"""The data that all trials share: made once, and never put in the place of what other trials have read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twotower import artifact, made_from, steps
from twotower.errors import RecipeError
from twotower.made_from import KIND_OF
from twotower.recipe import Recipe
from twotower.tuning.study import DATA, is_error, refuse_other

Tell = Callable[[str], None]
"""Told a line about how far it is."""


def shared_data(
    recipe: Recipe, *, out: Path, scratch: Path, known: Mapping[str, str], tell: Tell
) -> tuple[Path, dict[str, int]]:
    """The split that all trials read, made where it is not up to date, and its counts.

    Args:
        recipe: Says what data it is.
        out: The study's folder, in which it lies.
        scratch: Where data is made that may turn out to be other data.
        known: Whose trials the study holds, by `known_identity`.
        tell: Told of each step.

    Raises:
        ArtifactError: the study's trials have read other data.
        RecipeError: the validation part tells no trial from another.
    """
    has_trials = DATA in known
    if not has_trials:
        _make(recipe, out, tell=tell)
    elif not _is_up_to_date(recipe, out):
        _make_again(recipe, out, scratch=scratch, known=known, tell=tell)
    split = out / KIND_OF["split"]
    metadata = artifact.read_manifest(split, kind=KIND_OF["split"])["metadata"]
    refuse_without_validation(metadata, metric=recipe.train.metric)
    if not has_trials:
        _refuse_unanswerable(recipe, split)
    return split, metadata["counts"]


def refuse_without_validation(metadata: Mapping[str, Any], *, metric: str) -> None:
    """Tell where nothing is there to tune on: the test part is for judging what was chosen, never for choosing.

    Args:
        metadata: Of the split.
        metric: By which trials are compared.

    Raises:
        RecipeError: the validation part is empty.
    """
    if not metadata["counts"]["validation_interactions"]:
        raise RecipeError(
            f"split: there is no validation part, and trials are compared by {metric} on it, never on the test part. "
            "Set split.validation, such as 0.05."
        )


def _refuse_unanswerable(recipe: Recipe, split: Path) -> None:
    """Tell before any trial what each would else find after its whole training: nothing is asked of it."""
    if is_error(recipe.train.metric):
        return
    from twotower.data.asked import asked_of
    from twotower.data.split import VALIDATION, load_split
    from twotower.evaluation.queries import seen_pairs, static, successive

    # Whom a training asks, and for what: see `Validator.build`.
    dataset = asked_of(load_split(split), VALIDATION, most=recipe.train.memory_rows, seed=recipe.seed)
    asked = (successive if dataset.metadata["protocol"] == "time" else static)(dataset, VALIDATION)
    if seen_pairs(asked, len(dataset.item_ids)).all():
        raise RecipeError(
            f"split: the validation part holds nothing that its users had not met before, so {recipe.train.metric} "
            "tells no trial from another. Raise split.validation, or take another split.protocol."
        )


def _make(recipe: Recipe, out: Path, *, tell: Tell) -> None:
    """Prepared tables and split, where they are not up to date."""
    for ran in steps.run(recipe, out=out):
        if ran.is_fresh:
            tell(f"{ran.step:<9} {ran.directory}")
        if ran.step == "split":
            return


def _make_again(recipe: Recipe, out: Path, *, scratch: Path, known: Mapping[str, str], tell: Tell) -> None:
    """Make them beside the old ones, and put them in their place only if trials read the same as before."""
    tell("the data is not up to date: it is made beside, and compared with what the trials have read")
    _make(recipe, scratch, tell=tell)
    refuse_other(known, {DATA: artifact.fingerprint(scratch / KIND_OF["split"])}, out=out)
    for kind in (KIND_OF["prepare"], KIND_OF["split"]):
        metadata = artifact.read_manifest(scratch / kind, kind=kind)["metadata"]
        with artifact.write_artifact(out / kind, kind=kind, metadata=metadata) as to:
            for path in (scratch / kind).iterdir():
                if path.name != artifact.MANIFEST:  # That of the new place is written when all is there.
                    path.rename(to / path.name)


def _is_up_to_date(recipe: Recipe, out: Path) -> bool:
    prepared, split = out / KIND_OF["prepare"], out / KIND_OF["split"]
    return made_from.is_up_to_date(
        prepared, step="prepare", made_from=made_from.source(recipe)
    ) and made_from.is_up_to_date(split, step="split", made_from=made_from.split(recipe, prepared))
