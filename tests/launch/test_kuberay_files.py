"""The files in cluster/kuberay without an API server: by a schema, by Ray, and against each other."""

import copy
import itertools
import shlex
from importlib.metadata import version

import jsonschema
import pytest

from tests.launch.cluster_files import CLUSTER, HEALTH, ROOT, container_user, documents, project, ray_start
from tests.launch.kuberay_schema import KINDS


def document(name, kind):
    (found,) = [each for each in documents(CLUSTER / "kuberay" / name) if each["kind"] == kind]
    return found


def options(arguments):
    """The `--name value` pairs of a command line."""
    return {name: value for name, value in itertools.pairwise(arguments) if name[:2] == "--"}


def find(node, key):
    """Every mapping below `node` that has `key`."""
    if isinstance(node, dict):
        yield from [node] if key in node else []
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from find(child, key)


class TestKubeRay:
    NAMES = ("shared.yaml", "rayjob.yaml", "raycluster.yaml")

    @pytest.mark.parametrize("name", NAMES)
    def test_schema(self, name):
        for each in documents(CLUSTER / "kuberay" / name):
            jsonschema.validate(each, KINDS[each["kind"]])

    def test_the_schema_is_one(self):
        for schema in KINDS.values():
            jsonschema.Draft202012Validator.check_schema(schema)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("spec.shutdownAfterJobFinish", True),
            ("spec.rayClusterSpec.authOptions.mode", "disabled"),
            ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-gpus", 0),
            ("spec.rayClusterSpec.headGroupSpec.template.spec.hostNetwork", True),
            ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits.memory", "16 GB"),
            ("spec.rayClusterSpec.workerGroupSpecs.0.groupname", "gpus"),
            ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.persistentVolumeClaim", {}),
        ],
    )
    def test_a_mistake_is_noticed(self, path, value):
        job = copy.deepcopy(document("rayjob.yaml", "RayJob"))
        *way, last = path.split(".")
        place = job
        for key in way:
            place = place[int(key) if key.isdecimal() else key]
        place[last] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, KINDS["RayJob"])

    @pytest.fixture(params=["rayjob.yaml", "raycluster.yaml"])
    def ray(self, request):
        """The Ray cluster of either file."""
        if request.param == "rayjob.yaml":
            return document(request.param, "RayJob")["spec"]["rayClusterSpec"]
        return document(request.param, "RayCluster")["spec"]

    @pytest.fixture
    def templates(self, ray):
        return [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]

    def test_the_ray_that_is_tested(self, ray):
        assert ray["rayVersion"] == version("ray")

    def test_start_parameters(self, ray):
        """As the operator makes them options of `ray start`; it adds the dashboard's host itself."""

        def started(group, *more):
            return ray_start(
                [*more, *(f"--{name}={value}" for name, value in group["rayStartParams"].items())]
            )

        head = started(ray["headGroupSpec"], "--head")
        assert (head["num_gpus"], head["num_cpus"]) == (0, 0)
        for group in ray["workerGroupSpecs"]:
            assert started(group, "--address=head:6379")["num_gpus"] is None  # the GPUs of the pod

    def test_no_head_takes_a_gpu(self, ray):
        (head,) = ray["headGroupSpec"]["template"]["spec"]["containers"]
        assert "nvidia.com/gpu" not in head["resources"]["limits"]
        for group in ray["workerGroupSpecs"]:
            (worker,) = group["template"]["spec"]["containers"]
            limits, requests = worker["resources"]["limits"], worker["resources"]["requests"]
            assert limits == requests  # a node with other work on it would make a slow gang
            assert int(limits["nvidia.com/gpu"]) > 0

    def test_a_lost_node_is_noticed_early(self, ray):
        (head,) = ray["headGroupSpec"]["template"]["spec"]["containers"]
        assert {each["name"]: each["value"] for each in head["env"]}.items() >= HEALTH.items()

    def test_what_is_shared(self, templates):
        """Every pod sees weights and outputs at the same place, and has shared memory of its own."""
        claim = document("shared.yaml", "PersistentVolumeClaim")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for template in templates:
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            (container,) = template["spec"]["containers"]
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert set(mounts) == {"/shared", "/dev/shm"}
            name = mounts["/shared"]["persistentVolumeClaim"]["claimName"]
            assert name == claim["metadata"]["name"]
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            environment = {each["name"]: each["value"] for each in container["env"]}
            assert environment["HF_HOME"].startswith("/shared/")

    def test_pods_have_no_rights(self, templates):
        job = document("rayjob.yaml", "RayJob")["spec"]["submitterPodTemplate"]
        for template in (*templates, job):
            assert template["spec"]["automountServiceAccountToken"] is False
            user = template["spec"]["securityContext"]
            assert user["runAsNonRoot"]
            assert user["runAsUser"] == user["fsGroup"] == container_user()
            for container in template["spec"]["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }

    def test_one_image(self):
        text = "".join((CLUSTER / "kuberay" / name).read_text() for name in self.NAMES)
        images = {
            container["image"]
            for name in ("rayjob.yaml", "raycluster.yaml")
            for container in find(documents(CLUSTER / "kuberay" / name), "image")
        }
        assert len(images) == 1
        (image,) = images
        assert image in (CLUSTER / "Containerfile").read_text()
        assert image.endswith(f":{project()['version']}")
        assert ":latest" not in text

    def test_the_network_policy_knows_the_pods(self, templates):
        policy = document("shared.yaml", "NetworkPolicy")["spec"]
        labels = policy["podSelector"]["matchLabels"]
        assert policy["policyTypes"] == ["Ingress"]
        ((own, operator),) = [rule["from"] for rule in policy["ingress"]]
        assert own == {"podSelector": {"matchLabels": labels}}
        # Helm's and kustomize's operator have this label in common.
        assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
        assert operator["namespaceSelector"] == {}
        job = document("rayjob.yaml", "RayJob")["spec"]["submitterPodTemplate"]
        for template in (*templates, job):
            assert template["metadata"]["labels"].items() >= labels.items()

    def test_deleting_a_job_deletes_no_video(self):
        for name in ("rayjob.yaml", "raycluster.yaml"):
            assert len(documents(CLUSTER / "kuberay" / name)) == 1

    def test_the_job(self):
        spec = document("rayjob.yaml", "RayJob")["spec"]
        program, command, *arguments = shlex.split(spec["entrypoint"])
        assert (program, command) == ("jano-dist", "generate")
        given = options(arguments)
        assert (given["--launcher"], given["--address"]) == ("ray", "auto")
        assert given["--out"].startswith("/shared/")
        assert (ROOT / "configs" / f"{given['--config']}.yaml").exists()
        assert int(given["--wait"]) > 0  # the workers come after the head
        assert spec["backoffLimit"] == 0
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        (worker,) = group["template"]["spec"]["containers"]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        gpus = group["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
        assert int(given["--nproc"]) == gpus
