"""Exact evaluation of MovieLens-1M's 200,042 test rows: ours against TFRS's FactorizedTopK, on the same embeddings.

The embeddings are a truncated singular value decomposition of the train part's interactions (32 wide, as in the TFRS
tutorials): quick, the same on every machine, and good enough that the metrics mean something. Both sides compute how
often a test row's item is among its user's best 1, 5, 10, 50 and 100 of all 3,706, nothing excluded. Each side runs in
a process of its own that stays alive; only the evaluation itself is timed, and the sides take turns.

Our accuracies are held against TFRS's metric by id, our metrics per user against ir-measures. TFRS's default metric by
score comes out lower than all of them (`tfrs/factorized_top_k.py` says why); the difference is among the raw figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import movielens_splits
import numpy as np
import results
import tfrs_environment
from numpy.typing import NDArray

KEYS = ("ratio", "ratio_bruteforce", "peak_gb")
KS = (1, 5, 10, 50, 100)
DIM = 32
SEED = 0
IR_TOLERANCE = 1e-6
TFRS_TOLERANCE = 2e-5
"""Four rows of 200,042: two matrix products may differ in the last bit, and so in the order of two close items."""


def run(arguments: list[str]) -> dict[str, float]:
    """Time the three forms in turns, compare their metrics, and say how many times faster ours is."""
    parser = argparse.ArgumentParser(prog="run.py eval-speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of ours and BruteForce (default 5)")
    parser.add_argument("--streaming-rounds", type=int, default=2, help="runs of TFRS's default form (default 2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "embeddings.npz"
        write_embeddings(path)
        runs = _take_turns(path, rounds=options.rounds, streaming_rounds=options.streaming_rounds)
        ir_measures = compare_with_ir_measures(path)
    seconds = {form: statistics.median(one["seconds"] for one in found) for form, found in runs.items()}
    tfrs = {form: _largest_difference(runs["ours"][0], found[0]) for form, found in runs.items() if form != "ours"}
    raw = {"seconds": seconds, "runs": runs, "tfrs_difference": tfrs, "ir_measures": ir_measures}
    print(f"raw figures: {results.write('eval-speed', raw)}")
    _demand("TFRS's accuracies by id", tfrs["by_id"], TFRS_TOLERANCE)
    _demand("ir-measures", max(row["difference"] for row in ir_measures.values()), IR_TOLERANCE)
    return {
        "ratio": seconds["streaming"] / seconds["ours"],
        # Turn by turn, so that a busy moment of the machine touches both sides of a quotient.
        "ratio_bruteforce": statistics.median(
            theirs["seconds"] / ours["seconds"] for ours, theirs in zip(runs["ours"], runs["brute_force"], strict=True)
        ),
        "peak_gb": max(one["peak_gb"] for one in runs["ours"]),
    }


def write_embeddings(path: Path) -> None:
    """The test rows and the embeddings, as the npz file that both sides read."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    user, item = movielens_splits.read_1m()
    test = movielens_splits.is_test(len(user), seed=SEED)
    shape = (int(user.max()) + 1, int(item.max()) + 1)
    train = csr_matrix((np.ones(int((~test).sum())), (user[~test], item[~test])), shape=shape)
    start = np.random.default_rng(SEED).standard_normal(min(shape))
    left, scale, right = svds(train, k=DIM, v0=start)
    np.savez(
        path,
        query=(left * scale).astype(np.float32),
        candidate=np.ascontiguousarray(right.T).astype(np.float32),
        query_row=user[test],
        candidate_row=item[test],
    )


