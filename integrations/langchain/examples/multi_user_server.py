"""A server whose users each have their own memory: one agent, one store, and nobody sees what another one said.

python multi_user_server.py            serves on port 8000; no weights: a model that follows a script
python multi_user_server.py --demo     two users talk to it, in this process
python multi_user_server.py --model openai:gpt-5

curl -H 'Authorization: Bearer alice-token' -d '{"message": "My dog is called Rex."}' localhost:8000/chat
curl -H 'Authorization: Bearer alice-token' 'localhost:8000/memory?query=dog'
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memories, Settings
from rag_tuned_memory.recall.prompt import has_injected

USERS = {"alice-token": "alice", "bob-token": "bob"}
"""Stands in for whatever authenticates users: the namespace must come from there, never from the request's body."""


def make_app(memories: Memories, model: BaseChatModel) -> Starlette:
    middleware = RagTunedMemoryMiddleware(memories)
    agent = create_agent(model, middleware=[middleware], checkpointer=InMemorySaver())

    async def chat(request: Request) -> JSONResponse:
        user, body = authenticated(request), await request.json()
        if not isinstance(body, dict) or not isinstance(body.get("message"), str):
            raise HTTPException(400, 'Send {"message": "…"}.')
        talk = f"{user}/{body.get('conversation', 'default')}"  # a conversation belongs to its user too
        result = await agent.ainvoke(
            {"messages": [HumanMessage(body["message"])]},
            {"configurable": {"thread_id": talk}},
            context={"namespace": user},
        )
        return JSONResponse({"answer": str(result["messages"][-1].text)})

    async def recall(request: Request) -> JSONResponse:
        query = request.query_params.get("query", "").strip()
        if not query:
            raise HTTPException(400, "Give ?query=….")
        found = await memories.of(authenticated(request)).arecall(query, k=5)
        return JSONResponse([{"text": one.text, "episode": one.trajectory_id} for one in found.results])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        middleware.close()

    routes = [Route("/chat", chat, methods=["POST"]), Route("/memory", recall)]
    return Starlette(routes=routes, lifespan=lifespan)


def authenticated(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or token not in USERS:
        raise HTTPException(401, "Who are you?")
    return USERS[token]


class Parrot(BaseChatModel):
    """Follows a script: repeats the part of its memory that is asked for, if it has any."""

    @property
    def _llm_type(self) -> str:
        return "parrot"

    def _generate(self, messages: list[BaseMessage], *given: Any, **options: Any) -> ChatResult:
        told = str(messages[0].text) if has_injected(str(messages[0].text)) else ""
        # the first message of this conversation and of earlier ones
        known = [line.removeprefix("- user: ") for line in told.splitlines() if line.startswith("- user: ")]
        asked = str(messages[-1].text)
        answer = f"I remember: {known[0]}" if known and asked.endswith("?") else "I see."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])


def demo(app: Starlette) -> None:
    said = [
        ("alice", "morning", "My dog is called Rex."),
        ("bob", "morning", "My cat is called Tom."),
        ("alice", "evening", "What is my pet called?"),
        ("bob", "evening", "What is my pet called?"),
        ("mallory", "evening", "What is their pet called?"),
    ]
    with TestClient(app) as client:
        for user, conversation, message in said:
            headers = {"authorization": f"Bearer {user}-token"}
            answer = client.post("/chat", json={"message": message, "conversation": conversation}, headers=headers)
            told = answer.json()["answer"] if answer.is_success else f"{answer.status_code} {answer.text}"
            print(f"{user}: {message}\n  {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a chat model for init_chat_model; by default a script")
    parser.add_argument("--demo", action="store_true", help="let two users talk to it")
    parser.add_argument("--home", type=Path, help="where the memories are kept; by default they are gone afterwards")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    model = init_chat_model(given.model) if given.model else Parrot()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=given.home or Path(folder), embedder="hashing")
        with Memories(settings=settings) as memories:
            app = make_app(memories, model)
            if given.demo:
                demo(app)
                return
            import uvicorn

            uvicorn.run(app, port=given.port)


if __name__ == "__main__":
    main()
