"""Measure search in a million vectors: FAISS inverted lists as `selfvit index` builds, and flat.

    OMP_NUM_THREADS=1 python -m benchmarks.search --output benchmarks/results/search.md

The vectors are synthetic: points around random centers. Memory and times are those of a process
that opens the index from the disk, as `selfvit search` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.objectives import processor_name
from selfvit.embedding.vectors.manifest import FOOTER, Manifest, describe_part
from selfvit.exploration.collection import Collection
from selfvit.exploration.index import build_index, load_index, require_faiss
from selfvit.exploration.neighbors import nearest

SIZE, NUM_CENTERS, SPREAD = 384, 5_000, 0.6
NUM_QUERIES = 300
ROWS_PER_PART = 100_000


def write_vectors(num_rows: int, folder: Path) -> None:
    """Write a folder of synthetic vectors, as `selfvit embed` does."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CENTERS, SIZE)).astype(np.float32)
    checkpoint = {"vector_dtype": "float32", "embedding_size": SIZE, "patch_grid": None}
    data = {"fingerprint": "", "num_positions": num_rows, "id_column": "id", "is_labeled": False}
    manifest = Manifest(checkpoint, data)
    for start in range(0, num_rows, ROWS_PER_PART):
        count = min(ROWS_PER_PART, num_rows - start)
        # centers of unequal weight, as clusters of images have
        chosen = (NUM_CENTERS * rng.random(count) ** 2).astype(int)
        noise = rng.normal(size=(count, SIZE)).astype(np.float32)
        values = (centers[chosen] + SPREAD * noise).reshape(-1)
        ids = [str(start + row) for row in range(count)]
        columns = [ids, [None] * count, pa.FixedSizeListArray.from_arrays(pa.array(values), SIZE)]
        table = pa.table(columns, schema=manifest.schema)
        footer = {"run": manifest.run, "start": start, "stop": start + count, "skipped": []}
        path = folder / f"part-{start // ROWS_PER_PART:05}.parquet"
        pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(footer)}), path)
        manifest.parts.append(describe_part(path, footer))
    manifest.save(folder)


def measure_index(folder: Path) -> None:
    """Search with the index; print recall, times and memory as JSON."""
    collection = Collection(folder)
    loaded = load_index(collection)
    assert loaded is not None
    queries = np.load(folder / "queries.npy")
    expected = np.load(folder / "expected.npy")
    index, _ = loaded
    print(json.dumps(_measure(index.search, queries, expected)))


def measure_flat(folder: Path) -> None:
    """Search with FAISS's exhaustive index; print recall, times and memory as JSON."""
    faiss = require_faiss()
    index = faiss.IndexFlatIP(SIZE)
    index.add(Collection(folder).directions)
    queries = np.load(folder / "queries.npy")
    print(json.dumps(_measure(index.search, queries, np.load(folder / "expected.npy"))))


def measure_exact(folder: Path) -> None:
    """Search with selfvit's exact search; print recall, times and memory as JSON."""
    directions = Collection(folder).directions

    def search(query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows, similarities = nearest(query, directions, k)
        return similarities, rows

    queries = np.load(folder / "queries.npy")
    print(json.dumps(_measure(search, queries, np.load(folder / "expected.npy"))))


def _measure(search, queries: np.ndarray, expected: np.ndarray) -> dict[str, float]:  # type: ignore[no-untyped-def]
    seconds, hits = [], 0
    for query, exact in zip(queries, expected, strict=True):
        start = time.perf_counter()
        _, rows = search(query[None], 10)
        seconds.append(time.perf_counter() - start)
        hits += len(set(rows[0].tolist()) & set(exact.tolist()))
    return {
        "recall": hits / expected.size,
        "milliseconds": 1000 * statistics.median(seconds),
        "MiB": psutil.Process().memory_info().rss / 2**20,
    }


MEASURES = {
    "selfvit index": measure_index,
    "FAISS, IndexFlatIP": measure_flat,
    "selfvit, exact": measure_exact,
}


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, folder = arguments.measure
        MEASURES[name](Path(folder))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_vectors(arguments.rows, folder)
        collection = Collection(folder)
        rng = np.random.default_rng(1)
        rows = rng.choice(arguments.rows, NUM_QUERIES, replace=False)
        noise = rng.normal(size=(NUM_QUERIES, SIZE)).astype(np.float32)
        queries = collection.vectors[rows] + 0.3 * noise  # beside the rows, not on them
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        expected, _ = nearest(queries, collection.directions, 10)
        np.save(folder / "queries.npy", queries)
        np.save(folder / "expected.npy", expected)
        start = time.perf_counter()
        description = build_index(collection)
        seconds = time.perf_counter() - start
        del collection
        lines = [
            f"CPU: {processor_name()}, one thread; {arguments.rows:,} vectors of {SIZE} values, "
            f"{NUM_QUERIES} queries",
            "",
            f"Index: {description.num_lists:,} lists, {description.num_probes} looked into, built "
            f"in {seconds:.0f} s.",
            "",
            "| search | recall@10 | median time | memory of the process |",
            "| --- | --- | --- | --- |",
        ]
        for name in MEASURES:
            command = [sys.executable, "-m", "benchmarks.search", "--measure", name, str(folder)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(printed.splitlines()[-1])
            lines.append(
                f"| {name} | {found['recall']:.4f} | {found['milliseconds']:.2f} ms | "
                f"{found['MiB']:.0f} MiB |"
            )
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
