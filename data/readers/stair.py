"""STAIR Captions as the Hub has them, in Parquet."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from ..fields import Id, PictureFields, as_objects
from ..row_context import RowContext
from ..rows import BadRow, Row, caption_row
from .registry import row_layout


class Annotation(BaseModel):
    """A caption of a picture."""

    caption: str
    annotation_id: Id | None = None


class AnnotatedPicture(PictureFields):
    """A picture and its captions, each as it stands in the file: `datasets` stores a sequence of objects as an object
    of sequences."""

    annotations: Annotated[list[object], BeforeValidator(as_objects)]


@row_layout(
    "stair",
    "STAIR Captions from the Hub, a picture and its annotations",
    keys=[{"image", "annotations.caption"}, {"file_name", "annotations.caption"}],
)
def read_stair(entry: dict, at: RowContext) -> list[Row | BadRow]:
    """shunk031/STAIR-Captions: `image_id`, `image`, `file_name` and `annotations` (`annotation_id`, `image_id`,
    `caption`), a row for each caption; features as of the data set's card. Without pictures in it, they are looked for
    by `file_name` under all names that COCO gives them.
    """
    row = AnnotatedPicture.model_validate(entry | ({"file_name": None} if entry.get("image") is not None else {}))
    (picture, *_), (image_id, *_) = at.pictures(row, row.names[:1] or [""])

    def read(annotation: object) -> Row:
        return caption_row(Annotation.model_validate(annotation).caption, picture, image_id, at.source)

    return [at.part(f"annotation {number}", read, annotation) for number, annotation in enumerate(row.annotations)]
