"""Ask a model every question of a parquet file with Ray Data, on as many machines as Ray has.

    python examples/ray_batch.py questions.parquet llava-hf/llava-v1.6-vicuna-7b-hf answers --retention 0.1 --engines 8

Columns: `image` (a struct of bytes and path) and `question`. Optional: `picture`, and `retention` (a ratio for that row).
Answers go to `answers/rows`, in parts of at most `--batch` rows. After a stop, run the same command again: rows with an
answer are not asked again. A row that fails has its reason in `error`. Other rows go on.

Every machine needs globalcom2, vLLM and ray[data]. The files and the model must have the same paths on all of them.
RAY_ADDRESS names the cluster. Without it, the job runs on this machine alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from pyarrow import parquet
from ray.data.checkpoint import CheckpointConfig
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoProcessor

from globalcom2.core.budget import check_ratio
from globalcom2.mini import FOLDER

MINI = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
PLACE = "@question@"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="parquet file, or a folder of them")
    parser.add_argument("model", help="'mini', a folder with a checkpoint, or a name on the hub")
    parser.add_argument("out", type=Path, help="folder that all machines can write to")
    parser.add_argument(
        "--retention", type=float, default=0.1, help="ratio of rows that have none (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="rows per part (default: %(default)s)")
    parser.add_argument("--engines", type=int, default=1, help="most engines at a time (default: %(default)s)")
    parser.add_argument("--engine", type=json.loads, default={}, help="more arguments of vLLM's engine, a JSON object")
    parser.add_argument("--cpu", action="store_true", help="engines take one CPU each and no GPU")
    return parser.parse_args()


def check_same_job(given: argparse.Namespace) -> None:
    """Exit if the folder holds answers of another job: other questions, model, ratio or flags."""
    job = {"questions": str(given.questions.resolve()), "model": given.model, "retention": check_ratio(given.retention)}
    job.update(tokens=given.tokens, engine=given.engine)
    note = given.out / "job.json"
    if note.exists() and (found := json.loads(note.read_text())) != job:
        raise SystemExit(f"{given.out} must belong to the same job, got one with {found}. Give another folder.")
    given.out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(job))


def prompt_of(model: str) -> str:
    """Prompt for one image and one question, with `PLACE` where the question goes."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PLACE}]}]
    return AutoProcessor.from_pretrained(model).apply_chat_template(chat, add_generation_prompt=True)


def main() -> None:
    """Run the job, or the rest of it."""
    given = arguments()
    check_same_job(given)
    model = str(FOLDER) if given.model == "mini" else given.model
    prompt = prompt_of(model)

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        ratio = given.retention if row.get("retention") is None else row["retention"]
        request = {"retention": ratio, "image": None, "__inference_error__": ""}
        try:
            check_ratio(ratio)
            source = row["image"]
            image = Image.open(io.BytesIO(source["bytes"]) if source["bytes"] else source["path"]).convert("RGB")
        except Exception as error:  # Ray passes this row on and does not ask it
            return {**request, "__inference_error__": f"{type(error).__name__}: {error}"}
        request["prompt"] = prompt.replace(PLACE, row["question"])
        request["multimodal_data"] = {"image": image}
        request["mm_processor_kwargs"] = {"globalcom2_retention": ratio}
        request["sampling_params"] = {"temperature": 0, "max_tokens": given.tokens}
        return request

    def tell(row: dict[str, Any]) -> dict[str, Any]:
        told = {name: row.get(name) for name in ("picture", "question", "retention")}
        told["row_hash"] = np.uint64(row["row_hash"])  # Arrow takes an int for signed, and no row would be found again
        told["prompt_tokens"] = int(row.get("num_input_tokens") or 0)
        return {**told, "answer": (row.get("generated_text") or "").strip(), "error": row["__inference_error__"]}

    # The floor guards a server against strangers. These rows are the job's own and may ask for any ratio.
    overrides = {"globalcom2_retention": given.retention, "globalcom2_floor": 1e-6}
    engine = {"limit_mm_per_prompt": {"image": 1}, **(MINI if given.model == "mini" else {}), **given.engine}
    engine["hf_overrides"] = {**engine.get("hf_overrides", {}), **overrides}

    # Reading, the engine, resuming and writing take a CPU each. With fewer than four they wait for one another.
    local = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": max(4, os.cpu_count() or 1)}
    ray.init(include_dashboard=False, **local)
    done = CheckpointConfig("row_hash", str((given.out / "done").resolve()), delete_checkpoint_on_success=False)
    ray.data.DataContext.get_current().checkpoint_config = done
    # Ray Data sets max_restarts and max_task_retries to -1: a dead engine is started again and gets its rows again.
    process = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine,
            concurrency=given.engines,
            batch_size=given.batch,
            should_continue_on_error=True,
            log_engine_metrics=False,  # they need ray[serve]
            placement_group_config={"bundle_per_worker": {"CPU": 1}} if given.cpu else None,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=ask,
    )
    rows = ray.data.read_parquet(str(given.questions.resolve()), include_row_hash=True)
    rows = rows.repartition(target_num_rows_per_block=given.batch)
    process(rows).map(tell).write_parquet(str((given.out / "rows").resolve()))
    errors = parquet.read_table(given.out / "rows", columns=["error"])["error"].to_pylist()
    print(f"{len(errors)} rows in {given.out / 'rows'}, {sum(map(bool, errors))} of them with an error.")


if __name__ == "__main__":
    main()
