"""One distillation run: select, read facts, compose, train, probe, judge, register, promote.

A run has a folder of its own. What is finished in it is not done again: when the process dies, the next run of the same
episodes and recipe goes on from the last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anyio
import anyio.to_thread

from rag_tuned_memory.adapters import AdapterRegistry, Draft, Learned, Manifest, TrainStats, Watermark, decide
from rag_tuned_memory.adapters.report import write_report
from rag_tuned_memory.distil.acting import demonstrated_runs
from rag_tuned_memory.distil.compose import Material, compose
from rag_tuned_memory.distil.dataset import Example, composition, write_dataset
from rag_tuned_memory.distil.dialogue import memory_messages
from rag_tuned_memory.distil.evaluate import evaluate
from rag_tuned_memory.distil.evaluation import Evaluation, TrainingCurvePoint
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.gather import Selection, recalled_contexts, select
from rag_tuned_memory.distil.learned import learned_facts, write_learned
from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.distil.lora import check_servable
from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.distil.phrasing import answer_text, questions
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.distil.replay import base_answers
from rag_tuned_memory.distil.teacher import Teacher, teacher_facts
from rag_tuned_memory.distil.train import Progress, Trained, train
from rag_tuned_memory.learning.events import DistilReport, Event, OnEvent, Stage
from rag_tuned_memory.models import in_own_thread
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.serving.base import Fingerprint, InferenceBackend, Message
from rag_tuned_memory.serving.compatibility import Server
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.trajectory import canonical_json

CANARIES = 6
_LIBRARIES = ("rag-tuned-memory", "torch", "transformers", "peft")
_KEPT = "adapter"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a run works with. ``base`` is the base model's folder, the one that ``backend`` serves."""

    recall: Recall
    backend: InferenceBackend
    base: Path
    registry: AdapterRegistry
    runs: Path
    teacher: Teacher | None = None
    serve_for: Sequence[Server] = ()
    max_lora_rank: int | None = None


async def run_distillation(
    *,
    namespace: str,
    recall: Recall,
    backend: InferenceBackend,
    base: Path,
    registry: AdapterRegistry,
    runs: Path,
    recipe: Recipe | None = None,
    teacher: Teacher | None = None,
    serve_for: Sequence[Server] = (),
    max_lora_rank: int | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    promote: bool = True,
) -> DistilReport:
    """Distil a namespace into a new adapter; it serves afterwards if the gate accepts it and ``promote`` says so.

    Model work runs in worker threads; recording and answering go on meanwhile. Cancelling it, or ``should_stop``,
    leaves a checkpoint. ``serve_for`` are the servers that the adapter is for, ``max_lora_rank`` is vLLM's.

    Raises:
        InvalidRecipe: one of these servers could not serve what the recipe asks for; nothing was done yet.
        DistilBusy: another run of this namespace is under way.
        NotEnoughEpisodes: nothing can be learnt from what is stored.
        TrainingStopped: ``should_stop`` said so; distil again to go on.
        TrainingDiverged: the loss became no number.
    """
    workshop = Workshop(
        recall, backend, base, registry, runs / namespace_slug(namespace), teacher, serve_for, max_lora_rank
    )
    with RunLock(runs, namespace):
        return await _Run(workshop, namespace, recipe or Recipe(), on_event, should_stop).run(promote=promote)


