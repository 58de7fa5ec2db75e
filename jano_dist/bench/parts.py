"""The folder of a measurement: what it measures, and every finished part of it. A file in it is whole, or not
there, so the same command goes on where it was ended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jano_dist.bench.ran import how_it_ran
from jano_dist.errors import UserError
from jano_dist.target import write_whole

_ASKED = "bench.json"
_PARTS = "parts"


class PartsFolder:
    """The folder that `--out` names.

    Args:
        path: it.
        asked: what is measured, as JSON; a folder holds one measurement.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path, self._asked = path, json.loads(json.dumps(asked))

    def begin(self) -> None:
        """Make it this measurement's folder, or go on in it.

        Raises:
            UserError: it is another measurement's, or none, or cannot be written.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--out {self.path} is not a folder: give a new one")
            if self.path.is_dir() and any(self.path.iterdir()):
                self._check()
            (self.path / _PARTS).mkdir(parents=True, exist_ok=True)
            self.write(_ASKED, json.dumps(self._asked, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be used ({error.strerror or error}): give another folder"
            ) from error

    def _check(self) -> None:
        try:
            found = json.loads((self.path / _ASKED).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"--out {self.path} holds no measurement of ours: give a new folder") from error
        other = sorted(key for key in {*found, *self._asked} if found.get(key) != self._asked.get(key))
        if other:
            raise UserError(
                f"--out {self.path} holds a measurement with another {', '.join(other)}: give a new folder, "
                "or the command it was begun with"
            )

    def has(self, part: str) -> bool:
        """Whether a part is finished."""
        return (self.path / _PARTS / f"{part}.json").is_file()

    def keep(self, part: str, figures: Mapping[str, Any]) -> None:
        """Write a finished part."""
        self.write(f"{_PARTS}/{part}.json", json.dumps(figures, indent=1) + "\n")

    def parts(self) -> list[dict[str, Any]]:
        """All finished ones, by name."""
        files = sorted((self.path / _PARTS).glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def write(self, name: str, text: str) -> None:
        """Write a file as a whole."""
        write_whole(self.path / name, text)

    def write_result(self, name: str, arguments: Sequence[str], figures: Mapping[str, Any]) -> None:
        """Write `name`.json: what was measured, and how."""
        result = {"ran": how_it_ran(arguments), "figures": "measured", **figures}
        self.write(f"{name}.json", json.dumps(result, indent=1) + "\n")
