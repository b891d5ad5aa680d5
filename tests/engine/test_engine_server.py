"""`globalcom2 serve mini` over HTTP: answers, ratios, bad input, counters, and many requests at once."""

import asyncio
import base64
import contextlib
import io
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import engines
import pytest
from PIL import Image

from globalcom2.lab.dataset import load_examples
from globalcom2.mini import DEMO_QUESTION, EVALUATION_SET, demo_picture

openai = pytest.importorskip("openai")
assert engines  # skips the file where vLLM is not installed
REQUESTS, AT_ONCE = 2000, 16
RATIOS = (None, 1.0, 0.5, 0.25, 0.1, 0.05)


class Server:
    def __init__(self, port: int, process: subprocess.Popen):
        self.port, self.process = port, process
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def text(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        lines = [line.split() for line in self.text("metrics").splitlines() if line.startswith(name)]
        return sum(float(line[-1]) for line in lines)

    def memory(self) -> int:
        """Resident bytes of the server's processes."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True, check=True).stdout
        rows = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
        family, grown = {self.process.pid}, True
        while grown:
            children = {pid for pid, parent, _ in rows if parent in family}
            grown = not children <= family
            family |= children
        return 1024 * sum(rss for pid, _, rss in rows if pid in family)


@contextlib.contextmanager
def serving(*flags: str):
    """A server of the mini model on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "HF_HUB_OFFLINE": "1"}
    made = [sys.executable, "-m", "globalcom2", "serve", "mini", "--host", "127.0.0.1", "--port", str(port), *flags]
    process = subprocess.Popen(made, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.set_blocking(process.stdout.fileno(), False)
    server, log = Server(port, process), b""
    try:
        for _ in range(600):
            log += process.stdout.read() or b""
            assert process.poll() is None, log.decode()
            with contextlib.suppress(OSError):
                server.text("health")
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"no server after five minutes:\n{log.decode()}")
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server():
    limits = ("--limit-mm-per-prompt", '{"image": 4}', "--block-size", "32", "--disable-uvicorn-access-log")
    # Fewer tokens at once than a whole image has: at a ratio of 1 it must find room all the same.
    less = ("--max-num-batched-tokens", "512")
    with serving("--retention", "0.1", "--floor", "0.02", "--per-request", *limits, *less) as running:
        yield running


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return as_url(buffer.getvalue(), kind)


def as_url(data: bytes, kind: str = "PNG") -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def asked(question: str, *images: str, ratio=None, **kwargs) -> dict:
    """Arguments of a call; `kwargs` are `mm_processor_kwargs` besides the ratio."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    made = {
        "model": "mini",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
        "max_tokens": 8,
        "temperature": 0,
    }
    if ratio is not None:
        kwargs["globalcom2_retention"] = ratio
    if kwargs:
        made["extra_body"] = {"mm_processor_kwargs": kwargs}
    return made


def answer(server: Server, *args, **kwargs):
    return server.client.chat.completions.create(**asked(*args, **kwargs))


@pytest.fixture(scope="module")
def demo() -> str:
    return encoded(demo_picture())


def test_the_demo_question(server, demo):
    short, full = (answer(server, DEMO_QUESTION, demo, ratio=ratio) for ratio in (None, 1.0))
    assert short.choices[0].message.content.strip() == full.choices[0].message.content.strip() == "29"
    assert full.usage.prompt_tokens - short.usage.prompt_tokens == 664 - 66


def counted(server: Server) -> list[int]:
    """Visual tokens so far, before and after compression."""
    return [int(server.metric(f"globalcom2_visual_tokens_{when}_total")) for when in ("before", "after")]


@contextlib.contextmanager
def counting(server: Server):
    """A list of what is counted inside, once it is left."""
    old, found = counted(server), []
    yield found
    found += [new - then for new, then in zip(counted(server), old, strict=True)]


def named(question: str, uuid: str, url: str | None = None, **changes) -> dict:
    """A call with an image that has a name of the client's own, or with the name alone."""
    made = {**asked(question), **changes}
    part = {"type": "image_url", "image_url": None if url is None else {"url": url}, "uuid": uuid}
    made["messages"][0]["content"].insert(0, part)
    return made


def test_counters_on_metrics(server):
    with counting(server) as found:
        answer(server, DEMO_QUESTION, encoded(Image.new("RGB", (336, 336), "olive")))
        answer(server, "what is the total?")
    assert found == [664, 66]
    with counting(server) as found:  # two images in one prompt with three answers are two images
        call = asked(DEMO_QUESTION, *[encoded(Image.new("RGB", (336, 336), c)) for c in ("teal", "plum")], ratio=0.5)
        server.client.chat.completions.create(**{**call, "n": 3, "temperature": 1})
    assert found == [2 * 664, 2 * 332]


