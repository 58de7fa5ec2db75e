"""JSON schema of the objects in cluster/kuberay, as far as these files use them: any other field fails.

Fields and rules are those of the custom resources `ray.io/v1` (KubeRay 1.7) and of Kubernetes' own API
reference, written down by hand. An API server drops a field that it does not know without a word.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
# What the API server takes as a number of bytes or of cores.
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers need quotes there


def record(*required: str, **fields: Schema) -> Schema:
    """An object that has no other fields than these."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


METADATA = record("name", name=NAME)
SELECTOR = record(matchLabels=TEXTS)

POD_SECURITY = record(
    "runAsNonRoot",
    runAsNonRoot=YES_NO,
    runAsUser=COUNT,
    fsGroup=COUNT,
    fsGroupChangePolicy=one_of("Always", "OnRootMismatch"),
    seccompProfile=record("type", type=one_of("RuntimeDefault", "Localhost", "Unconfined")),
)
AMOUNTS: Schema = {"type": "object", "propertyNames": one_of("cpu", "memory", "nvidia.com/gpu")} | {
    "additionalProperties": QUANTITY
}
CONTAINER = record(
    "name",
    "image",
    "resources",
    name=NAME,
    image=TEXT,
    securityContext=record(
        allowPrivilegeEscalation=YES_NO, capabilities=record(drop=some(TEXT), add=some(TEXT))
    ),
    env=some(record("name", "value", name=TEXT, value={"type": "string"})),
    ports=some(
        record("name", "containerPort", name=NAME, containerPort={"type": "integer", "maximum": 65535})
    ),
    resources=record("requests", "limits", requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=some(record("name", "mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
)
VOLUME = record(
    "name",
    name=NAME,
    persistentVolumeClaim=record("claimName", claimName=NAME),
    emptyDir=record(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
)
POD = record(
    "spec",
    metadata=record(labels=TEXTS),
    spec=record(
        "containers",
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        automountServiceAccountToken=YES_NO,
        securityContext=POD_SECURITY,
        containers=some(CONTAINER),
        volumes=some(VOLUME),
    ),
)

CLUSTER = record(
    "rayVersion",  # the operator wants it where there is a token
    "authOptions",
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=record("mode", mode=one_of("token")),  # "disabled" exists, too
    headGroupSpec=record(
        "rayStartParams",
        "template",
        serviceType=one_of("ClusterIP"),  # the others show Ray's ports to the outside
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs=some(
        record(
            "groupName",
            "minReplicas",  # the operator wants both where nothing scales them
            "maxReplicas",
            "rayStartParams",
            "template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)


def resource(version: str, kind: str, spec: Schema) -> Schema:
    return record(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


KINDS = {
    "RayCluster": resource("ray.io/v1", "RayCluster", CLUSTER),
    "RayJob": resource(
        "ray.io/v1",
        "RayJob",
        record(
            "entrypoint",
            "rayClusterSpec",
            entrypoint=TEXT,
            submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
            backoffLimit=COUNT,
            shutdownAfterJobFinishes={"const": True},  # what ttlSecondsAfterFinished asks for
            ttlSecondsAfterFinished=COUNT,
            submitterPodTemplate=POD,
            rayClusterSpec=CLUSTER,
        ),
    ),
    "PersistentVolumeClaim": resource(
        "v1",
        "PersistentVolumeClaim",
        record(
            "accessModes",
            "resources",
            accessModes=some(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
            storageClassName=TEXT,
            resources=record("requests", requests=record("storage", storage=QUANTITY)),
        ),
    ),
    "NetworkPolicy": resource(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        record(
            "podSelector",
            "policyTypes",
            podSelector=SELECTOR,
            policyTypes=some(one_of("Ingress", "Egress")),
            ingress=some(
                {
                    "type": "object",
                    "properties": {
                        "from": some(record(podSelector=SELECTOR, namespaceSelector=SELECTOR)),
                    },
                    "required": ["from"],  # without it: from everywhere
                    "additionalProperties": False,
                }
            ),
        ),
    ),
}
