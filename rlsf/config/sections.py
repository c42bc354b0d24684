"""Finds one's way through the config models: which section stands at a key, and which kinds may stand there."""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rollouts.config import Section


@dataclass(frozen=True)
class Spec:
    """What the schema allows at one place."""

    kinds: Mapping[str, type[Section]]
    """Sections that may stand here, by `kind`; empty where no `kind` decides."""
    section: type[Section] | None
    """The section that stands here, where there is no choice."""
    item: Any
    """Annotation of the items of a list or the values of a mapping; None for anything else."""
    default_kind: str | None = None
    """Taken where `kind` is left out."""
    is_text: bool = False
    description: str = ""
    """What the schema says under the field."""
    is_union: bool = False
    """One of several types, without a `kind`: pydantic names the type it tried in its locations."""

    def at(self, kind: Any) -> type[Section] | None:
        """The section here, once its kind is known."""
        return self.kinds.get(kind) if self.kinds else self.section


def spec_of_field(field: FieldInfo) -> Spec:
    spec = spec_of(field.annotation, tagged=field.discriminator is not None)
    default = field.get_default(call_default_factory=False)
    default_kind = getattr(default, "kind", None) if spec.kinds else None
    return replace(spec, default_kind=default_kind, description=field.description or "")


def spec_of(annotation: Any, *, tagged: bool = False) -> Spec:
    """Of a type annotation of the schema; `tagged` where a discriminator was declared outside of it."""
    while get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        tagged = tagged or any(isinstance(note, FieldInfo) and note.discriminator for note in notes)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if tagged:
            return Spec({kind_of(member): member for member in members}, None, None)
        if len(members) == 1:
            return spec_of(members[0])
        return Spec({}, None, None, is_union=True)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Spec({}, annotation, None)
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        return Spec({}, None, arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Spec({}, None, arguments[1])
    return Spec({}, None, None, is_text=annotation is str)


def kind_of(section: type[Section]) -> str:
    return get_args(section.model_fields["kind"].annotation)[0]


def same_field(key: str, one: type[Section], other: type[Section]) -> bool:
    """Whether both sections have this key with the same type, so that a value may move from one to the other."""
    fields = one.model_fields.get(key), other.model_fields.get(key)
    return fields[0] is not None and fields[1] is not None and fields[0].annotation == fields[1].annotation


def user_path(root: type[Section], location: Sequence[str | int]) -> tuple[tuple[str | int, ...], Spec]:
    """Turn a location of a pydantic error into the path that a user writes, without the tags of unions.

    Returns:
        The path, and what the schema allows there.
    """
    path: list[str | int] = []
    spec = Spec({}, root, None)
    location = [part for part in location if part != "[key]"]  # stands behind a key that is wrong itself
    for index, part in enumerate(location):
        if spec.kinds:
            spec = Spec({}, spec.kinds[str(part)], None)
        elif spec.is_union:  # `part` names the type that was tried
            path += location[index + 1 :]
            break
        elif spec.section is not None:
            path.append(part)
            field = spec.section.model_fields.get(str(part))
            spec = spec_of_field(field) if field is not None else Spec({}, None, None)
        else:
            path.append(part)
            spec = spec_of(spec.item)
    return tuple(path), spec


def paths_to(
    root: type[Section], key: str, prefix: str = "", inside: frozenset[type[Section]] = frozenset()
) -> Iterator[str]:
    """Dotted paths of every field called `key`, for "did you mean" hints. Lists appear as N. Sections that stand inside
    themselves, as rewards do in rewards, are looked at once."""
    for name, field in root.model_fields.items():
        spec = spec_of_field(field)
        here = f"{prefix}{name}"
        if name == key:
            yield here
        if spec.item is not None and get_origin(field.annotation) is list:
            spec, here = spec_of(spec.item), f"{here}.N"
        sections = [*spec.kinds.values(), *([spec.section] if spec.section else [])]
        for section in sections:
            if section not in inside:
                yield from paths_to(section, key, f"{here}.", inside.union(sections))
