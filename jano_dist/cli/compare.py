"""`jano-dist compare`: how alike two videos are."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jano_dist.cli import importing
from jano_dist.cli.options import JsonOption, given_path

_WHAT = "A video or a run folder"


def compare(
    a: Annotated[Path, typer.Argument(parser=given_path, metavar="A", help=f"{_WHAT}; the reference.")],
    b: Annotated[Path, typer.Argument(parser=given_path, metavar="B", help=f"{_WHAT}.")],
    as_json: JsonOption = False,
) -> None:
    """Say how alike two videos are: PSNR, SSIM, and LPIPS where its weights are on this machine."""
    with importing():
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
    if not identical and result["psnr"] > 35:
        print(
            "Encoding to mp4 leaves about 40 dB by itself (wan-tiny's videos), so what was encoded is more "
            "alike than this."
        )
