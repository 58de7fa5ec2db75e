"""The Containerfile, and the files of Ray's cluster launcher, which Ray itself reads."""

import copy
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch.cluster_files import (
    CLUSTER,
    HEALTH,
    ROOT,
    container_user,
    documents,
    instructions,
    project,
    ray_start,
)

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
LAUNCHER_FILES = sorted((CLUSTER / "ray").glob("*.yaml"))
WORDS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}


def test_all_are_there():
    assert {str(path.relative_to(CLUSTER)) for path in FILES} == {
        "Containerfile",
        "kuberay/raycluster.yaml",
        "kuberay/rayjob.yaml",
        "kuberay/shared.yaml",
        "ray/aws.yaml",
        "ray/local.yaml",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_and_no_force(path):
    text = path.read_text()
    assert not re.search(r"ray stop.*(--force|-f\b)", text)  # it ends Ray of other users of the machine, too
    assert not re.search(
        r"(auth_token|AUTH_TOKEN|password|secret)\S*\s*[:=]\s*[\"']?[0-9a-f]{16}", text, re.I
    )
    assert "0.0.0.0" not in text


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
class TestRayClusterLauncher:
    @pytest.fixture
    def config(self, path):
        (config,) = documents(path)
        return config

    def test_ray_takes_it(self, config):
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(copy.deepcopy(config)))

    @pytest.mark.parametrize("key", ["max_worker", "idle_timeout", "head_start_commands", "filemounts"])
    def test_ray_notices_a_mistake(self, config, key):
        from ray.autoscaler._private.util import prepare_config, validate_config

        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config({**copy.deepcopy(config), key: 1}))

    def started(self, config, which):
        """The environment and the options of the `ray start` of head or worker."""
        (command,) = [line for line in config[f"{which}_start_ray_commands"] if " start " in f"{line} "]
        words = shlex.split(command.replace("$RAY_HEAD_IP", "192.0.2.1"))
        program = next(number for number, word in enumerate(words) if word.endswith("/bin/ray"))
        assert words[program + 1] == "start"
        environment = dict(word.split("=", 1) for word in words[:program])
        # `python` in a job must be the one that jano_dist is installed for.
        assert environment["PATH"] == f"{Path(words[program].replace('~', '$HOME')).parent}:$PATH"
        assert environment["HF_HOME"].startswith("/shared/")
        return environment, ray_start(words[program + 2 :])

    def test_the_head(self, config):
        environment, given = self.started(config, "head")
        assert environment.items() >= (HEALTH | {"RAY_AUTH_MODE": "token"}).items()
        assert (given["head"], given["port"], given["dashboard_host"]) == (True, 6379, "127.0.0.1")
        assert given["autoscaling_config"] == "~/ray_bootstrap_config.yaml"

    def test_the_workers(self, config):
        environment, given = self.started(config, "worker")
        assert environment["RAY_AUTH_MODE"] == "token"
        assert (given["head"], given["address"]) == (False, "192.0.2.1:6379")

    def test_the_token_is_copied_for_its_owner_alone(self, config):
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]

    def test_only_machines_of_its_own_are_stopped(self, config):
        stops = [line for line in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"])
                 if "ray stop" in line]  # fmt: skip
        assert len(stops) == (0 if config["provider"]["type"] == "local" else 2)

    def test_nothing_is_a_real_address(self, config):
        """Addresses are those for documentation (RFC 5737); ids are zeros."""
        text = yaml.safe_dump(config)
        for address in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text):
            assert address == "127.0.0.1" or address.startswith("192.0.2."), address
        assert not re.search(r"\b(ami|fs|sg|subnet)-0*[1-9a-f]", text)


def test_local_workers_are_kept():
    (config,) = documents(CLUSTER / "ray" / "local.yaml")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_aws_machines():
    (config,) = documents(CLUSTER / "ray" / "aws.yaml")
    head, gpus = config["available_node_types"]["head"], config["available_node_types"]["gpus"]
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert gpus["min_workers"] == gpus["max_workers"] == config["max_workers"]
    assert gpus["resources"]["GPU"] == 8
    for machine in (head, gpus):
        assert machine["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


class TestContainerfile:
    def last_stage(self):
        found = instructions()
        return found[max(number for number, (word, _) in enumerate(found) if word == "FROM") :]

    def test_every_word_is_known(self):
        assert {word for word, _ in instructions()} <= WORDS  # ADD would fetch what nobody has checked

    def test_what_is_copied_exists(self):
        for word, rest in instructions():
            if word == "COPY" and not rest.startswith("--from="):
                *sources, target = rest.split()
                assert all((ROOT / source).exists() for source in sources), rest
                assert len(sources) == 1 or target.endswith("/")

    def test_stages_are_named_before_they_are_used(self):
        names = [rest.split(" AS ")[1] for word, rest in instructions() if word == "FROM" and " AS " in rest]
        used = [match[1] for _, rest in instructions() if (match := re.match(r"--from=(\S+)", rest))]
        assert used
        assert set(used) <= set(names)

    def test_everything_that_the_package_is_built_from_is_copied(self):
        table = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = table["tool"]["hatch"]["build"]["targets"]["wheel"]
        links = [path for path in (ROOT / "jano_dist").iterdir() if path.is_symlink()]
        needed = {
            "pyproject.toml",
            "constraints.txt",
            project()["readme"],
            *project()["license-files"],
            *wheel["packages"],
            *wheel["force-include"],
            *(link.resolve().name for link in links),  # what a link in the package points to
        }
        copied = {
            source
            for word, rest in instructions()
            if word == "COPY" and not rest.startswith("--from=")
            for source in rest.split()[:-1]
        }
        assert needed <= copied

    def test_the_extras_exist_and_are_constrained(self):
        (install,) = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
        (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', install)
        assert set(extras.split(",")) == {"gpu", "ray"} <= set(project()["optional-dependencies"])
        assert "-c constraints.txt" in install

    def test_it_does_not_end_as_root(self):
        users = [rest for word, rest in self.last_stage() if word == "USER"]
        assert users
        assert users[-1].split(":")[0] not in ("root", "0")
        made = [rest for word, rest in self.last_stage() if word == "RUN" and "useradd" in rest]
        assert f"--uid {container_user()} " in made[0]
        after = self.last_stage()[[word for word, _ in self.last_stage()].index("USER") + 1 :]
        assert not [rest for word, rest in after if word == "RUN"]

    def test_tokens_are_on(self):
        assert "RAY_AUTH_MODE=token" in " ".join(rest for word, rest in self.last_stage() if word == "ENV")

    def test_kuberay_finds_what_it_calls(self):
        installed = " ".join(rest for word, rest in self.last_stage() if word == "RUN")
        assert " wget" in installed

    def test_the_base_is_named_once_and_has_cuda(self):
        bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
        assert bases == {"${BASE}"}
        (base,) = [rest for word, rest in instructions() if word == "ARG"]
        assert re.fullmatch(r"BASE=docker\.io/nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