def compare_with_ir_measures(path: Path) -> dict[str, dict[str, float]]:
    """Our metrics per user beside those of ir-measures (trec_eval's code) on the same scores, as means over users."""
    import ir_measures

    from twotower.evaluation.metrics import query_metrics
    from twotower.evaluation.ranks import embedding_ranks

    arrays = _load(path)
    order = np.argsort(arrays["query_row"], kind="stable")
    user, item = arrays["query_row"][order], arrays["candidate_row"][order]
    ranks = embedding_ranks(arrays["query"], arrays["candidate"], pair_user=user, pair_item=item)
    asked, start = np.unique(user, return_index=True)
    starts = np.append(start, len(user))
    ours = query_metrics(ranks, starts, ks=(10, 100))
    qrels = {
        str(query): dict.fromkeys(map(str, item[first:last].tolist()), 1)
        for query, first, last in zip(asked.tolist(), starts[:-1], starts[1:], strict=True)
    }
    pairs = {
        "recall@100": "R@100",
        "hit_rate@10": "Success@10",
        "ndcg@10": "nDCG@10",
        "mrr@100": "RR@100",
        "map@100": "AP@100",
    }
    parsed = {name: ir_measures.parse_measure(text) for name, text in pairs.items()}
    theirs = ir_measures.calc_aggregate(list(parsed.values()), qrels, _best_hundred(arrays, asked))
    found = {}
    for name, measure in parsed.items():
        mean, reference = float(ours[name].mean()), float(theirs[measure])
        found[name] = {"ours": mean, "ir_measures": reference, "difference": abs(mean - reference)}
    return found


def _best_hundred(arrays: Mapping[str, NDArray[Any]], users: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """A run in the sense of TREC: user -> item -> score, the best hundred of each."""
    scores = arrays["query"][users] @ arrays["candidate"].T
    best = np.argpartition(-scores, 100, axis=1)[:, :100]
    values = np.take_along_axis(scores, best, axis=1)
    return {
        str(user): dict(zip(map(str, items), row, strict=True))
        for user, items, row in zip(users.tolist(), best.tolist(), values.tolist(), strict=True)
    }


def _take_turns(path: Path, *, rounds: int, streaming_rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Form -> its runs. Ours and BruteForce alternate; the streaming form, which takes long, joins the first turns."""
    theirs = tfrs_environment.command("factorized_top_k.py", str(path))
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "streaming": [], "brute_force": [], "by_id": []}
    mine = _worker([sys.executable, __file__, str(path)], env=dict(os.environ))
    with mine as ours, _worker(theirs, env=tfrs_environment.variables()) as tfrs:
        for turn in range(rounds):
            found["ours"].append(_ask(ours, "ours"))
            found["brute_force"].append(_ask(tfrs, "brute_force"))
            if turn < streaming_rounds:
                found["streaming"].append(_ask(tfrs, "streaming"))
        found["by_id"].append(_ask(tfrs, "by_id"))
    return found


def _largest_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    return max(abs(ours[f"top{k}"] - theirs[f"top{k}"]) for k in KS)


@contextmanager
def _worker(command: list[str], *, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that answers a line with a line, ended by closing its input."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _ask(process: subprocess.Popen[str], form: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    answer = ""
    if process.poll() is None:
        print(form, file=process.stdin, flush=True)
        answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process that evaluates {form!r} ended without an answer: see its message above")
    found: dict[str, Any] = json.loads(answer)
    print(f"{form}: {found['seconds']:.3f} s", file=sys.stderr)
    return found


def _demand(what: str, difference: float, tolerance: float) -> None:
    if difference > tolerance:
        raise RuntimeError(f"our metrics differ from {what} by {difference:.2e}, more than {tolerance:.0e}")


def _load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)


def evaluate_ours(path: Path) -> None:
    """Our side, in its own process: one evaluation per line read, its time, accuracies and peak memory written."""
    from twotower.evaluation.metrics import top_k_categorical_accuracy
    from twotower.evaluation.ranks import embedding_ranks

    arrays = _load(path)
    user, item = arrays["query_row"], arrays["candidate_row"]
    once = np.ones(len(user), np.int32)

    def measure() -> dict[str, float]:
        begin = time.perf_counter()
        ranks = embedding_ranks(arrays["query"], arrays["candidate"], pair_user=user, pair_item=item)
        found = {f"top{k}": top_k_categorical_accuracy(ranks, once, k=k) for k in KS}
        return {"seconds": time.perf_counter() - begin, **found}

    measure()  # TFRS's side is traced before its clock starts; ours gets its threads.
    for _ in sys.stdin:
        print(json.dumps({"form": "ours", **measure(), "peak_gb": results.peak_memory() / 1e9}), flush=True)


if __name__ == "__main__":
    evaluate_ours(Path(sys.argv[1]))
