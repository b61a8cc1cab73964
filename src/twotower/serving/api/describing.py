"""What is served, told to whoever asks."""

from typing import Any

from twotower.serving.api.admin_messages import DeploymentInfo
from twotower.serving.api.messages import (
    MAX_BATCH,
    MAX_DEADLINE_MS,
    MAX_FILTER,
    MAX_IDS,
    MAX_K,
    MAX_WRITES,
    ColumnInfo,
    FoundItem,
    Info,
    VariantInfo,
)
from twotower.serving.live.deployment import Deployment, Live

LIMITS = {
    "k": MAX_K,
    "history": MAX_IDS,
    "exclude": MAX_IDS,
    "batch": MAX_BATCH,
    "writes": MAX_WRITES,
    "filter": MAX_FILTER,
    "deadline_ms": MAX_DEADLINE_MS,
}


def info(deployment: Deployment) -> Info:
    """What a deployment serves; columns and examples are those of its first variant."""
    recommender = deployment.variants[0].recommender
    bundle = recommender.bundle
    metadata: dict[str, Any] = bundle.metadata
    return Info(
        name=str(metadata["name"]),
        bundle=bundle.id,
        variants=variants(deployment),
        created=str(metadata["created"]),
        counts=dict(metadata["counts"]),
        candidates=int(metadata["candidates"]),
        title_column=metadata["title_column"],
        item_columns=tuple(
            ColumnInfo(name=name, type=held.kind if held else "nothing", is_list=bool(held and held.is_list))
            for name, held in recommender.filter_columns.items()
        ),
        query_columns=recommender.query_columns,
        labels=tuple(bundle.model.labels),
        limits=LIMITS,
        example_users=recommender.example_users,
        example_items=tuple(FoundItem(item_id=item_id, title=title) for item_id, title in recommender.example_items),
    )


def variants(deployment: Deployment) -> tuple[VariantInfo, ...]:
    """Who answers whom; a share of 0 answers unseen."""
    return tuple(
        VariantInfo(name=each.name, bundle=each.recommender.bundle.id, share=each.share)
        for each in (*deployment.variants, *deployment.shadows)
    )


def deployment(live: Live) -> DeploymentInfo:
    """What answers, and what would after a roll-back."""
    before = live.previous
    return DeploymentInfo(
        variants=variants(live.current), salt=live.current.salt, previous=variants(before) if before else ()
    )
