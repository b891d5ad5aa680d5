"""Answers of several engines, one after another: python several.py JOBS.json ANSWERS.json

A script, because the workers of a parallel engine import what started them. A job has `folder`, `settings` and `overrides` of
an engine, and `requests`: prompt, sizes and seeds of random pictures, ratio.
"""

import json
import sys
from pathlib import Path

import engines
from vllm import SamplingParams

from tiny import picture


def answers(job: dict) -> list[dict]:
    made = [engines.request(text, [picture(*p) for p in pictures], ratio) for text, pictures, ratio in job["requests"]]
    parameters = SamplingParams(temperature=0, max_tokens=6, logprobs=5, prompt_logprobs=1, ignore_eos=True)
    with engines.running(job["folder"], job["settings"], **job["overrides"]) as engine:
        outputs = engine.generate(made, parameters, use_tqdm=False)
        return [
            {
                "prompt": list(output.prompt_token_ids),
                "tokens": engines.ids(output),
                # What each place of the prompt says of the next one hangs on what stands there: kept tokens show up one by one.
                "read": [
                    found[token].logprob
                    for token, found in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
                    if found is not None
                ],
                "best": [sorted(step.items()) for step in engines.best(output)],
            }
            for output in outputs
        ]


def main() -> None:
    jobs, told = json.loads(Path(sys.argv[1]).read_text()), {}
    for name, job in jobs.items():
        told[name] = answers(job)
    Path(sys.argv[2]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
