"""A diffusers folder before anything of it is loaded: where it is, what it holds, whether it is whole."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import AutoTokenizer

from jano_dist.errors import UserError
from jano_dist.geometry import KNOWN, Family, Geometry, family_of, find_model
from jano_dist.models.quiet import quiet
from jano_dist.models.weights import check_folder, check_weights, read_index

# What diffusers and transformers raise for a folder they cannot make sense of.
_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Parts:
    """A pipeline's parts without memory: every size, default and weight name, and no weights.

    Attributes:
        source: the folder or hub name. index: model_index.json. family: whose pipeline it is.
        skeletons: part -> module on the `meta` device.
        from_table: whether the sizes are not the model's own files', but known by its name.
        tokenizers: part -> tokenizer, once `whole_parts` has read them.
    """

    source: str
    index: Mapping[str, Any]
    family: Family
    skeletons: Mapping[str, Any]
    from_table: bool = False
    tokenizers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pipeline(self) -> Any:
        """Diffusers' class of it. (`DiffusionPipeline.from_pretrained` loads parts that it is given anew.)"""
        return getattr(diffusers, self.index["_class_name"])

    @property
    def geometry(self) -> Geometry:
        """Sizes, from the parts' configs with every default filled in."""
        configs = {part: vars_of(module) for part, module in self.skeletons.items()}
        with sentence(self.source):
            return self.family.geometry({"": self.index, **configs})


def vars_of(module: Any) -> dict[str, Any]:
    """A module's config, with every default filled in."""
    config = module.config
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())


def read_parts(name: str, *, local: bool = False) -> Parts:
    """A model's parts, by name or folder, from its config files.

    Args:
        local: look at files of this machine only; without them take what is known of the name.

    Raises:
        UserError: unknown model, a family that is not supported, or broken files.
    """
    source = find_model(name)
    table = KNOWN.get(name) if local and not Path(source).is_dir() else None
    try:
        return _read(source, None, local)
    except UserError:
        if table is None:
            raise
        return _read(source, table, local)


def _read(source: str, table: Mapping[str, Mapping[str, Any]] | None, local: bool) -> Parts:
    with sentence(source):
        index = table[""] if table else _index(source, local)
        family = family_of(index.get("_class_name", "pipeline of no known class"), source)
        if bool(index.get("boundary_ratio")) != any(index.get("transformer_2") or ()):
            raise UserError(
                f"{source} lacks the second of two experts (transformer_2), or where they take turns "
                "(boundary_ratio): fetch the model again, whole"
            )
        with torch.device("meta"):
            skeletons = {
                part: _skeleton(source, part, kind, table[part] if table else None, local)
                for part, kind in _weighted(index).items()
            }
    return Parts(source, index, family, skeletons, from_table=table is not None)


def _index(source: str, local: bool) -> Mapping[str, Any]:
    if Path(source).is_dir():
        return read_index(Path(source))
    index: Mapping[str, Any] = DiffusionPipeline.load_config(source, local_files_only=local)
    return index


def _weighted(index: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that have weights, with their classes."""
    found = {}
    for part, kind in index.items():
        if isinstance(kind, list | tuple) and len(kind) == 2 and kind[0] in ("diffusers", "transformers"):
            made = getattr(import_module(kind[0]), kind[1], None)
            if isinstance(made, type) and issubclass(made, nn.Module):
                found[part] = made
    return found


def _skeleton(source: str, part: str, kind: Any, config: Mapping[str, Any] | None, local: bool) -> nn.Module:
    if hasattr(kind, "from_config") and hasattr(kind, "load_config"):  # diffusers'
        if config is None:
            config = kind.load_config(source, subfolder=part, local_files_only=local)
        module: nn.Module = kind.from_config(config)
        return module
    if config is None:
        config, _ = kind.config_class.get_config_dict(source, subfolder=part, local_files_only=local)
    made: nn.Module = kind(kind.config_class.from_dict(dict(config)))
    return made


def whole_parts(name: str, parts: Parts) -> tuple[Path, Parts]:
    """The folder of a model, after looking whether its files are whole, and its parts with tokenizers.

    Raises:
        UserError: files are missing, truncated or without weights the model has.
    """
    folder = model_folder(name)
    check_folder(folder, parts.skeletons)
    for part, skeleton in parts.skeletons.items():
        check_weights(folder / part, skeleton)
    names = [name for name, kind in parts.index.items() if name.startswith("tokenizer") and any(kind or ())]
    with sentence(str(folder)):
        tokenizers = {name: AutoTokenizer.from_pretrained(folder / name) for name in names}
    return folder, replace(parts, tokenizers=tokenizers)


def model_folder(name: str) -> Path:
    """The folder with a model's files; fetches it from the hub when `name` is a hub name.

    Raises:
        UserError: it cannot be fetched.
    """
    source = find_model(name)
    if Path(source).is_dir():
        return Path(source)
    with sentence(source):
        return Path(DiffusionPipeline.download(source))


@contextmanager
def sentence(source: str) -> Iterator[None]:
    """Let the libraries work in silence, and turn what they raise over a broken model into one sentence."""
    try:
        with quiet():
            yield
    except _BROKEN as error:
        if not Path(source).is_dir():
            raise UserError(
                f"model {source!r} is neither a folder here nor can it be fetched from the hub: "
                "check the name and the network"
            ) from error
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(". ") or type(error).__name__
        raise UserError(
            f"{source} does not load as a diffusers pipeline ({reason}): fetch the model again, whole"
        ) from error