def test_counters_of_an_image_that_is_known_by_name(server):
    url = encoded(Image.new("RGB", (336, 336), "salmon"))
    create = server.client.chat.completions.create
    with counting(server) as found:
        first, second = create(**named(DEMO_QUESTION, "fish", url)), create(**named(DEMO_QUESTION, "fish"))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert found == [2 * 664, 2 * 66]
    with counting(server) as found, pytest.raises(openai.APIStatusError):
        create(**named(DEMO_QUESTION, "never seen"))
    assert found == [0, 0]


def test_counters_know_only_what_the_engine_took_on(server, demo):
    create = server.client.chat.completions.create
    call = asked(DEMO_QUESTION, demo)
    with counting(server) as found:
        for wrong in ({"max_tokens": 10**6}, {"logprobs": True, "top_logprobs": 10**4}, {"temperature": -1}):
            with pytest.raises(openai.BadRequestError):
                create(**{**call, **wrong})
        with pytest.raises(openai.BadRequestError):
            answer(server, "what is the total? " * 2000, demo)
        body = {"model": "mini", "messages": call["messages"]}
        told = server.client.post("../tokenize", body=body, cast_to=object)
    assert told["count"] > 66  # it went through the processor
    assert found == [0, 0]


def test_clients_see_what_was_kept(server, demo):
    def header(call: dict) -> str | None:
        raw = server.client.chat.completions.with_raw_response.create(**call)
        assert raw.parse()
        return raw.headers.get("x-globalcom2-visual-tokens")

    assert header(asked(DEMO_QUESTION, demo)) == "66/664"
    assert header(asked(DEMO_QUESTION, demo, demo, ratio=0.25)) == "332/1328"
    assert header(asked(DEMO_QUESTION, demo, ratio=1.0)) == "664/664"
    assert header(asked(DEMO_QUESTION, demo, ratio=0.001)) == "13/664"  # the floor
    assert header(asked("what is the total?")) is None
    with server.client.chat.completions.with_streaming_response.create(
        **asked(DEMO_QUESTION, demo, ratio=0.5), stream=True
    ) as raw:
        assert raw.headers["x-globalcom2-visual-tokens"] == "332/664"
        assert "[DONE]" in "".join(raw.iter_text())


def test_a_request_may_ask_for_a_number_of_tokens(server, demo):
    text = answer(server, DEMO_QUESTION, demo).usage.prompt_tokens - 66
    for limit, kept in ((100, 100), (663, 663), (5000, 664), (1, 13)):
        got = answer(server, DEMO_QUESTION, demo, globalcom2_max_visual_tokens=limit)
        assert got.usage.prompt_tokens - text == kept
    got = answer(server, DEMO_QUESTION, demo, ratio=0.05, globalcom2_max_visual_tokens=100)
    assert got.usage.prompt_tokens - text == 33
    for wrong in (0, -1, 2.5, True, "many", [64]):
        with pytest.raises(openai.BadRequestError, match="globalcom2_max_visual_tokens must be a whole number"):
            answer(server, DEMO_QUESTION, demo, globalcom2_max_visual_tokens=wrong)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"crop_size": {"height": 3, "width": 3}},  # would end the server
        {"size": {"shortest_edge": 4000}},
        {"do_resize": False},
        {"images_kwargs": {"do_resize": False}},
        {"device": "cuda"},
        {"globalcom2_retention": 0.5, "do_rescale": False},
        {"globalcom2_retention": 0.5, "retention": 0.5},
    ],
)
def test_requests_may_set_nothing_else_of_the_processor(server, demo, kwargs):
    with counting(server) as found, pytest.raises(openai.BadRequestError, match="mm_processor_kwargs must"):
        answer(server, DEMO_QUESTION, demo, **kwargs)
    assert found == [0, 0]
    assert answer(server, DEMO_QUESTION, demo)


def test_requests_may_not_choose_how_media_are_read(server, demo):
    made = asked(DEMO_QUESTION, demo, ratio=0.5)
    made["extra_body"]["media_io_kwargs"] = {"image": {"rgba_background_color": [0, 0, 0]}}
    with pytest.raises(openai.BadRequestError, match="media_io_kwargs"):
        server.client.chat.completions.create(**made)


