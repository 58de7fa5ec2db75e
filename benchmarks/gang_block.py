"""One block of Wan2.1-14B at true width, random weights, 512 tokens: Ulysses 2 and 4 against one process."""

from benchmarks.common import on_ranks, save
from jano_dist.mesh import Mesh
from tests.gang.test_wan_14b import WALK, apart, on_a_rank, random_weights, walk

FRAMES = 4  # 128 tokens each


def main() -> None:
    weights = random_weights()
    alone, whole = walk(weights, FRAMES, Mesh.single())
    rows = []
    for ranks in (2, 4):
        results, threads = on_ranks(ranks, on_a_rank, weights, FRAMES, timeout=300)
        for step, (kind, _) in enumerate(WALK):
            computed, wanted = alone[step]
            place = {token: row for row, token in enumerate(computed.tolist())}
            differences = []
            for steps, _ in results:
                own, output = steps[step]
                differences.append(apart(output, wanted[[place[token] for token in own.tolist()]]))
            row = {"ranks": ranks, "step": step, "kind": kind, "tokens": len(computed)}
            rows.append({**row, "relative_difference": max(differences)})
            print(rows[-1], flush=True)
        assert all(nbytes * ranks == whole for _, nbytes in results)
    save("gang-block", {"largest": max(row["relative_difference"] for row in rows), "rows": rows}, threads)


if __name__ == "__main__":
    main()
