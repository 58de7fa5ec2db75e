"""What a run found in one room, as it is committed: the score, and every mutant that no test noticed."""

import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: mutmut's, as `mutmut show` takes it.
        status: mutmut's, but `crashed` where a signal ended the tests.
        lines: what goes and what comes, as in a diff; of killed ones nothing.
    """

    name: str
    status: str
    lines: tuple[str, ...]

    @property
    def function(self) -> str:
        """`xǁTokenGridǁ__post_init____mutmut_5` -> `TokenGrid.__post_init__`."""
        mangled = self.name.rpartition(".")[2].rpartition("__mutmut_")[0]
        return mangled.removeprefix("x").removeprefix("_").lstrip("ǁ").replace("ǁ", ".")

    @property
    def lives(self) -> bool:
        return self.status not in ("killed", "timeout", "crashed")


@dataclass(frozen=True)
class RoomResult:
    """All mutants of a room."""

    room: str
    seconds: float
    mutants: list[Mutant]

    @property
    def score(self) -> float:
        """Percent of the mutants that a test noticed: it failed, hung or crashed."""
        return 100 * sum(not mutant.lives for mutant in self.mutants) / len(self.mutants)

    def line(self) -> str:
        counts = ", ".join(
            f"{n} {status}" for status, n in Counter(m.status for m in self.mutants).most_common()
        )
        return f"{self.room}: {self.score:.1f} % of {len(self.mutants)} mutants noticed ({counts})"

    def text(self, stamp: str) -> str:
        """The committed file. `stamp`: when, on which commit."""
        reasons = read_reasons()
        living = [mutant for mutant in self.mutants if mutant.lives]
        head = f"# {self.line()}\n\n{stamp}, {self.seconds / 60:.0f} minutes.\n"
        return "\n".join([head, *(entry(mutant, reasons) for mutant in living)])


def read_reasons() -> dict[tuple[str, str], str]:
    """(function, line that comes) -> why no test has to notice it."""
    listed = tomllib.loads((HERE / "explained.toml").read_text())["mutant"]
    return {(one["function"], line): one["why"] for one in listed for line in one["becomes"]}


def entry(mutant: Mutant, reasons: dict[tuple[str, str], str]) -> str:
    comes = next((line[1:].strip() for line in mutant.lines if line[0] == "+"), "")
    why = reasons.get((mutant.function, comes), "NOT EXPLAINED")
    status = "" if mutant.status == "survived" else f" ({mutant.status})"
    shown = "\n".join(f"    {line}" for line in mutant.lines)
    return f"`{mutant.function}`{status}: {why}\n\n{shown}\n"
