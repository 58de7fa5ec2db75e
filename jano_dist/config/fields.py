"""What the fields of all settings have in common."""

import operator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Frozen(BaseModel):
    """A section of the config."""

    # allow_inf_nan: run.json holds the config, and JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _plain_int(value: Any) -> Any:
    """NumPy's integers are integers, too; true and false are none, here and in pydantic's strict mode."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


Int = Annotated[int, Field(strict=True), BeforeValidator(_plain_int)]
Float = Annotated[float, Field(strict=True)]  # takes integers, too


def utf8(text: str) -> str:
    """The text, if it can be written to a file.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!a} is not valid UTF-8: type it anew") from error
    return text


Text = Annotated[str, AfterValidator(utf8)]
