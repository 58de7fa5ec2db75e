"""`jano-dist compare`: how alike two results are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jano_dist.cli import importing
from jano_dist.cli.options import JsonOption, given_path
from jano_dist.target import VIDEO

_WHAT = "A video, image, run folder, folder of images, or latents (.safetensors)"


def compare(
    a: Annotated[Path, typer.Argument(parser=given_path, metavar="A", help=f"{_WHAT}; the reference.")],
    b: Annotated[Path, typer.Argument(parser=given_path, metavar="B", help="The same, or what fits it.")],
    as_json: JsonOption = False,
) -> None:
    """Say how alike two videos, images or latents are.

    Frames: PSNR, SSIM, and LPIPS where its weights are on this machine. Folders of images: the same, image by
    image. Latents: largest and relative difference, PSNR and cosine.
    """
    with importing():
        from jano_dist.comparison import compare_paths

    result = compare_paths(a, b)
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    if "images" in result:
        console.print(_images_table(result))
    else:
        console.print(_latents_table(result) if "cosine" in result else _frames_table(result))
    if _encoded(a) and _encoded(b) and not result["identical"] and (result.get("psnr") or 0) > 35:
        print(
            "Encoding to mp4 leaves about 40 dB by itself (wan-tiny's videos), so what was encoded is more "
            "alike than this."
        )


def _encoded(path: Path) -> bool:
    """Whether a path is of a video, whose encoding took something from its frames."""
    return path.suffix == ".mp4" or (path / VIDEO).is_file()


def _frames_table(result: Mapping[str, Any]) -> Table:
    table = Table("measure", "value")
    table.add_row("PSNR", _decibels(result))
    table.add_row("SSIM", f"{result['ssim']:.4f}")
    table.add_row("LPIPS", result["lpips_note"] if result["lpips"] is None else f"{result['lpips']:.4f}")
    return table


def _images_table(result: Mapping[str, Any]) -> Table:
    table = Table("image", "PSNR", "SSIM", "LPIPS")
    last = {"mean": {**result["mean"], "identical": result["identical"]}}
    for name, row in {**result["images"], **last}.items():
        lpips = "-" if row["lpips"] is None else f"{row['lpips']:.4f}"
        table.add_row(name, _decibels(row), f"{row['ssim']:.4f}", lpips)
    return table


def _latents_table(result: Mapping[str, Any]) -> Table:
    table = Table("measure", "value")
    table.add_row("largest difference", f"{result['max_abs']:.3g}")
    table.add_row("relative L2", _number(result["relative_l2"]))
    table.add_row("PSNR over the range", _decibels(result))
    table.add_row("cosine", _number(result["cosine"]))
    return table


def _decibels(row: Mapping[str, Any]) -> str:
    if row["identical"]:
        return "identical"
    return "-" if row["psnr"] is None else f"{row['psnr']:.2f} dB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
