"""One rank that gathers values of several sizes, and prints what it got and how many collectives that took, as JSON."""

from __future__ import annotations

import json
from unittest.mock import patch

import torch.distributed as dist

from kappaspeech.ranks.start import start_cluster

# letters that ranks 0 and 1 bring; the second asks for more room than there is, and so do the largest, for which none is kept
SIZES = ((3, 5), (10, 20_000), (20_000, 10), (3, 5), (20_000, 20_000), (200_000, 3), (3, 5), (200_000, 3))


def main() -> None:
    cluster = start_cluster()
    counts, right = [], True
    for sizes in SIZES:
        with patch.object(dist, "all_gather_into_tensor", wraps=dist.all_gather_into_tensor) as gather:
            values = cluster.gather({"rank": cluster.rank, "text": "ä" * sizes[cluster.rank]})
        counts.append(gather.call_count)
        right &= values == [{"rank": rank, "text": "ä" * size} for rank, size in enumerate(sizes)]
    print(json.dumps({"counts": counts, "right": right}))
    cluster.close()


if __name__ == "__main__":
    main()
