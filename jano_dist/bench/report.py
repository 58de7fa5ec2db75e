"""What is written when all rows are there: quality.json, pareto.png and the page. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jano_dist.bench.cases import FULL, Case
from jano_dist.bench.folder import BenchFolder, Plan
from jano_dist.bench.outcome import Outcome, summary

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """All of a finished plan.

    Attributes:
        plan: what was compared.
        rows: by case (`FULL` too), prompt and seed.
        ran: how: an entry for each process that made some of the rows.
        full: what is summed up of the full runs. cases: the same of each case, with its name and family.
    """

    plan: Plan
    rows: Mapping[tuple[str, str, int], Row]
    ran: Sequence[Mapping[str, Any]]
    full: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """What quality.json holds."""
        plan = self.plan
        rows = [{key: value for key, value in row.items() if key != "key"} for row in self.rows.values()]
        return {
            "jano_dist_quality": 1,
            "figures": "measured",
            "ran": list(self.ran),
            "config": plan.config.model_dump(mode="json"),
            "prompts": list(plan.prompts),
            "seeds": list(plan.seeds),
            "full": self.full,
            "cases": list(self.cases),
            "rows": rows,
        }


def compared(folder: BenchFolder, plan: Plan) -> Comparison:
    """The folder's rows of a plan that is done, summed up."""
    rows, sessions = folder.rows(plan), folder.sessions()
    outcomes = {place: Outcome.from_json(row) for place, row in rows.items()}
    used = dict.fromkeys(row["session"] for row in rows.values())

    def summed(name: str) -> dict[str, Any]:
        return summary((outcomes[name, *pair], outcomes[FULL, *pair]) for pair in plan.pairs)

    seconds = [outcomes[FULL, *pair].seconds for pair in plan.pairs]
    full = summed(FULL)
    full["seconds"] = {name: sum(each[name] for each in seconds) / len(seconds) for name in seconds[0]}
    cases = [{**_named(case), **summed(case.name)} for case in plan.cases]
    return Comparison(plan, rows, [sessions[name] for name in used if name in sessions], full, cases)


def _named(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "family": case.family,
        "changes": dict(case.changes),
        "rearrange": case.rearrange,
        "like": case.like,
    }


def left(folder: BenchFolder, plan: Plan) -> int:
    """How many videos of a plan are not made yet."""
    return len(plan.pairs) * (len(plan.cases) + 1) - len(folder.rows(plan))


def write_report(folder: BenchFolder, plan: Plan) -> Comparison:
    """Write quality.json, pareto.png and index.html of a plan that is done."""
    from jano_dist.bench.page import page  # matplotlib takes a second
    from jano_dist.bench.plot import pareto

    comparison = compared(folder, plan)
    folder.write("quality.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    (folder.path / "pareto.png").write_bytes(pareto(comparison.cases, len(plan.pairs)))
    folder.write("index.html", page(comparison))
    return comparison
