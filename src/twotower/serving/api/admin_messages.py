"""What goes over the wire on the admin's port."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le, MaxLen, MinLen
from pydantic import Strict

from twotower.serving.api.messages import MAX_ID, MAX_VARIANTS, MESSAGE, Text, VariantInfo

Name = Annotated[Text, MinLen(1), MaxLen(64)]
VariantShare = Annotated[float, Strict(), Gt(0), Le(1)]
Place = Annotated[Text, MinLen(1), MaxLen(MAX_ID)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantMessage:
    """A bundle that shall answer."""

    __pydantic_config__ = MESSAGE

    name: Name
    """Stands in every answer: letters, digits, `_`, `.` and `-`."""
    bundle: Place
    """A folder, an address, or the id of a bundle that is loaded."""
    share: VariantShare = 1.0
    """Of the users; all shares add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowMessage:
    """A bundle that shall answer unseen beside the others."""

    __pydantic_config__ = MESSAGE

    name: Name
    """Letters, digits, `_`, `.` and `-`; it names the shadow in the figures."""
    bundle: Place
    """A folder, an address, or the id of a bundle that is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRequest:
    """All that shall answer, in place of what answers now."""

    __pydantic_config__ = MESSAGE

    variants: Annotated[tuple[VariantMessage, ...], MinLen(1), MaxLen(MAX_VARIANTS)]
    """Who answers whom; a user always gets the same one."""
    shadows: Annotated[tuple[ShadowMessage, ...], MaxLen(MAX_VARIANTS)] = ()
    """Who answers unseen what was answered already, while nobody waits."""
    salt: Annotated[Text, MaxLen(MAX_ID)] = ""
    """Another one deals the users out anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentInfo:
    """What answers, and what would after a roll-back."""

    __pydantic_config__ = MESSAGE

    variants: tuple[VariantInfo, ...]
    """A share of 0 answers unseen."""
    salt: str
    """Deals the users out; another one deals them out anew."""
    previous: tuple[VariantInfo, ...]
    """Nothing where it is the first since the server began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteRequest:
    """Who shall answer everybody."""

    __pydantic_config__ = MESSAGE

    variant: Name
    """The name of a variant or shadow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequest:
    """Nothing to say: `{}`."""

    __pydantic_config__ = MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Which bundle to look at."""

    __pydantic_config__ = MESSAGE

    bundle: Place
    """A folder or an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResponse:
    """That the bundle could answer."""

    __pydantic_config__ = MESSAGE

    bundle: str
    """Its id."""
