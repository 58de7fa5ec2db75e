"""The folder a run leaves behind: video, pictures, record, and the latents when asked for."""

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save

from jano_dist.engine import Generation
from jano_dist.errors import RunError, UserError
from jano_dist.report import complexity_picture, timeline_picture
from jano_dist.video import write_video

FILES = ("video.mp4", "complexity.png", "timeline.png", "latents.safetensors", "run.json")


def check_target(out: Path) -> None:
    """Make sure, before anything is computed, that a run may be written to `out`.

    Raises:
        UserError: it exists and is no run folder, or it cannot be made or written to.
    """
    try:
        _check_target(out)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(f"--out {out} cannot be used ({error.strerror}): give another folder") from error


def _check_target(out: Path) -> None:
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(
            f"--out {out} is not a folder: give a new folder, or the folder of an earlier run to replace it"
        )
    if out.is_dir() and any(out.iterdir()) and not _is_run(out):
        raise UserError(
            f"--out {out} exists and is not a run folder (no run.json of ours): give a new folder, "
            "or the folder of an earlier run to replace it"
        )
    # The nearest folder that exists: what is made is made in it, first the temporary one.
    parent = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise UserError(
            f"--out {out} cannot be made because {parent} is not a folder: give a folder elsewhere"
        )
    for folder in (out, parent):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"--out {out} cannot be written because {folder} is read-only: give one elsewhere"
            )


def _is_run(folder: Path) -> bool:
    """Whether the folder holds a run of ours; other tools write a run.json, too."""
    try:
        record = json.loads((folder / "run.json").read_text())
        return "jano_dist" in record["versions"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def write_run(out: Path, generation: Generation, *, fps: int, save_latents: bool) -> None:
    """Write a run folder; everything is complete before the first file appears in `out`.

    Raises:
        RunError: the files cannot be written, for example because the disk is full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".jano-dist-", dir=out.parent) as making:
            _write_files(Path(making), generation, fps, save_latents)
            _move(Path(making), out)
    except OSError as error:
        raise RunError(
            f"the run could not be written to {out} ({error.strerror or error}): "
            "make room, or give another --out"
        ) from error


def _write_files(making: Path, generation: Generation, fps: int, save_latents: bool) -> None:
    record = generation.record
    write_video(making / "video.mp4", generation.frames, fps)
    complexity_picture(making / "complexity.png", generation.frames, generation.levels, record["levels"])
    timeline_picture(making / "timeline.png", record["steps"])
    if save_latents:
        latents = generation.latents.cpu().contiguous()
        (making / "latents.safetensors").write_bytes(save({"latents": latents}))
    (making / "run.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _move(making: Path, out: Path) -> None:
    """Put the finished files in place, run.json last; other files a user keeps there stay."""
    out.mkdir(exist_ok=True)
    for name in FILES:
        if (making / name).exists():
            os.replace(making / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of the run that is replaced
