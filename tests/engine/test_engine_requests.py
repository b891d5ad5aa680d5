"""Requests with names of ours that nothing reads, and what vLLM's server makes of the refusal. No engine runs."""

from types import SimpleNamespace

import engines
import pytest

from globalcom2.integrations.vllm.middleware import RefuseWrongNames

assert engines  # skips the file where vLLM is not installed
fastapi = pytest.importorskip("fastapi")
KEY = "secret"


@pytest.fixture(scope="module")
def client():
    """A server with vLLM's own handlers and key, whose one path reads the body as vLLM's paths do."""
    from fastapi.testclient import TestClient
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    app = fastapi.FastAPI()
    app.state.args = SimpleNamespace(log_error_stack=False)

    @app.post("/v1/chat/completions")
    async def complete(request: ChatCompletionRequest):
        return {"said": request.messages[-1]["content"]}

    init_exception_handler(app)
    app.add_middleware(AuthenticationMiddleware, tokens=[KEY])
    app.add_middleware(RefuseWrongNames)  # after the key's, as vLLM does it: outside of it
    return TestClient(app, raise_server_exceptions=False)


def posted(client, key=KEY, **more):
    body = {"model": "mini", "messages": [{"role": "user", "content": "How much is it?"}], **more}
    return client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})


def test_a_plain_request_passes(client):
    for more in ({}, {"mm_processor_kwargs": {"globalcom2_retention": 0.25}}, {"user": "globalcom2"}):
        answer = posted(client, **more)
        assert (answer.status_code, answer.json()) == (200, {"said": "How much is it?"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"globalcom2_retention": 0.1}, "globalcom2_retention belongs into mm_processor_kwargs"),
        ({"mm_processor_kwargs": {"retention": 0.1}}, "Did you mean 'globalcom2_retention'?"),
        ({"mm_processor_kwargs": {"globalcom2_retention": 25}}, "Did you mean 0.25?"),  # and no image in sight
        ({"mm_processor_kwargs": {"globalcom2_retention": 10**400}}, "globalcom2_retention must be in (0, 1]"),
        ({"extra_body": {"globalcom2_retention": 0.1}}, "which only OpenAI's client unpacks"),
    ],
)
def test_a_400_in_the_form_of_all_errors(client, more, message):
    answer = posted(client, **more)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, 400, "Bad Request")
    assert message in error["message"]


def test_a_stranger_hears_of_the_key_alone(client):
    assert posted(client, key="guess", globalcom2_retention=0.1).status_code == 401
