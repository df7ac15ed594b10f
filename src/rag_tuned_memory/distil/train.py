"""LoRA training with PEFT: packed rows, loss on answer tokens, checkpoints, exact resume.

Only hidden states that predict an answer token go through the output layer, whose vocabulary would else cost as much
as a fifth of the model (cut of the logits, as ``logits_to_keep`` does at inference).
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_tuned_memory.distil.curriculum import Curriculum, Item, asked_facts
from rag_tuned_memory.distil.dataset import Example
from rag_tuned_memory.distil.evaluation import TrainingCurvePoint
from rag_tuned_memory.distil.lora import lora_config
from rag_tuned_memory.distil.packing import Row, Tokenised
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.errors import InvalidRecipe, TrainingDiverged, TrainingStopped
from rag_tuned_memory.models import fastest_dtype, quiet_transformers
from rag_tuned_memory.serving.chat import encode, render

if TYPE_CHECKING:
    import torch

WARM_UP = 0.04
"""Share of the training."""
DECAY = 0.6
"""Share of the training, at its end, in which the learning rate falls to zero. Most facts are learnt while it falls. On
the demo's history (62,000 tokens, all layers): falling over the last half from 6e-4 recalled 0.93 of the local facts,
from the start from 1e-3 0.91, over the last 0.3 0.71, and as a square 0.50."""
BETAS = (0.9, 0.95)
"""Adam's averages. With the usual 0.999 the second one outlives a run of some hundred steps: the large gradients of its
beginning would slow its end."""
_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """After each optimiser step. ``loss`` is a running mean; ``steps`` (of all) and ``seconds_left`` are estimates.

    ``known`` facts count as learnt so far.
    """

    step: int
    steps: int
    tokens: int
    known: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(slots=True)
class Trained:
    """What a training run did.

    ``tokens`` are computed positions: a beginning that packed examples share counts once. ``example_tokens`` counts
    each example whole. ``left_out`` examples were too long, ``passed_over`` ones came when what they ask for was known
    already, or too early (see ``Curriculum``).
    ``peak_memory_bytes`` is of the whole process.
    """

    folder: Path
    tokens: int = 0
    example_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    left_out: int = 0
    passed_over: int = 0
    peak_memory_bytes: int = 0
    dtype: str = ""
    curve: list[TrainingCurvePoint] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Computed positions per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    base: Path,
    examples: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
) -> Trained:
    """Train an adapter on ``examples``, as ``Curriculum`` chooses, and save it in PEFT's form under ``folder/adapter``.

    Blocking: call it from a worker thread. Checkpoints go to ``folder/checkpoint.pt``; when one of the same base,
    recipe and examples is there, training goes on from it and ends with the same weights as an uninterrupted run.

    Raises:
        InvalidRecipe: no example fits into ``max_length``.
        TrainingDiverged: the loss is no number.
        TrainingStopped: ``should_stop`` said so; the state was saved.
    """
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(recipe.seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    items = _items(examples, AutoTokenizer.from_pretrained(base), recipe)
    mark = _mark(base, recipe, items)
    checkpoint = _checkpoint(folder / _CHECKPOINT, mark)
    # the same type as before the stop: what is fastest is measured, and may come out differently
    dtype = getattr(torch, checkpoint["done"]["dtype"]) if checkpoint else fastest_dtype(device)
    model = _lora_model(base, recipe, dtype, device)
    run = _Run(model, curriculum(items, recipe), recipe, folder, dtype, device, mark)
    trained = Trained(folder / "adapter", left_out=len(examples) - len(items), dtype=str(dtype).removeprefix("torch."))
    if checkpoint:
        run.resume(checkpoint, trained)
    for progress in run.steps(trained):
        if on_progress:
            on_progress(progress)
        if progress.step == progress.steps:
            continue
        if trained.steps % recipe.checkpoint_every == 0:
            run.save(trained)
        if should_stop():
            run.save(trained)
            raise TrainingStopped(
                f"training stopped at step {progress.step} of about {progress.steps}",
                place=str(folder),
                remedy="Distil again to go on from there.",
            )
    trained.peak_memory_bytes = peak_memory_bytes()
    _save_adapter(model, trained.folder, base.name)
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    return trained


def peak_memory_bytes() -> int:
    """The most memory that this process ever held (resident set)."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _lora_model(base: Path, recipe: Recipe, dtype: torch.dtype, device: str) -> Any:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)
    with quiet_transformers():
        wrapped = get_peft_model(model, lora_config(model, recipe), autocast_adapter_dtype=True)
    wrapped.train()
    return wrapped


