"""Cases: what is compared with the full run. Each is a set of changes of one config. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jano_dist.config import Config, change_config
from jano_dist.config.settings import POLICIES
from jano_dist.errors import UserError

FULL = "full"  # the reference's name
_KEYS = ("like", "rearrange")  # of a case in a file, besides config keys
_SAMPLING = ("sampling.seed", "sampling.negative_prompt")  # what the reference has, too
_OTHER_VIDEO = ("video.", "sampling.seed", "sampling.negative_prompt", "sampling.guidance", "sampling.shift")


@dataclass(frozen=True)
class Case:
    """One row of a comparison.

    Attributes:
        name: of the row.
        changes: `{"a.b": value}`, what it changes in the config.
        rearrange: "random": the complexity map with its blocks shuffled, the shares as they were.
        like: name of an earlier case; this one computes in full, in as many steps as take the work of
            that one (`matched`).
    """

    name: str
    changes: Mapping[str, Any]
    rearrange: str | None = None
    like: str | None = None

    def config(self, base: Config) -> Config:
        """`base` with this case's changes. The settings of another policy do not carry over.

        Raises:
            UserError: unknown key, or a value that does not fit.
        """
        return _changed(base, self.changes, f"of the case {self.name!r}")

    def matched(self, base: Config, work: float) -> "Case":
        """This case in as many steps as take the share `work` of the full run, fewer than all."""
        steps = base.sampling.steps
        fewer = min(max(1, round(steps * work)), max(1, steps - 1))
        return Case(self.name, {**self.changes, "policy.name": "full", "sampling.steps": fewer})


def full_config(base: Config) -> Config:
    """The config of the run that all others are compared with: every step, every token."""
    return _changed(base, {"policy.name": "full"}, "of the full run")


def _changed(base: Config, changes: Mapping[str, Any], source: str) -> Config:
    raw = base.model_dump(mode="json") | {"preset": None}
    if changes.get("policy.name", base.policy.name) != base.policy.name:
        raw["policy"] = {}
    return change_config(raw, changes, source)


def preset_case(name: str, base: Config, preset: Config) -> Case:
    """The case of a preset: `preset` is the config with that row, `base` the one that cases change."""
    own = base.policy.model_dump(mode="json") if base.policy.name == preset.policy.name else {}
    settings = preset.policy.model_dump(mode="json")
    changes = {f"policy.{key}": value for key, value in settings.items() if own.get(key) != value}
    return Case(name, {"policy.name": preset.policy.name, **changes})


def default_cases(
    presets: Sequence[Case], *, floors: Sequence[Case] = (), policies: Sequence[str] = ()
) -> list[Case]:
    """Every policy at its usual settings, with its controls.

    Args:
        presets: of the config. floors: runs that compute everything, otherwise.
        policies: keep only cases of these (and floors); empty: all.

    Raises:
        UserError: a policy that has no case.
    """
    forecast = [
        Case(
            f"forecast {tau:g}/{longest}",
            {"policy.name": "forecast", "policy.tau": tau, "policy.max_interval": longest},
        )
        for tau, longest in ((0.12, 3), (0.2, 4), (0.2, 6))
    ]
    uniform = [
        Case(
            f"every {interval} steps, {word}",
            {"policy.name": "uniform", "policy.interval": interval, "policy.velocity": velocity},
        )
        for interval in (2, 3)
        for velocity, word in (("hold", "held"), ("forecast", "extrapolated"))
    ]
    kept = [case for case in [*presets, *forecast, *uniform] if case.changes["policy.name"] in POLICIES]
    _check_policies(policies, {case.changes["policy.name"] for case in kept})
    cases: list[Case] = []
    for case in kept:
        if policies and case.changes["policy.name"] not in policies:
            continue
        cases.append(case)
        if case in presets:
            cases.append(Case(f"{case.name}, random map", case.changes, rearrange="random"))
        if case not in uniform:
            cases.append(Case(f"fewer steps, as {case.name}", {}, like=case.name))
    return [*cases, *floors]


def _check_policies(asked: Sequence[str], known: set[str]) -> None:
    for name in asked:
        if name not in known:
            raise UserError(
                f"no case has the policy {name!r}: choose from {', '.join(sorted(known)) or 'none'}, or "
                "write cases of your own and give them with --cases"
            )


def read_cases(path: Path) -> list[Case]:
    """Cases from a YAML file: name -> `{config key: value}`, and `like` or `rearrange` where wanted.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--cases {path} cannot be read ({error.strerror}): give another file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no case: write a line such as  mine: {{policy.name: forecast}}")
    return [_case(str(name), changes, path) for name, changes in content.items()]


def _case(name: str, content: object, path: Path) -> Case:
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"{path}: the case {name!r} should be config keys and values, not {content!r}: write for "
            "example {policy.name: forecast, policy.tau: 0.2}"
        )
    like, rearrange = (content.get(key) for key in _KEYS)
    if rearrange not in (None, "random"):
        raise UserError(f"{path}: the case {name!r} has rearrange {rearrange!r}: there is only random")
    changes = {key: value for key, value in content.items() if key not in _KEYS}
    return Case(name, changes, rearrange, None if like is None else str(like))


def check_cases(cases: Sequence[Case], base: Config) -> None:
    """Make sure that every case can be compared with the full run.

    Raises:
        UserError: unknown keys, two of one name, a `like` that names no earlier case, a case that makes
            another video or that is the full run itself, or none at all.
    """
    if not cases:
        raise UserError("there is no case to compare with the full run: leave --policy out, or give --cases")
    reference, seen = full_config(base), {FULL}
    for case in cases:
        if case.name in seen:
            raise UserError(f"two cases are named {case.name!r}: give each a name of its own")
        _check_keys(case)
        if case.like is not None:
            _check_like(case, base, seen)
        else:
            own = case.config(base)
            if case.rearrange and not hasattr(own.policy, "block"):
                raise UserError(
                    f"the case {case.name!r} has rearrange, and its policy {own.policy.name} makes no "
                    "complexity map: leave rearrange out"
                )
            if own == reference:
                raise UserError(
                    f"the case {case.name!r} is the full run itself, with which all are compared: "
                    "change something in it, or leave it out"
                )
        seen.add(case.name)


def _check_keys(case: Case) -> None:
    for key in case.changes:
        if key.startswith(_OTHER_VIDEO):
            raise UserError(
                f"the case {case.name!r} changes {key}, so it is of another video than the full run: "
                "change that for all with --set"
            )


def _check_like(case: Case, base: Config, earlier: set[str]) -> None:
    if case.like not in earlier - {FULL}:
        raise UserError(f"the case {case.name!r} is like {case.like!r}, which is no earlier case: name one")
    if case.rearrange or any(key.startswith("policy.") or key == "sampling.steps" for key in case.changes):
        raise UserError(
            f"the case {case.name!r} has like, which sets policy and steps: leave these and rearrange out"
        )
    case.matched(base, 0.5).config(base)
