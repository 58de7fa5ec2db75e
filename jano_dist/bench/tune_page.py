"""The page of a tuning: the videos of its choice beside the full ones, as `bench quality` shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jano_dist.bench.cases import Case
from jano_dist.bench.folder import BenchFolder, Plan
from jano_dist.bench.quality import Listener, measure_all
from jano_dist.bench.report import write_report
from jano_dist.bench.runs import Runs


class Kept(Runs):
    """Full runs that are needed again stay in their folder."""

    def forget(self, prompt: str, seed: int) -> None:
        return


def make_page(
    runs: Kept,
    cases: Sequence[Case],
    prompts: Sequence[tuple[str, int]],
    path: Path,
    ran: dict[str, Any],
    listener: Listener,
) -> None:
    """Make the videos that the page does not have yet, and write it. All ranks call it together.

    Args:
        prompts: each with its seed, which is the same for all.
        path: the page's folder. ran: how it is made; see `ran`.

    Raises:
        UserError: the folder holds something else.
    """
    plan = Plan(
        runs.config, cases, [text for text, _ in prompts], [prompts[0][1]], ranks=runs.base.mesh.world
    )
    folder = BenchFolder(path)
    if runs.is_coordinator:
        folder.check()
    measure_all(runs, plan, folder, ran, listener)
    if runs.is_coordinator:
        write_report(folder, plan)
