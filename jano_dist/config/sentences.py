"""What pydantic finds wrong with a config, in our words."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jano_dist.config.policies import POLICIES, JanoPolicyConfig
from jano_dist.config.settings import Config


def sentence(error: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    """One of pydantic's errors in our words: which key, what is wrong with it, what to do."""
    if error["type"] == "value_error":  # one of ours, already a sentence
        return str(error["ctx"]["error"])
    where = [str(part) for part in error["loc"]]
    if not where and error["type"] == "value_error":  # one of ours, of several sections
        return str(error["ctx"]["error"])
    if not where:  # pydantic does not say which
        return "a key in it is not valid UTF-8: correct or remove it"
    if where[0] == "policy":
        del where[1:2]  # which policy of the union; users never wrote it
    key, given = ".".join(where), error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}{_nearest_key(where, raw)}: correct or remove it"
        case "missing":
            return f"{key} is missing: add it"
        case "union_tag_invalid":
            name, known = str(raw["policy"]["name"]), list(POLICIES)
            return f"there is no policy {name!r}{nearest(name, known)}: choose one of {', '.join(known)}"
        case "model_type" | "model_attributes_type":
            return f"{key} is a section, not {given!r}: set one of the keys in it"
        case "union_tag_not_found":
            return f"{key} has no name: choose one of {', '.join(POLICIES)}"
        case "tuple_type" if key.startswith("model.lora"):
            return f"{key} should be a list such as [style.safetensors:0.8], not {given!r}: correct it"
        case "tuple_type":
            return f"{key} should be a list such as [1, 4, 4], not {given!r}: correct it"
        case "too_long":
            return f"{key} has {len(given or ())} values: give {error['ctx']['max_length']}"
    message = error["msg"].partition(", unable")[0]  # "... to parse string as an integer"
    verb = message.removeprefix("Input ") if message.startswith("Input ") else f"is wrong ({message})"
    return f"{key} {verb}, not {given!r}: correct it"


def _nearest_key(where: list[str], raw: Mapping[str, Any]) -> str:
    """A hint for an unknown key: one spelled alike, rather in the same section than in another."""
    section, leaf = ".".join(where[:-1]), where[-1]
    policy = raw.get("policy")
    name = policy.get("name") if isinstance(policy, dict) else "jano"

    def likeness(key: str) -> float:
        own_section, _, own_leaf = key.rpartition(".")
        return difflib.SequenceMatcher(None, leaf, own_leaf).ratio() + 0.1 * (own_section == section)

    best = max(_keys(Config, POLICIES.get(str(name), JanoPolicyConfig)), key=likeness)
    return f" (did you mean {best!r}?)" if likeness(best) > 0.6 else ""


def _keys(model: type[BaseModel], policy: type[BaseModel], section: str = "") -> list[str]:
    """All keys of a model, dotted, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(section + name)
        inner = policy if section + name == "policy" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _keys(inner, policy, f"{section}{name}.")
    return keys


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