@pytest.mark.parametrize("ratio", [25, 0, -0.1, "much", True, [0.1], {"a": 1}])
def test_a_wrong_ratio_is_a_400_with_our_message(server, demo, ratio):
    with pytest.raises(openai.BadRequestError, match="globalcom2_retention must be"):
        answer(server, DEMO_QUESTION, demo, ratio=ratio)
    assert answer(server, DEMO_QUESTION, demo)


def bad_urls() -> dict[str, str]:
    whole = base64.b64decode(encoded(demo_picture()).split(",")[1])
    return {
        "empty": as_url(b""),
        "no picture": as_url(b"hello"),
        "cut": as_url(whole[: len(whole) // 3]),
        "no data": "data:image/png;base64,%%%",
    }


@pytest.mark.parametrize("kind", ["empty", "no picture", "cut", "no data"])
def test_a_broken_picture_is_a_400(server, demo, kind):
    with pytest.raises(openai.BadRequestError):
        answer(server, DEMO_QUESTION, bad_urls()[kind])
    assert answer(server, DEMO_QUESTION, demo)


def test_too_many_pictures_are_a_400(server, demo):
    with pytest.raises(openai.BadRequestError, match="At most 4 image"):
        answer(server, DEMO_QUESTION, *[demo] * 40)


def test_a_strip_of_20000_pixels(server, demo):
    got = answer(server, DEMO_QUESTION, encoded(Image.new("RGB", (20000, 10), "navy")))
    assert got.usage.prompt_tokens < 100


def test_a_video_is_a_400_as_in_vllm(server, demo):
    made = asked(DEMO_QUESTION, demo)
    made["messages"][0]["content"].append(
        {"type": "video_url", "video_url": {"url": demo.replace("image/png", "video/mp4")}}
    )
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(**made)
    assert answer(server, DEMO_QUESTION, demo)


def test_soak(server, demo):
    """Thousands of requests, some of them wrong or given up by the client: every other one gets its own answer."""
    pictures = load_examples(EVALUATION_SET, first=20)
    good = [(p.questions[0].text, encoded(p.image, "JPEG"), RATIOS[i % len(RATIOS)]) for i, p in enumerate(pictures)]
    alone, sizes = [], []
    for text, url, ratio in good:
        with counting(server) as found:
            alone.append(answer(server, text, url, ratio=ratio).choices[0].message.content)
        sizes.append(found)
    wrong = [(DEMO_QUESTION, url, None) for url in bad_urls().values()] + [(DEMO_QUESTION, good[0][1], 25)]
    rng = random.Random(0)
    plan = [rng.choices(("good", "wrong", "gone"), (93, 5, 2))[0] for _ in range(REQUESTS)]
    outcome, memory, before = Counter(), [], counted(server)

    async def run() -> None:
        client = openai.AsyncOpenAI(base_url=server.client.base_url, api_key="none", max_retries=0, timeout=120)
        left = iter(enumerate(plan))

        async def worker() -> None:
            for number, kind in left:
                if number in (REQUESTS // 2, REQUESTS - 1):
                    memory.append(server.memory())
                index = number % len(good)
                text, url, ratio = rng.choice(wrong) if kind == "wrong" else good[index]
                more = {"timeout": 0.02} if kind == "gone" else {}
                if (
                    kind == "gone"
                ):  # some of these are taken on, some are not: each counts as 664 and 664, or not at all
                    text, url, ratio = DEMO_QUESTION, demo, 1.0
                call = client.chat.completions.create(**asked(text, url, ratio=ratio), **more)
                try:
                    got = (await call).choices[0].message.content
                except openai.BadRequestError:
                    outcome[kind, "refused"] += 1
                except openai.APITimeoutError:
                    outcome[kind, "given up"] += 1
                else:
                    outcome[kind, "right" if got == alone[index] else "other"] += 1

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(run())
    assert sum(outcome.values()) == REQUESTS
    assert outcome["good", "right"] == plan.count("good"), outcome
    assert outcome["wrong", "refused"] == plan.count("wrong"), outcome
    for _ in range(60):  # what clients gave up ends a moment later
        if not server.metric("vllm:num_requests_running"):
            break
        time.sleep(0.5)
    assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    taken = [sizes[number % len(good)] for number, kind in enumerate(plan) if kind == "good"]
    expected = [sum(counts) for counts in zip(*taken, strict=True)]
    whole, short = (new - old - right for new, old, right in zip(counted(server), before, expected, strict=True))
    assert whole == short  # exact to the token, but for what was given up
    assert whole in range(0, 664 * plan.count("gone") + 1, 664)
    assert memory[-1] - memory[0] < 200 << 20, memory  # nothing grows with the number of requests
