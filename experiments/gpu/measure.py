"""What `run.sh` runs: the parts of the list in README.md, in fresh processes, each with its own
time limit; one that fails or is too slow is said to, and the others go on. With TOGETHER=4, say, in
the environment so many get ready side by side, and still measure one after another.

    python experiments/gpu/measure.py OUT [PART or a piece of what is measured ...]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent / "benchmarks"
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")
# Weights in float32 and all that is computed in bfloat16, as one trains.
BFLOAT16 = " ".join(
    f"--{flag} bfloat16"
    for flag in ("student.compute.dtype", "teacher.compute.dtype", "teacher.dtype")
)
# What is measured, the command, and its limit in seconds.
Given = tuple[str, str, int]
TESTS = "tests/models/test_attention.py tests/losses tests/rollout/test_sampler.py"


def commands(part: str, work: Path) -> Iterator[Given]:
    """What belongs to a part, in the order in which it is measured."""
    ours, theirs = f"python3 {BENCHMARKS / 'ours.py'}", f"python3 {BENCHMARKS / 'theirs.py'}"
    data = f"--data.source {work / 'prompts.jsonl'}"
    small = work / MODELS[0].split("/")[1]
    if part == "correct":
        yield "check device", "python3 -m jopd.check device", 120
        # Exact float32 products, as the tests' tolerances are those of float32.
        exact = "env JAX_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest"
        yield "tests", f"{exact} python3 -m pytest -q -n 8 {TESTS}", 150
    if part == "speed":
        yield "machine", f"{ours} machine -", 60
        for name in MODELS:
            model = work / name.split("/")[1]
            flags = f"{model} {data} {BFLOAT16}"
            for rows in (32, 128, 512):
                what = f"{name} decode {rows}"
                yield what, f"{ours} decode {flags} rows={rows} prompt=256 new=512", 90
            for length in (1024, 4096):
                what, rows = f"{name} phases {length}", 32_768 // length
                lengths = f"rows={rows} prompt=256 new={length - 256}"
                yield what, f"{ours} phases {flags} {lengths} --micro-batches 2", 90
        for new, parts in ((512, 4), (2048, 16)):
            what, lengths = f"{MODELS[0]} step 64 x (256 + {new})", f"prompt=256 new={new}"
            flags = f"{small} {data} {BFLOAT16} --micro-batches {parts}"
            yield what, f"{ours} step {flags} rows=64 {lengths}", 120
    if part == "trl":
        prompts = f"prompts={work / 'prompts.jsonl'}"
        what = f"{MODELS[0]} step 64 x (256 + 512), TRL"
        lengths = "rows=64 new=512 part=16"
        yield what, f"{theirs} distillation {small} {prompts} {lengths}", 180
        yield (
            f"{MODELS[0]} decode 128, transformers",
            f"{theirs} decode {small} rows=128 prompt=256 new=512",
            90,
        )
    if part == "vocabulary":
        for form in ("naive", "chunked", "tiled"):
            yield f"vocabulary, {form}", f"python3 {BENCHMARKS / 'vocabulary.py'} {form}", 60
    if part == "profile":
        # Short answers: what is on record of each kernel takes longer to read than to run.
        flags = f"{small} {data} {BFLOAT16} --micro-batches 4"
        yield "profile", f"{ours} profile {flags} rows=64 prompt=256 new=64", 120


PARTS = ("correct", "speed", "trl", "vocabulary", "profile")


def main(out: str, *chosen: str) -> None:
    rows = []
    at_once = int(os.environ.get("TOGETHER", "1"))
    with tempfile.TemporaryDirectory() as folder, Path(out, "results.jsonl").open("a") as file:
        work = Path(folder)
        # Different ones of 255 tokens.
        texts = [f"{number:04d} + 7 = " * 36 for number in range(1000)]
        lines = [json.dumps({"prompt": text}) + "\n" for text in texts]
        (work / "prompts.jsonl").write_text("".join(lines))
        if at_once > 1:
            os.environ["TURNS"] = str(work / "turns")
        run = lambda given: (*given[:2], measured(*given[1:], Path(out)))
        for batch in batches(chosen, work):
            with ThreadPoolExecutor(at_once) as pool:
                for done in as_completed([pool.submit(run, given) for given in batch]):
                    what, command, found = done.result()
                    file.write(json.dumps({"what": what, "command": command, **found}) + "\n")
                    file.flush()
                    rows.append((what, found))
                    print(f"{what}: {json.dumps(found)[:800]}")
    print("\n" + "\n".join(f"{what:48} {json.dumps(found)[:300]}" for what, found in rows))


def batches(chosen: Sequence[str], work: Path) -> list[list[Given]]:
    """What is run side by side: first the models that are read, and what takes no turns; then what
    is measured.
    """
    of = {
        part: [
            given
            for given in commands(part, work)
            if not chosen or any(text == part or text in given[0] for text in chosen)
        ]
        for part in PARTS
    }
    first, rest = of.pop("correct"), [given for part in of.values() for given in part]
    maker = f"env JAX_PLATFORMS=cpu python3 {HERE / 'random_model.py'}"
    folders = {name: work / name.split("/")[1] for name in MODELS}
    made = [
        (f"{name} made", f"{maker} {name} {folder}", 120)
        for name, folder in folders.items()
        if any(str(folder) in command for _, command, _ in rest)
    ]
    return [made + first, rest]


def measured(command: str, limit: int, out: Path) -> dict:
    """What a process says in its last line, as JSON or as it is; the rest goes to `OUT/log`."""
    start = time.perf_counter()
    with (out / "log").open("a") as log:
        log.write(f"$ {command}\n")
        try:
            done = subprocess.run(
                command.split(), stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {limit} s"}
        log.write(done.stdout)
    seconds = round(time.perf_counter() - start, 1)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    if done.returncode:
        return {"failed": last or f"exit {done.returncode}", "process_seconds": seconds}
    try:
        return {**json.loads(last), "process_seconds": seconds}
    except ValueError:
        return {"said": last, "process_seconds": seconds}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(*sys.argv[1:])
