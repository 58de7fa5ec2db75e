"""Reading the files in cluster/."""

import re
import tomllib
from pathlib import Path

import yaml

import jano_dist

ROOT = Path(jano_dist.__file__).parents[1]
CLUSTER = ROOT / "cluster"

# Of the head: a lost node is noticed within 9 s.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
}


class UniqueKeys(yaml.SafeLoader):
    """A key given twice is a mistake; YAML readers take the last one."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    assert len(set(keys)) == len(keys), f"a key twice{node.start_mark}"
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(path):
    return list(yaml.load_all(path.read_text(), UniqueKeys))


def ray_start(arguments):
    """What Ray makes of the arguments of `ray start`; it refuses what it does not know."""
    from ray.scripts.scripts import start

    return start.make_context("start", list(arguments)).params


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """The Containerfile as (word, rest) pairs, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def container_user():
    """The user that the container runs as."""
    users = [rest for word, rest in instructions() if word == "USER"]
    return int(users[-1].split(":")[0])