def _save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """PEFT's two files, with the base model's name in place of its path on this machine, and no model card."""
    model.save_pretrained(folder, save_embedding_layers=False)  # they are not trained; "auto" would ask the hub
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model_name_or_path": base_name}, indent=2, sort_keys=True))
    (folder / "README.md").unlink(missing_ok=True)


def _items(examples: Sequence[Example], tokenizer: Any, recipe: Recipe) -> list[Item]:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end is None or end == tokenizer.unk_token_id:
        end = tokenizer.eos_token_id
    items = []
    for example in examples:
        tokens = Tokenised.of(render(tokenizer, example.prompt), encode(tokenizer, example.answer), end)
        most = recipe.max_acting_length if example.kind == "acting" else recipe.max_length
        if len(tokens.ids) <= most:
            fact = example.fact_id if example.context == "none" else None
            items.append(Item(tokens, fact, declines=example.kind == "unknown", group=example.group))
    if not items:
        raise InvalidRecipe(
            f"none of {len(examples)} examples fits into max_length {recipe.max_length}",
            place="recipe",
            remedy="Raise it; max_length in tokens must hold the longest prompt and its answer.",
        )
    return items


def curriculum(items: Sequence[Item], recipe: Recipe) -> Curriculum:
    """The items under the recipe's budget."""
    facts = len(asked_facts(items))
    wanted = recipe.base_tokens + recipe.tokens_per_fact * facts if facts else recipe.max_tokens
    budget = min(recipe.max_tokens, wanted + _group_tokens(items))
    return Curriculum(items, batch_tokens=recipe.batch_tokens, budget=budget, seed=recipe.seed)


def _group_tokens(items: Sequence[Item]) -> int:
    """Positions that the groups take: each one's items begin alike."""
    longest: dict[str, int] = {}
    for item in items:
        if item.group is not None:
            longest[item.group] = max(longest.get(item.group, 0), len(item.tokens.ids))
    return sum(longest.values())


def _mark(base: Path, recipe: Recipe, items: Sequence[Item]) -> str:
    """A hash of what is trained: a checkpoint of anything else is not gone on from."""
    trained = repr([base.name, recipe.model_dump(mode="json"), items])
    return hashlib.sha256(trained.encode()).hexdigest()


