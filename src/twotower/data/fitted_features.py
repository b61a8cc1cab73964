"""Every feature of both towers, fitted on the train part; saved with the model and read again by the server."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from twotower.data.feature_encoders import (
    EmbeddingEncoder,
    FeatureEncoder,
    HistoryEncoder,
    Inputs,
    MultiCategoryEncoder,
    NumberEncoder,
    TextEncoder,
    TimestampEncoder,
    VocabularyEncoder,
    refuse_other_widths,
    seconds,
    split_values,
)
from twotower.data.pieces import count_rows, span_of
from twotower.data.schema import (
    CandidateFeature,
    CategoryFeature,
    EmbeddingFeature,
    HistoryFeature,
    IdFeature,
    MultiCategoryFeature,
    NumberFeature,
    QueryFeature,
    SequenceFeature,
    TextFeature,
    TimestampFeature,
)
from twotower.data.split import TRAIN, SplitDataset
from twotower.data.vocabulary import Vocabulary, plain
from twotower.errors import ArtifactError, RecipeError


@dataclass(frozen=True, slots=True)
class FittedFeatures:
    """Every feature of both towers, fitted on the train part; saved with the model and read again by the server."""

    query: tuple[FeatureEncoder, ...]
    candidate: tuple[FeatureEncoder, ...]
    history: HistoryEncoder | None
    user_columns: tuple[str, ...]
    """Query columns that stand in the users table; the others come with each interaction (context)."""

    def candidate_inputs(self, items: pa.Table) -> Inputs:
        """The candidate tower's inputs for `n` rows of an items table; a column that it lacks counts as missing."""
        return {encoder.key: encoder.encode(_column(items, encoder.column)) for encoder in self.candidate}

    def user_inputs(self, users: pa.Table) -> Inputs:
        """The part of the query tower's inputs that stays with the user."""
        chosen = (encoder for encoder in self.query if encoder.column in self.user_columns)
        return {encoder.key: encoder.encode(_column(users, encoder.column)) for encoder in chosen}

    def context_inputs(self, context: pa.Table, timestamp: NDArray[np.int64]) -> Inputs:
        """The part that comes with each query: `n` rows of context, and the moment in microseconds."""
        inputs: Inputs = {}
        for encoder in self.query:
            if encoder.column in self.user_columns:
                continue
            is_moment = encoder.column == "timestamp"
            inputs[encoder.key] = encoder.encode(timestamp if is_moment else _column(context, encoder.column))
        return inputs

    def query_inputs(
        self,
        *,
        columns: Mapping[str, Sequence[Any]],
        timestamp: NDArray[np.int64],
        history: Sequence[tuple[Sequence[str], Sequence[int]]],
    ) -> Inputs:
        """All inputs of the query tower for `n` requests, as a server has them.

        Args:
            columns: `user_id`, user features and context by column, each of `n` values; one left out is missing.
            timestamp: `[n]` the moment of asking, in microseconds since 1970.
            history: `n` pairs of item ids and their moments, in the order of time, all before `timestamp`.
        """
        nothing: list[Any] = [None] * len(timestamp)
        inputs: Inputs = {}
        for encoder in self.query:
            is_moment = encoder.column == "timestamp" and encoder.column not in self.user_columns
            inputs[encoder.key] = encoder.encode(timestamp if is_moment else columns.get(encoder.column, nothing))
        if self.history is not None:
            inputs |= self.history.encode(history, timestamp)
        return inputs

    def save(self, directory: Path) -> None:
        """Write `features.json` and `vocabularies/`."""
        (directory / "vocabularies").mkdir(parents=True)
        described: dict[str, Any] = {"user_columns": self.user_columns}
        for tower, encoders in (("query", self.query), ("candidate", self.candidate)):
            described[tower] = [_describe(encoder) for encoder in encoders]
            for encoder in encoders:
                if isinstance(encoder, VocabularyEncoder | MultiCategoryEncoder):
                    encoder.vocabulary.save(directory / "vocabularies" / f"{tower}_{encoder.key}.parquet")
        described["history"] = asdict(self.history.config) if self.history else None
        (directory / "features.json").write_text(json.dumps(described, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "FittedFeatures":
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file of it is missing or damaged.
        """
        path = directory / "features.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            towers = {
                tower: tuple(
                    _restore(entry, folder=directory / "vocabularies", tower=tower) for entry in described[tower]
                )
                for tower in ("query", "candidate")
            }
            history = described["history"]
            return cls(
                query=towers["query"],
                candidate=towers["candidate"],
                history=HistoryEncoder(_HISTORY.validate_python(history), item_vocabulary(towers["candidate"]))
                if history
                else None,
                user_columns=tuple(described["user_columns"]),
            )
        except (OSError, ValueError, LookupError, TypeError, RecipeError) as fault:
            reason = " ".join(str(fault).split())[:200]
            raise ArtifactError(f"{path}: not readable ({reason}). Train the model again.") from fault


def fit_features(
    query: Sequence[QueryFeature], candidate: Sequence[CandidateFeature], *, dataset: SplitDataset
) -> FittedFeatures:
    """Fit every feature on the train part alone: vocabularies, means, first and last moment.

    Users' and items' features are fitted on those that the train part names, each counted once.

    Raises:
        RecipeError: a column that does not exist or whose type does not fit its kind, a column declared twice as one
            kind, two features that read the history, or one without an `id` feature on `item_id` to embed it by.
        DataError: an embedding that is not as wide as its feature says, in whatever part.
    """
    users = dataset.users.take(np.flatnonzero(count_rows(dataset, TRAIN, by="user")))
    items = dataset.items.take(np.flatnonzero(count_rows(dataset, TRAIN, by="item")))
    single = [feature for feature in query if not isinstance(feature, HistoryFeature | SequenceFeature)]
    histories = [feature for feature in query if isinstance(feature, HistoryFeature | SequenceFeature)]
    user_columns = tuple(feature.column for feature in single if feature.column in users.column_names)
    _refuse_repeats([f"{feature.kind} {feature.column}" for feature in single], tower="query")
    _refuse_repeats([f"{feature.kind} {feature.column}" for feature in candidate], tower="candidate")
    _refuse_second_history(histories)

    _refuse_other_widths(candidate, dataset.items)
    _refuse_other_widths(single, dataset.users, dataset.context)

    def query_values(feature: CandidateFeature) -> Any:
        if feature.column in user_columns:
            return users[feature.column]
        if feature.column == "timestamp":
            # The ends tell all that is fitted on moments, and take no memory where the log is long.
            ends = isinstance(feature, TimestampFeature)
            return pa.array(span_of(dataset, TRAIN) if ends else dataset.timestamp[dataset.part == TRAIN])
        column = _existing(dataset.context, feature.column, where="users table or context")
        return column.filter(pa.array(dataset.part == TRAIN))

    candidates = tuple(_fit(feature, _existing(items, feature.column, where="items table")) for feature in candidate)
    return FittedFeatures(
        query=tuple(_fit(feature, query_values(feature)) for feature in single),
        candidate=candidates,
        history=HistoryEncoder(histories[0], item_vocabulary(candidates)) if histories else None,
        user_columns=user_columns,
    )


def item_vocabulary(candidate: Iterable[FeatureEncoder]) -> Vocabulary:
    """The vocabulary of the candidate tower's item ids, by which histories are embedded too.

    Raises:
        RecipeError: the candidate tower has no `id` feature on `item_id`.
    """
    for encoder in candidate:
        if isinstance(encoder, VocabularyEncoder) and (encoder.config.kind, encoder.column) == ("id", "item_id"):
            return encoder.vocabulary
    raise RecipeError(
        "model.query: a history needs the candidate tower's item ids to embed it. "
        'Add {kind = "id", column = "item_id"} to model.candidate, or take the history out.'
    )


_HISTORY: TypeAdapter[Any] = TypeAdapter(Annotated[HistoryFeature | SequenceFeature, Field(discriminator="kind")])
_FITTING = {
    "id": "single values: text, numbers, booleans or moments",
    "category": "single values: text, numbers, booleans or moments",
    "multi_category": "lists of single values, or text that holds them",
    "number": "numbers",
    "text": "text",
    "timestamp": "timestamps, dates, or whole microseconds since 1970",
    "embedding": "lists of numbers",
}
"""Kind -> what its column may hold."""


def _fit(feature: CandidateFeature, values: Any) -> FeatureEncoder:
    """The feature's encoder, if the column fits its kind."""
    if feature.kind == "embedding":
        fits = _holds_vectors(values.type) or pa.types.is_null(values.type)
    else:
        fits = not pa.types.is_nested(_single(values.type) if feature.kind == "multi_category" else values.type)
    if not fits:
        raise _misfit(feature, values.type, found="")
    try:
        return _fitted(feature, values)
    except pa.ArrowException as fault:
        raise _misfit(feature, values.type, found=f" ({str(fault).splitlines()[0]})") from fault


def _single(kind: pa.DataType) -> pa.DataType:
    """What the lists of a column hold."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list else kind


def _holds_vectors(kind: pa.DataType) -> bool:
    single = _single(kind)
    return single != kind and bool(pa.types.is_floating(single) or pa.types.is_integer(single))


def _misfit(feature: CandidateFeature, kind: pa.DataType, *, found: str) -> RecipeError:
    return RecipeError(
        f"model: column '{feature.column}' holds {kind}, but kind {feature.kind!r} reads "
        f"{_FITTING[feature.kind]}{found}. Declare it as another kind, or convert the column."
    )


def _fitted(feature: CandidateFeature, values: Any) -> FeatureEncoder:
    match feature:
        case IdFeature() | CategoryFeature():
            return VocabularyEncoder(feature, Vocabulary.fit(values))
        case MultiCategoryFeature():
            parts = [text for value in plain(values) for text in split_values(value, feature.separator)]
            return MultiCategoryEncoder(feature, Vocabulary.fit(pa.array(parts, pa.string())))
        case TextFeature():
            return TextEncoder(feature)
        case NumberFeature():
            return NumberEncoder.fit(feature, values)
        case TimestampFeature():
            second = seconds(values)
            known = second[~np.isnan(second)]
            return TimestampEncoder(feature, *((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)))
        case EmbeddingFeature():
            return EmbeddingEncoder.fit(feature, values)


def _describe(encoder: FeatureEncoder) -> dict[str, Any]:
    return {"feature": asdict(encoder.config), "state": encoder.state()}


def _restore(entry: Mapping[str, Any], *, folder: Path, tower: str) -> FeatureEncoder:
    feature: Any = TypeAdapter(CandidateFeature).validate_python(entry["feature"])
    match feature:
        case IdFeature() | CategoryFeature():
            return VocabularyEncoder(feature, Vocabulary.load(_vocabulary_path(folder, tower, feature)))
        case MultiCategoryFeature():
            return MultiCategoryEncoder(feature, Vocabulary.load(_vocabulary_path(folder, tower, feature)))
        case TextFeature():
            return TextEncoder(feature)
        case NumberFeature():
            state = entry["state"]
            return NumberEncoder(
                feature, state["mean"], state["deviation"], np.array(state.get("edges", []), np.float64)
            )
        case EmbeddingFeature():
            state = entry["state"]
            return EmbeddingEncoder(feature, np.array(state["mean"], np.float32), state["deviation"])
        case _:
            return TimestampEncoder(feature, **entry["state"])


def _vocabulary_path(folder: Path, tower: str, feature: Any) -> Path:
    path = folder / f"{tower}_{feature.kind}_{feature.column}.parquet"
    if path.parent != folder:
        raise ValueError(f"column '{feature.column}' leads out of {folder}")
    return path


def _refuse_repeats(names: Sequence[str], *, tower: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RecipeError(f"model.{tower}: feature '{repeated[0]}' is declared twice. Take one of the two out.")


def _refuse_other_widths(features: Sequence[CandidateFeature], *tables: pa.Table) -> None:
    """Tell of a vector's wrong length before anything is trained: the other parts are encoded only after training."""
    for feature in features:
        if isinstance(feature, EmbeddingFeature):
            columns = [table[feature.column] for table in tables if feature.column in table.column_names]
            for column in columns[:1]:
                if _holds_vectors(column.type):
                    refuse_other_widths(column, feature)


def _refuse_second_history(histories: Sequence[HistoryFeature | SequenceFeature]) -> None:
    if len(histories) > 1:
        kinds = " and ".join(f"'{feature.kind}'" for feature in histories)
        raise RecipeError(f"model.query: {kinds} both read the history. Take one of the two out.")


def _existing(table: pa.Table, column: str, *, where: str) -> Any:
    if column not in table.column_names:
        there = ", ".join(table.column_names) or "none"
        raise RecipeError(f"model: no column '{column}' in the {where} (there are: {there}). Name one of these.")
    return table[column]


def _column(table: pa.Table, column: str) -> Any:
    return table[column] if column in table.column_names else [None] * table.num_rows
