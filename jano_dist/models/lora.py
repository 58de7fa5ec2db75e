"""LoRAs: found, looked at before minutes of loading, and fused into the transformer that is being read.

Nothing after that knows of them. What they are is diffusers' business: it reads every trainer's format and
names all weights as the transformer does.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from jano_dist.errors import UserError
from jano_dist.models.quiet import quiet
from jano_dist.models.weights import check_file, files_digest

Loras = Sequence[tuple[str, float]]  # file, folder or hub name; scale

_PREFIX = "transformer."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(weight|bias)")


def check_loras(loras: Loras, pipeline: Any, skeleton: nn.Module) -> None:
    """Make sure that LoRAs are there, whole, and of this model.

    Args:
        pipeline: diffusers' pipeline class. skeleton: its transformer on the `meta` device.

    Raises:
        UserError: one is not; or diffusers knows no LoRAs for the family.
    """
    if loras and not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"diffusers has no LoRAs for a {pipeline.__name__}: leave --lora out")
    for name, _ in loras:
        file = lora_file(name)
        if any("dora_scale" in key for key in check_file(file)):
            raise UserError(f"LoRA {file} is a DoRA, of which diffusers would drop a part: give a plain LoRA")
        with _sentence(file):
            weights = pipeline.lora_state_dict(str(file), use_safetensors=True)
        _check_fit(file, weights, skeleton)


def fuse_loras(loras: Loras, pipeline: Any, transformer: nn.Module) -> None:
    """Add LoRAs to the weights of a transformer, each by its scale.

    Args:
        pipeline: diffusers' pipeline class.

    Raises:
        UserError: one cannot be loaded, or holds what is no number.
    """
    if not loras:
        return
    others = (name for name in inspect.signature(pipeline).parameters if name != "transformer")
    holder = pipeline(transformer=transformer, **dict.fromkeys(others))
    for name, scale in loras:
        file = lora_file(name)
        with _sentence(file):
            holder.load_lora_weights(str(file), use_safetensors=True)
            holder.fuse_lora(lora_scale=scale, safe_fusing=True)
            holder.unload_lora_weights()


def loras_digest(loras: Loras) -> bytes:
    """Bytes that tell the files of LoRAs apart, none without any; see `files_digest`.

    Raises:
        UserError: one is not there.
    """
    files = [lora_file(name) for name, _ in loras]
    return b"".join(files_digest(file.parent, [file]) for file in files)


def lora_file(name: str) -> Path:
    """The safetensors file of a LoRA by its path, that of its folder, or its hub name; looked at, whole.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = Path(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".safetensors":
        path = _fetched(name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(
                f"LoRA {name} holds {len(files)} .safetensors files, and one is needed: give the file itself"
            )
        (path,) = files
    if not path.is_file():
        raise UserError(f"LoRA {name} does not exist: give a .safetensors file, or a name on the hub")
    if path.suffix != ".safetensors":
        raise UserError(f"LoRA {name} is no .safetensors file, which alone is read: give one that is")
    check_file(path)
    return path


def _fetched(name: str) -> Path:
    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns="*.safetensors"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"LoRA {name} is neither a file here nor can it be fetched from the hub: check the name and the "
            "network"
        ) from error


def _check_fit(file: Path, weights: Mapping[str, Tensor], skeleton: nn.Module) -> None:
    """Every weight must have its module, of the right size: diffusers would leave out what has none."""
    modules, kind = dict(skeleton.named_modules()), type(skeleton).__name__
    own = {key.removeprefix(_PREFIX): weight for key, weight in weights.items() if key.startswith(_PREFIX)}
    others = sorted(key for key in weights if not key.startswith(_PREFIX))
    if not own or others:
        held = f"weights such as {others[0]}" if others else "no weights"
        raise UserError(f"LoRA {file} holds {held}, which are not a {kind}'s: give a LoRA for this model")
    if not any("lora_A" in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    for key in sorted(own):
        found = _PART.fullmatch(key)
        if found is None:
            if key.endswith(".alpha"):
                continue
            raise UserError(f"LoRA {file} holds {key}, which is no LoRA's weight: give a plain LoRA")
        _check_part(file, key, own[key], modules.get(found["module"]), found["side"])


def _check_part(file: Path, key: str, weight: Tensor, module: nn.Module | None, side: str) -> None:
    full = getattr(module, "weight", None)
    if not isinstance(full, Tensor) or full.ndim < 2:
        raise UserError(
            f"LoRA {file} is for another model: this one has no layer for {key}: give a LoRA for this model"
        )
    if weight.ndim == 1:  # a bias
        side = "B"
    own, wanted = (weight.shape[-1], full.shape[1]) if side == "A" else (weight.shape[0], full.shape[0])
    if own != wanted:
        raise UserError(
            f"LoRA {file} is for another model: {key} has {own} channels where this one has {wanted}: "
            "give a LoRA for this model"
        )


@contextmanager
def _sentence(file: Path) -> Iterator[None]:
    """Let diffusers work in silence, and turn what it raises over a LoRA into one sentence."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200].rstrip(". ") or type(error).__name__
        raise UserError(
            f"LoRA {file} cannot be used with this model ({reason}): give one for this model"
        ) from error