def _checkpoint(path: Path, mark: str) -> dict[str, Any] | None:
    """What ``_Run.save`` wrote, if it is of this very run."""
    import torch

    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):  # none, or one that a crash damaged: begin anew
        return None
    return saved if saved.get("mark") == mark else None


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: Any,
        course: Curriculum,
        recipe: Recipe,
        folder: Path,
        dtype: torch.dtype,
        device: str,
        mark: str,
    ) -> None:
        import torch

        self.model, self.course, self.recipe, self.folder = model, course, recipe, folder
        self.dtype, self.device = dtype, device
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )
        self.parameters = parameters
        self._mark = mark

    def steps(self, trained: Trained) -> Iterator[Progress]:
        running = trained.curve[-1].loss if trained.curve else 0.0
        course = self.course
        while True:
            start, before = time.perf_counter(), course.progress
            if (row := course.next_row()) is None:
                return
            losses = self._step(row, _schedule(before, course.progress))
            loss = sum(losses) / len(losses)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss is {loss} at step {trained.steps + 1}", remedy="Lower recipe.learning_rate."
                )
            course.learnt(row, losses)
            seconds = time.perf_counter() - start
            trained.steps += 1
            trained.seconds += seconds
            trained.tokens, trained.example_tokens = course.spent, course.example_tokens
            trained.passed_over = course.passed_over
            running = loss if not running else 0.9 * running + 0.1 * loss
            trained.curve.append(
                TrainingCurvePoint(
                    step=trained.steps, tokens=trained.tokens, loss=loss, tokens_per_second=len(row.ids) / seconds
                )
            )
            yield self._progress(trained, running)

    def _progress(self, trained: Trained, running: float) -> Progress:
        done = self.course.progress
        return Progress(
            trained.steps,
            trained.steps if done == 1 else max(trained.steps + 1, round(trained.steps / done)),
            trained.tokens,
            self.course.known,
            running,
            trained.tokens_per_second,
            trained.seconds * (1 - done) / done,
        )

    def _step(self, row: Row, rate: float) -> list[float]:
        """One optimiser step at ``rate`` times the learning rate; the loss of each target."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not torch.float32):
            losses = self._losses(row)
        (losses * _weights(row).to(self.device)).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        found: list[float] = losses.detach().tolist()
        return found

    def _losses(self, row: Row) -> torch.Tensor:
        import torch

        ids, positions, mask, predictors, targets = _tensors(row, self.dtype)
        language_model = self.model.base_model.model
        hidden = language_model.model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
        ).last_hidden_state
        logits = language_model.lm_head(hidden[0, predictors.to(self.device)])
        return torch.nn.functional.cross_entropy(logits.float(), targets.to(self.device), reduction="none")

    def save(self, trained: Trained) -> None:
        """Write a checkpoint beside the last one, then take its place."""
        import torch
        from peft import get_peft_model_state_dict

        state = {
            "mark": self._mark,
            "adapter": get_peft_model_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "random": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
            "course": self.course.state(),
            "done": {**asdict(trained), "folder": None, "curve": [point.model_dump() for point in trained.curve]},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"{_CHECKPOINT}.new"
        torch.save(state, new)
        new.replace(self.folder / _CHECKPOINT)

    def resume(self, checkpoint: dict[str, Any], trained: Trained) -> None:
        """Go on from a checkpoint."""
        import torch
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, checkpoint["adapter"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["random"][0])
        if self.device != "cpu":
            torch.cuda.set_rng_state_all(checkpoint["random"][1:])
        self.course.resume(checkpoint["course"])
        done = checkpoint["done"]
        trained.seconds, trained.steps = done["seconds"], done["steps"]
        trained.curve = [TrainingCurvePoint.model_validate(point) for point in done["curve"]]


def _schedule(before: float, after: float) -> float:
    """Warm up, stay, then fall to zero in a straight line; arguments are the progress before and after the step."""
    return min(after / WARM_UP, (1 - before) / DECAY, 1.0)


def _weights(row: Row) -> torch.Tensor:
    """Of each target: all examples of a row count the same, whatever the length of their answers.

    Else one long general answer would outweigh the facts beside it, and "I have no memory of" the word that decides: on
    the demo's history, 0.84 of the local facts were recalled with equal weights of tokens, 0.98 with these.
    """
    import torch

    lengths = [end - start for start, end in zip([0, *row.ends], row.ends, strict=False)]
    return torch.tensor([1 / length for length in lengths for _ in range(length)]) / len(lengths)


def _tensors(row: Row, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """``(ids, positions, mask, predictors, targets)``; the mask, ``(1, 1, n, n)``, is added to scores."""
    import torch

    visible = torch.from_numpy(row.visible())
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return (
        torch.tensor([row.ids]),
        torch.tensor([row.depths]),
        mask[None, None],
        torch.tensor(row.predictors),
        torch.tensor(row.targets),
    )
