"""A query engine over an agent's history beside a plain VectorStoreIndex: same embedder, same model, same questions.

``run.py FILE --home FOLDER`` records the runs in FILE (tau-bench's form, or another that ``rtm import`` reads), distils
an adapter, builds the two plain indexes, and asks every engine the same questions, in words that no training saw. What
is done is kept in FOLDER and not done again, so that a run that was stopped goes on; ``--only`` runs one stage. Rows go
to ``rows.jsonl``, figures to ``result.json``. ``--check`` computes the figures again from the rows.

Engines:

plain            VectorStoreIndex.from_documents over one document an episode, as_query_engine(), all defaults
plain_steps      the same over one node a step, with speaker and date, and as many tokens of them as the memory's engine
retrieval, tuned, both, routed   RagTunedQueryEngine with that route; routed: the memory decides
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from pydantic import PrivateAttr

from llama_index.memory.rag_tuned import RagTunedLLM, RagTunedQueryEngine
from rag_tuned_memory import Memory, Recipe, Route, Settings, Trajectory
from rag_tuned_memory.distil.facts import is_correct, normalise
from rag_tuned_memory.distil.gather import Selection, select
from rag_tuned_memory.distil.phrasing import is_abstention
from rag_tuned_memory.distil.recipe import Gate
from rag_tuned_memory.embedding import open_embedder
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.evaluation.questions import Question, questions_for
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, versions
from rag_tuned_memory.formats import IMPORTERS, detect_format
from rag_tuned_memory.learning.events import Event
from rag_tuned_memory.recall.passages import build_passages
from rag_tuned_memory.store import open_store

HERE = Path(__file__).parent
ROWS, RESULT = HERE / "rows.jsonl", HERE / "result.json"
NAMESPACE = "history"
RECIPE = Recipe(local_facts=1, gate=Gate(abstention=0.0))
"""Of each episode one fact. Declining is left to routing, where the gate would ask it of the adapter alone."""
ENGINES = ("plain", "plain_steps", "retrieval", "tuned", "both", "routed")
READING = ("plain", "plain_steps", "retrieval")
"""Those that show a model what was searched."""
KINDS = ("local", "global", "unknown")
NTH_RUN = re.compile(r", run \d+\b")
"""Tells runs of one task apart by their order, which no record says: such questions are left out, as nothing that reads
could answer them."""
UNKNOWN = 24
ANSWER_TOKENS, K, TOKEN_BUDGET = 32, 4, 320
OTHER_WORDS = {
    "CA": ("California",),
    "CO": ("Colorado",),
    "DC": ("District of Columbia",),
    "IN": ("Indiana",),
    "NY": ("New York",),
    "PA": ("Pennsylvania",),
    "TX": ("Texas",),
    "WA": ("Washington",),
    "success": ("successful", "successfully", "succeeded"),
    "failure": ("failed", "unsuccessful", "unsuccessfully", "not successful", "fail"),
}
"""Right as well: a model that reads the record words it as it likes."""
FAILED = (" not ", " un", " fail", " no ")
PLAIN_STEPS = 8
"""Nodes of one step that make about ``TOKEN_BUDGET`` tokens: twice the passages that the memory may show."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--home", type=Path, default=Path("build/llama_index_engine"), help="what is kept")
    parser.add_argument("--only", choices=["record", "distil", "index", "ask"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop asking after so many, to go on later")
    parser.add_argument("--check", action="store_true", help="compute the figures again from the rows and compare")
    given = parser.parse_args()
    if given.check:
        kept = json.loads(RESULT.read_text(encoding="utf-8"))
        assert {**kept, **figures(read_rows())} == kept, "the rows give other figures"
        print("the rows give the figures that are written")
        return
    settings = Settings(home=given.home)
    with Memory(NAMESPACE, settings=settings) as memory:
        stages: dict[str, Callable[[], None]] = {
            "record": lambda: record(memory, given.file),
            "distil": lambda: distil(memory),
            "index": lambda: index(memory, given.home),
            "ask": lambda: ask(memory, given.home, given.seconds),
        }
        for name, stage in stages.items():
            if given.only in (None, name):
                print(f"== {name}", flush=True)
                stage()


def record(memory: Memory, file: Path | None) -> None:
    if memory.stats().store.trajectories:
        return
    if file is None:
        raise SystemExit("nothing is recorded yet: name the file of runs")
    done: list[None] = []

    def tell(_: object) -> None:
        done.append(None)
        if len(done) % 20 == 0:
            print(len(done), "episodes", flush=True)

    memory.record_many(IMPORTERS[detect_format(file)](file, NAMESPACE), progress=tell)


def distil(memory: Memory) -> None:
    if memory.stats().serving is None:
        report = memory.distil(RECIPE, on_event=_tell)
        print(report.decision.summary)


def _tell(event: Event) -> None:
    if event.training is None or event.done % 50 == 0:
        print(event.stage, event.done, event.total, event.detail, flush=True)


class MemoryEmbedding(BaseEmbedding):
    """The memory's own embedder, for an index."""

    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(model_name=embedder.identity.model, embed_batch_size=64)
        self._embedder = embedder

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._made([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return [float(one) for one in (await self._embedder.embed([query], kind="query"))[0]]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._made([text], "passage")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._made(texts, "passage")

    def _made(self, texts: Sequence[str], kind: str) -> list[list[float]]:
        vectors = anyio.run(lambda: self._embedder.embed(texts, kind=kind))  # type: ignore[arg-type]
        return [[float(one) for one in vector] for vector in vectors]


def index(memory: Memory, home: Path) -> None:
    embedding = MemoryEmbedding(open_embedder(memory.settings))
    history = list(memory.export())
    if not (home / "plain").exists():
        documents = [Document(text=_rendered(one), id_=one.id) for one in history]
        _keep(VectorStoreIndex.from_documents(documents, embed_model=embedding, show_progress=True), home / "plain")
    if not (home / "plain_steps").exists():
        nodes: list[BaseNode] = [
            TextNode(text=passage.indexed, id_="/".join(map(str, passage.key)))
            for one in history
            for passage in build_passages(one)
        ]
        _keep(VectorStoreIndex(nodes, embed_model=embedding, show_progress=True), home / "plain_steps")


def _keep(made: VectorStoreIndex, folder: Path) -> None:
    whole = folder.with_suffix(".part")
    made.storage_context.persist(str(whole))
    whole.rename(folder)


def _rendered(episode: Trajectory) -> str:
    """An episode as a document: goal, outcome and every step, as the memory's passages word them."""
    return "\n".join(passage.indexed for passage in build_passages(episode) if passage.chunk == 0 or passage.step < 0)


def engines(memory: Memory, home: Path) -> dict[str, BaseQueryEngine]:
    embedding = MemoryEmbedding(open_embedder(memory.settings))
    base = RagTunedLLM(memory, model="base", max_tokens=ANSWER_TOKENS)
    found: dict[str, BaseQueryEngine] = {}
    for name, arguments in {"plain": {}, "plain_steps": {"similarity_top_k": PLAIN_STEPS}}.items():
        stored = StorageContext.from_defaults(persist_dir=str(home / name))
        loaded: Any = load_index_from_storage(stored, embed_model=embedding)
        found[name] = loaded.as_query_engine(llm=base, **arguments)
    routes: dict[str, Route | None] = {one.value: one for one in (Route.RETRIEVAL, Route.TUNED, Route.BOTH)}
    for name, route in {**routes, "routed": None}.items():
        found[name] = RagTunedQueryEngine(
            memory, route=route, k=K, token_budget=TOKEN_BUDGET, max_new_tokens=ANSWER_TOKENS
        )
    return found


def selected(memory: Memory) -> Selection:
    async def chosen() -> Selection:
        store = open_store(memory.settings.store_url)
        try:
            return await select(store, NAMESPACE, RECIPE)
        finally:
            await store.close()

    return anyio.run(chosen)


def asked(selection: Selection) -> list[Question]:
    found = questions_for(selection, limits={"unknown": UNKNOWN})
    return [one for one in found if one.kind in KINDS and not NTH_RUN.search(one.text)]


def shares_found(questions: Sequence[Question], selection: Selection, engines: dict[str, Any]) -> dict[str, float]:
    """Of the local questions, the share where a node of the right episode is among those that a model is shown."""
    right = {fact.id: set(fact.trajectory_ids) for fact in selection.facts}
    local = [one for one in questions if one.kind == "local"]
    shares = {}
    for name in READING:
        nodes = [engines[name].retrieve(QueryBundle(one.text)) for one in local]
        of = [{(node.node.ref_doc_id or node.node.node_id).split("/")[0] for node in found} for found in nodes]
        hits = [bool(ids & right[str(one.fact_id)]) for one, ids in zip(local, of, strict=True)]
        shares[name] = round(sum(hits) / len(hits), 3)
    return shares


def ask(memory: Memory, home: Path, seconds: float) -> None:
    get_dispatcher().add_event_handler(SPENT)
    selection, all_engines = selected(memory), engines(memory, home)
    questions = asked(selection)
    done = {(row["engine"], row["question"]) for row in read_rows()}
    left = [(name, one) for one in questions for name in ENGINES if (name, one.text) not in done]
    end = time.monotonic() + seconds
    with ROWS.open("a", encoding="utf-8") as rows:
        for number, (name, question) in enumerate(left):
            if time.monotonic() > end:
                print(f"{len(left) - number} answers are left: run it again")
                return
            rows.write(json.dumps(answer(name, all_engines[name], question), ensure_ascii=False) + "\n")
            rows.flush()
            if number % 10 == 0:
                print(f"{number}/{len(left)}", flush=True)
    found = figures(read_rows())
    found["share_found"] = shares_found(questions, selection, all_engines)
    found["stamp"] = stamp(memory, questions)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


class Spent(BaseEventHandler):
    """Counts the tokens of prompts that an index's engine gives its LLM."""

    prompt_tokens: int = 0

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Called by LlamaIndex."""
        if isinstance(event, LLMChatEndEvent) and event.response:
            self.prompt_tokens += event.response.raw["usage"]["prompt_tokens"]


SPENT = Spent()


def answer(name: str, engine: BaseQueryEngine, question: Question) -> dict[str, Any]:
    SPENT.prompt_tokens, started = 0, time.perf_counter()
    response = engine.query(question.text)
    seconds = time.perf_counter() - started
    told = response.metadata or {}
    return {
        "engine": name,
        "kind": question.kind,
        "question": question.text,
        "gold": question.gold,
        "answer": str(response),
        "abstained": bool(told.get("abstained")),
        "route": told.get("route"),
        "adapter": told.get("adapter"),
        "reason": told.get("reason"),
        "nodes": len(response.source_nodes),
        "prompt_tokens": told.get("prompt_tokens", SPENT.prompt_tokens),
        "seconds": round(seconds, 3),
    }


def is_right(row: dict[str, Any]) -> bool:
    """Whether an answer is right, also in other words than the memory's: "Texas" for TX, "it failed" for failure."""
    if row["kind"] == "unknown":
        return row["abstained"] or is_abstention(row["answer"])
    return not row["abstained"] and any(is_correct(row["answer"], gold) for gold in _golds(row))


def is_mentioned(row: dict[str, Any]) -> bool:
    """Whether the right answer occurs anywhere in what is said, however much that is."""
    said = f" {normalise(row['answer'])} "
    return any(f" {normalise(gold)} " in said for gold in _golds(row))


def _golds(row: dict[str, Any]) -> tuple[str, ...]:
    gold = row["gold"]
    if gold == "success" and any(word in f" {normalise(row['answer'])} " for word in FAILED):
        return ("success",)
    return (gold, *OTHER_WORDS.get(gold, ()))


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares by engine and kind, and the mean length of the prompts of an answer."""
    names = [name for name in ENGINES if any(row["engine"] == name for row in rows)]

    def shares(judge: Callable[[dict[str, Any]], bool], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        for name in names:
            for kind in kinds:
                verdicts = [judge(row) for row in rows if (row["engine"], row["kind"]) == (name, kind)]
                found[name][kind] = round(sum(verdicts) / len(verdicts), 3) if verdicts else 0.0
        return found

    return {
        "questions": {kind: len({row["question"] for row in rows if row["kind"] == kind}) for kind in KINDS},
        "share_right": shares(is_right, KINDS),
        "share_mentioned": shares(is_mentioned, KINDS[:2]),
        "mean_prompt_tokens": {
            name: round(statistics.mean(row["prompt_tokens"] for row in rows if row["engine"] == name))
            for name in names
        },
    }


def stamp(memory: Memory, questions: Sequence[Question]) -> dict[str, Any]:
    serving = memory.stats().serving
    manifest = memory.registry.get(serving) if serving else None
    return {
        "base_model": memory.settings.model,
        "embedder": open_embedder(memory.settings).identity.model_dump(mode="json"),
        "adapter": serving,
        "dataset_sha256": manifest.dataset_sha256 if manifest else None,
        "metrics": manifest.metrics if manifest else None,
        "data_sha256": hash_of(sorted(one.content_hash for one in memory.export())),
        "questions_sha256": hash_of(one.model_dump_json() for one in questions),
        "answer_tokens": ANSWER_TOKENS,
        "k": K,
        "token_budget": TOKEN_BUDGET,
        "code_sha256": code_hash(),
        "versions": {**versions(), "llama-index-core": version("llama-index-core")},
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
