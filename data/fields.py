"""Fields that rows of several layouts have, as their schemas check them."""

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError, WrapValidator

from ..schema import explain
from .ids import row_ids
from .pictures import Picture


def _name(name: str) -> str:
    if not name.strip() or "\0" in name:
        raise ValueError("is no name of a picture")
    return name


def _shown(value: Any, check: Any) -> Any:
    return value if isinstance(value, Picture) else check(value)


def _as_list(value: Any) -> Any:
    return None if value == "" else [value] if isinstance(value, str | int | float | Picture) else value


def _each(value: Any, check: Any) -> list[str] | None:
    return None if value is None else [check(each) for each in (value if isinstance(value, list) else [value])]


def _id(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"is neither a text nor a number: {value!r:.80}")
    return value


def _coco_id(value: Any) -> Any:
    return value if value is None or value != value else _id(value)  # Parquet writes NaN where there is none


def _written(value: Any) -> Any:
    """Numbers and booleans as JSON writes them: a VQA set's `3` and `true` are the answers "3" and "true"."""
    return json.dumps(value) if isinstance(value, int | float) and isfinite(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is no number")
    return value


def as_objects(value: Any) -> Any:
    """A list of objects, which `datasets` stores as one object of lists where it is a `Sequence`."""
    if not isinstance(value, dict) or not all(isinstance(each, list) for each in value.values()):
        return value
    if len({len(each) for each in value.values()}) > 1:
        raise ValueError("its lists differ in length")
    return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]


Name = Annotated[str, AfterValidator(_name)]
Shown = Annotated[Name, WrapValidator(_shown)]  # a picture's name, or a picture that lies where the row does
Names = Annotated[list[Shown] | None, BeforeValidator(_as_list)]
Id = Annotated[Any, AfterValidator(_id)]
Ids = Annotated[list[Id] | None, BeforeValidator(_as_list)]
CocoId = Annotated[Any, AfterValidator(_coco_id)]
Number = Annotated[int, BeforeValidator(_number)]
Answer = Annotated[str, BeforeValidator(_written)]
Texts = Annotated[str, WrapValidator(_each)]  # one or a list, read as a list


class PictureFields(BaseModel):
    """Pictures of a row, `images`, `image` or, as `datasets` calls them, `file_name` and `file_names`, each a name or
    a list of names; and what their ids are, `image_ids` or `image_id`. A row may have other keys."""

    images: Names = None
    image: Names = None
    file_name: Names = None
    file_names: Names = None
    image_ids: Ids = None
    image_id: Ids = None
    coco_id: CocoId = None

    @property
    def names(self) -> list[str]:
        """Names of the pictures, or the pictures.

        Raises:
            ValueError: Two keys name different pictures.
        """
        given = [names for names in (self.images, self.image, self.file_name, self.file_names) if names]
        if any(names != given[0] for names in given):
            raise ValueError("`images`, `image` and `file_name` name different pictures: one of them is enough.")
        return given[0] if given else []

    @property
    def stated_ids(self) -> list[str | int | float] | None:
        return self.image_id if self.image_ids is None else self.image_ids

    @property
    def namespace(self) -> str:
        """Of numbers among the ids."""
        return "vg" if "coco_id" in self.model_fields_set else "coco"

    def ids(self, names: Sequence[str], file: Path) -> tuple[str, ...]:
        """One id a picture of the data file `file`; see [`row_ids`]."""
        return row_ids(self.stated_ids, names, file, self.namespace)


Checked = TypeVar("Checked", bound=BaseModel)


def checked(schema: type[Checked], value: object, file: object, place: str) -> Checked:
    """What stands at a place of a file, as its schema has it.

    Raises:
        ValueError: It is something else; the message names file, place and field.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise explain(error, f"{file}, {place}") from None
