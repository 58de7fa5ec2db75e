#!/usr/bin/env bash
# Ranks started by torchrun. On one node:
#
#   launchers/torchrun.sh --nproc 8 generate "a panda drinks coffee" --out out/panda
#
# On several, the same command on each of them; HOST is one of them, the port is free there, OUT is shared:
#
#   launchers/torchrun.sh --nproc 8 --nodes 2 --rdzv HOST:29500 generate "..." --out OUT
#
#   --nproc N         ranks of this node, one for each GPU        (or PET_NPROC_PER_NODE)
#   --nodes N         nodes, 1 if left out                        (or PET_NNODES)
#   --rdzv HOST:PORT  where the nodes meet                        (or PET_RDZV_ENDPOINT)
#   --rdzv-id NAME    the same on all nodes; jano-dist            (or PET_RDZV_ID)
#   --max-restarts N  how often a gang that fails starts again, 2 (or PET_MAX_RESTARTS)
#
# The variables are torchrun's own. What follows these options is given to jano-dist as it is; it may also be a
# measurement of these ranks, `bench scaling --out OUT`.
set -euo pipefail

fail() {
    echo "torchrun.sh: $1" >&2
    exit 2
}

need_number() {
    [[ $2 =~ ^(0|[1-9][0-9]*)$ && $2 -ge $3 ]] || fail "$1 must be a whole number, $3 or more, not '$2'"
}

nproc=${PET_NPROC_PER_NODE:-}
nodes=${PET_NNODES:-1}
rdzv=${PET_RDZV_ENDPOINT:-}
name=${PET_RDZV_ID:-jano-dist}
restarts=${PET_MAX_RESTARTS:-2}

while [[ ${1:-} == -* ]]; do
    if [[ $1 == --*=* ]]; then
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
    fi
    case $1 in
        --nproc | --nodes | --rdzv | --rdzv-id | --max-restarts) ;;
        -h | --help)
            sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "$1 is not known here: see --help, and put options of jano-dist after its command, generate" ;;
    esac
    [[ -n ${2:-} ]] || fail "$1 needs a value"
    case $1 in
        --nproc) nproc=$2 ;;
        --nodes) nodes=$2 ;;
        --rdzv) rdzv=$2 ;;
        --rdzv-id) name=$2 ;;
        --max-restarts) restarts=$2 ;;
    esac
    shift 2
done

[[ -n $nproc ]] || fail "give --nproc, the ranks of this node: one for each of its GPUs"
need_number --nproc "$nproc" 1
need_number --nodes "$nodes" 1
need_number --max-restarts "$restarts" 0
[[ -z $rdzv || $rdzv =~ ^.+:[0-9]+$ ]] || fail "--rdzv must be HOST:PORT, not '$rdzv'"
[[ -n $rdzv || $nodes -eq 1 ]] ||
    fail "--nodes $nodes needs --rdzv HOST:PORT, the same on every node: one of the nodes, and a port free there"
[[ ${1:-} == generate || "${1:-} ${2:-}" == "bench scaling" ]] ||
    fail "what to run must be 'generate', a prompt and options of it, not '${1:-}'"
for program in torchrun jano-dist; do
    command -v "$program" > /dev/null ||
        fail "$program is not on the PATH: activate the environment that jano-dist is installed in"
done

# Without it ranks that are started again meet the keys of those before them, and wait for ever.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# More threads than ranks can use get in each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [[ -n $rdzv ]]; then
    # torchrun takes this node's host name for where others find it, and for telling whether it is HOST; a node
    # with several addresses is then looked for in vain. So both are found out here: only an address of this
    # node can be bound, and the way to HOST begins at the address that HOST can answer to.
    host=${rdzv%:*} port=${rdzv##*:}
    address=$(python3 - "${host//[][]/}" 2> /dev/null << 'END'
import socket
import sys

family, kind, _, _, (address, *_) = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as probe:
    try:
        probe.bind((address, 0))
        print(sys.argv[1])
    except OSError:
        probe.connect((address, 9))  # sends nothing
        print(probe.getsockname()[0])
END
    ) || fail "--rdzv $rdzv: this node knows no way to that host: is it spelt right?"
    if [[ $address == "${host//[][]/}" ]]; then
        rdzv=localhost:$port
    fi
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$rdzv" --rdzv-id "$name")
    meeting+=(--local-addr "${PET_LOCAL_ADDR:-$address}")
else
    meeting=(--standalone --local-addr localhost)
    if [[ $OSTYPE == linux* ]]; then # nothing of one node need leave it
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
    fi
fi

# torchrun would start a command that cannot run again and again: let its sentence be said once, before.
if [[ $1 == generate ]]; then
    RANK=0 WORLD_SIZE=$((nodes * nproc)) LOCAL_RANK=0 LOCAL_WORLD_SIZE=$nproc \
        jano-dist generate --check "${@:2}" > /dev/null
fi

exec torchrun --nnodes "$nodes" --nproc-per-node "$nproc" --max-restarts "$restarts" "${meeting[@]}" \
    -m jano_dist "$@"