class _Run:
    """One run; methods in the order in which they happen."""

    def __init__(
        self,
        workshop: Workshop,
        namespace: str,
        recipe: Recipe,
        on_event: OnEvent | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.workshop, self.namespace, self.recipe = workshop, namespace, recipe
        self._on_event, self._should_stop = on_event, should_stop

    async def run(self, *, promote: bool) -> DistilReport:
        started = time.monotonic()
        await self._check_servable()
        selection, material, examples = await self._prepare()
        folder = self._folder(examples)
        dataset_sha = await anyio.to_thread.run_sync(write_dataset, folder / "dataset.jsonl", examples)
        trained = await self._train(examples, folder)
        fingerprint, evaluation = await self._measure(trained.folder, material, folder.name)
        draft = self._draft(selection, dataset_sha, trained, fingerprint, evaluation)
        manifest = await anyio.to_thread.run_sync(
            lambda: self._register(draft, folder, trained, evaluation, material.facts, examples)
        )
        promoted = promote and manifest.decision.accepted
        if promoted:
            await anyio.to_thread.run_sync(self.workshop.registry.promote, manifest.name, "accepted by the gate")
        shutil.rmtree(folder, ignore_errors=True)
        return DistilReport(
            manifest=manifest,
            decision=manifest.decision,
            evaluation=evaluation,
            promoted=promoted,
            report=self.workshop.registry.files_of(manifest.name) / "report.html",
            seconds=time.monotonic() - started,
            composition=composition(examples),
        )

    async def _check_servable(self) -> None:
        workshop = self.workshop
        await in_own_thread(
            lambda: check_servable(workshop.base, self.recipe, workshop.serve_for, max_lora_rank=workshop.max_lora_rank)
        )

    async def _prepare(self) -> tuple[Selection, Material, list[Example]]:
        workshop, recipe = self.workshop, self.recipe
        self._tell("select", 0, 0)
        selection = await select(workshop.recall.store, self.namespace, recipe)
        self._tell("select", 1, 1, f"{len(selection.episodes)} episodes, {len(selection.facts)} facts")
        facts = [*selection.facts, *await self._taught(selection)]
        contexts = await recalled_contexts(
            workshop.recall,
            self.namespace,
            facts,
            recipe,
            workshop.backend,
            on_progress=lambda done, total: self._tell("contexts", done, total),
        )
        replays = await base_answers(
            workshop.backend, "train", workshop.runs.parent, lambda done, total: self._tell("replay", done, total)
        )
        runs = await demonstrated_runs(
            selection.stored if recipe.mixture.acting else (),
            workshop.recall,
            workshop.backend,
            k=recipe.context_k,
            token_budget=recipe.context_tokens,
            on_progress=lambda done, total: self._tell("runs", done, total),
        )
        material = Material(selection.episodes, facts, contexts, replays, selection.known, runs)
        examples = await anyio.to_thread.run_sync(lambda: compose(material, recipe.mixture, seed=recipe.seed))
        self._tell("compose", 1, 1, f"{len(examples)} examples")
        return selection, material, examples

    async def _taught(self, selection: Selection) -> list[Fact]:
        teacher, count = self.workshop.teacher, self.recipe.teacher_questions
        if teacher is None or not count:
            return []
        facts: list[Fact] = []
        for done, stored in enumerate(selection.stored, start=1):
            facts += await teacher_facts(teacher, stored, count=count)
            self._tell("teach", done, len(selection.stored), f"{len(facts)} questions")
        return facts

    def _folder(self, examples: Sequence[Example]) -> Path:
        """The run's folder, named after what is trained; folders of other runs of this namespace are removed."""
        content = canonical_json(
            [
                self.workshop.backend.base_model,
                self.recipe.model_dump(mode="json"),
                [example.model_dump(mode="json") for example in examples],
            ]
        )
        name = hashlib.sha256(content).hexdigest()[:16]
        for other in self.workshop.runs.glob("*"):
            if other.is_dir() and other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        folder = self.workshop.runs / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def _train(self, examples: Sequence[Example], folder: Path) -> Trained:
        if (done := _finished(folder)) is not None:
            return done
        abandoned = threading.Event()

        def progress(step: Progress) -> None:
            self._tell("train", step.step, step.steps, training=step)

        def work() -> Trained:
            trained = train(
                self.workshop.base,
                examples,
                self.recipe,
                folder,
                on_progress=progress,
                should_stop=lambda: abandoned.is_set() or self._should_stop(),
            )
            _finish(folder, trained)
            return trained

        try:
            return await in_own_thread(work, abandon_on_cancel=True)
        finally:
            abandoned.set()  # a cancelled run's thread ends at its next step, with a checkpoint

    async def _measure(self, adapter: Path, material: Material, run: str) -> tuple[Fingerprint, Evaluation]:
        """Load the new adapter under a name of this run only, probe it, and let go of it."""
        backend, name = self.workshop.backend, f"{namespace_slug(self.namespace)}-run-{run}"
        if name not in await backend.adapters():
            await backend.load_adapter(name, adapter)
        try:
            self._tell("fingerprint", 0, 0)
            fingerprint = await make_fingerprint(backend, name, _canaries(material))
            held_out = await base_answers(backend, "held_out", self.workshop.runs.parent)
            evaluation = await evaluate(
                backend,
                name,
                material,
                held_out,
                fingerprint,
                seed=self.recipe.seed,
                on_progress=lambda done, total: self._tell("evaluate", done, total),
            )
        finally:
            with anyio.CancelScope(shield=True):
                await backend.unload_adapter(name)
        return fingerprint, evaluation

    def _draft(
        self,
        selection: Selection,
        dataset_sha: str,
        trained: Trained,
        fingerprint: Fingerprint,
        evaluation: Evaluation,
    ) -> Draft:
        stored = selection.stored
        times = [one.trajectory.time for one in stored if one.trajectory.time]
        serving = self.workshop.registry.serving(self.namespace)
        return Draft(
            base_model=self.workshop.base.name,
            base_revision=self.workshop.backend.base_model,
            recipe=self.recipe,
            dataset_sha256=dataset_sha,
            learned=tuple(Learned(trajectory_id=s.trajectory.id, content_hash=s.content_hash) for s in stored),
            watermark=Watermark(
                sequence=max(s.sequence for s in stored),
                time=max(times, default=None),
                recorded_at=max(s.recorded_at for s in stored),
            ),
            metrics=dict(evaluation.metrics),
            fingerprint=fingerprint,
            train=TrainStats(
                seconds=trained.seconds,
                tokens=trained.tokens,
                tokens_per_second=trained.tokens_per_second,
                peak_memory_bytes=trained.peak_memory_bytes,
            ),
            parent=serving.name if serving else None,
            versions=_versions(),
        )

    def _register(
        self,
        draft: Draft,
        folder: Path,
        trained: Trained,
        evaluation: Evaluation,
        facts: Sequence[Fact],
        examples: Sequence[Example],
    ) -> Manifest:
        registry = self.workshop.registry
        decision = decide(evaluation.metrics, self.recipe.gate)
        self._tell("gate", 1, 1, decision.summary)
        summary = {
            "facts": len(facts),
            "examples": len(examples),
            "left out (too long)": trained.left_out,
            "passed over (known by then, or too early)": trained.passed_over,
            **composition(examples),
        }
        adapter = trained.folder
        shutil.copy(folder / "dataset.jsonl", adapter / "dataset.jsonl")
        write_learned(adapter, learned_facts(facts, evaluation.rows))
        name = registry.next_name(self.namespace)
        write_report(adapter, draft, evaluation, decision, trained.curve, summary, namespace=self.namespace, name=name)
        manifest = registry.register(self.namespace, adapter, draft)
        registry.conclude(manifest.name)
        return manifest

    def _tell(self, stage: Stage, done: int, total: int, detail: str = "", training: Progress | None = None) -> None:
        if self._on_event:
            self._on_event(Event(stage, done, total, detail, training))


def _canaries(material: Material) -> Sequence[tuple[Sequence[Message], str]]:
    """Facts that the adapter learned, spread over all of them, as fingerprint prompts with their answers."""
    step = max(1, len(material.facts) // CANARIES)
    return [(memory_messages(questions(fact, "train")[0]), answer_text(fact)) for fact in material.facts[::step]][
        :CANARIES
    ]


def _finished(folder: Path) -> Trained | None:
    """What an earlier, interrupted process had trained to the end in this folder."""
    path = folder / "trained.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    curve = [TrainingCurvePoint.model_validate(point) for point in data.pop("curve")]
    return Trained(**{**data, "folder": folder / _KEPT, "curve": curve})


def _finish(folder: Path, trained: Trained) -> None:
    data = {**asdict(trained), "folder": None, "curve": [point.model_dump() for point in trained.curve]}
    temporary = folder / "trained.json.partial"
    temporary.write_text(json.dumps(data))
    temporary.replace(folder / "trained.json")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
