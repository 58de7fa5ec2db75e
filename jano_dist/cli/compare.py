"""`jano-dist compare`: how alike two videos are."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jano_dist.cli.options import JsonOption


def compare(
    a: Annotated[Path, typer.Argument(help="A video or a run folder; the reference.")],
    b: Annotated[Path, typer.Argument(help="A video or a run folder.")],
    as_json: JsonOption = False,
) -> None:
    """Say how alike two videos are: PSNR, SSIM, and LPIPS where its weights are on this machine."""
    from jano_dist import quality

    result = quality.compare(quality.load_frames(a), quality.load_frames(b))
    identical = math.isinf(result["psnr"])
    if as_json:  # JSON has no infinity
        print(json.dumps({**result, "psnr": None if identical else result["psnr"], "identical": identical}))
        return
    table = Table("measure", "value")
    table.add_row("PSNR", "identical" if identical else f"{result['psnr']:.2f} dB")
    table.add_row("SSIM", f"{result['ssim']:.4f}")
    table.add_row("LPIPS", result["lpips_note"] if result["lpips"] is None else f"{result['lpips']:.4f}")
    Console().print(table)
