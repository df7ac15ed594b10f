"""Training on the tiny model: real gradients, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.distil import curriculum
from rag_tuned_memory.distil import train as training
from rag_tuned_memory.distil.dataset import Example
from rag_tuned_memory.distil.dialogue import memory_messages
from rag_tuned_memory.distil.packing import Row
from rag_tuned_memory.distil.recipe import LoraRecipe, Recipe
from rag_tuned_memory.distil.train import Progress, train
from rag_tuned_memory.errors import InvalidRecipe, TrainingDiverged, TrainingStopped

CAUSES = ["full disk", "memory leak", "bad release", "stale cache"]
EXAMPLES = [
    Example.make(memory_messages(f"What caused INC-{n % 24}?"), CAUSES[n % 4], "local", fact_id=f"f{n % 24}")
    for n in range(96)
]
ATTENTION, FEED_FORWARD = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
RECIPE = Recipe(
    lora=LoraRecipe(rank=4, alpha=8, layers="all"),
    learning_rate=5e-3,
    batch_tokens=100,
    max_length=200,
    checkpoint_every=3,
)


@pytest.fixture(autouse=True)
def _one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which type is fastest is measured, and may change from run to run."""
    import torch

    monkeypatch.setattr(training, "fastest_dtype", lambda device: torch.float32)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)


def stop_after(steps: int) -> tuple[Callable[[Progress], None], Callable[[], bool]]:
    seen: list[int] = []
    return (lambda progress: seen.append(progress.step)), (lambda: len(seen) >= steps)


def test_the_loss_falls_and_progress_is_told(tiny_model: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    trained = train(tiny_model, EXAMPLES, RECIPE, tmp_path, on_progress=told.append)
    assert len(told) == trained.steps == len(trained.curve) > 8
    assert trained.curve[-1].loss < 0.5 * trained.curve[0].loss
    assert [progress.step for progress in told] == list(range(1, trained.steps + 1))
    assert told[-1].steps == trained.steps
    assert told[-1].tokens == trained.tokens == trained.curve[-1].tokens
    assert told[-1].seconds_left == 0
    assert trained.tokens < trained.example_tokens  # beginnings are shared
    assert trained.tokens_per_second > 0
    assert trained.peak_memory_bytes > 50_000_000
    assert trained.left_out == 0
    assert not list(tmp_path.glob("checkpoint*"))


def test_the_files_are_peft_s_and_name_no_path_of_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    folder = train(tiny_model, EXAMPLES[:8], RECIPE, tmp_path).folder
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["base_model_name_or_path"] == tiny_model.name
    assert set(config["target_modules"]) == ATTENTION | FEED_FORWARD
    for path in folder.iterdir():
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data
        assert str(tiny_model.parent).encode() not in data
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    assert {name.replace(".default", "") for name, _ in loaded.named_parameters() if "lora_" in name} == set(
        weights(folder)
    )


def test_by_default_only_feed_forward_layers_are_adapted(tiny_model: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"lora": LoraRecipe(rank=4)})
    folder = train(tiny_model, EXAMPLES[:8], recipe, tmp_path).folder
    assert set(json.loads((folder / "adapter_config.json").read_text())["target_modules"]) == FEED_FORWARD


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stops", [[1], [4], [2, 5]])
def test_a_resumed_run_ends_with_the_same_weights(
    tiny_model: Path, tmp_path: Path, stops: list[int], dropout: float
) -> None:
    recipe = RECIPE.model_copy(update={"lora": LoraRecipe(rank=4, alpha=8, layers="all", dropout=dropout)})
    whole = train(tiny_model, EXAMPLES, recipe, tmp_path / "whole")
    done = 0
    for steps in stops:
        on_progress, should_stop = stop_after(steps)
        with pytest.raises(TrainingStopped, match=f"stopped at step {done + steps} of about"):
            train(tiny_model, EXAMPLES, recipe, tmp_path / "parts", on_progress=on_progress, should_stop=should_stop)
        done += steps
        assert not (tmp_path / "parts" / "adapter").exists()
    told: list[Progress] = []
    resumed = train(tiny_model, EXAMPLES, recipe, tmp_path / "parts", on_progress=told.append)
    assert told[0].step == done + 1
    assert equal(resumed.folder, whole.folder)
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)
    assert [point.loss for point in resumed.curve] == [point.loss for point in whole.curve]


class Killed(BaseException):
    """Stands for a process that dies."""


def test_a_run_that_died_goes_on_from_its_last_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_model, EXAMPLES, RECIPE, tmp_path / "died", on_progress=die)
    told: list[Progress] = []
    resumed = train(tiny_model, EXAMPLES, RECIPE, tmp_path / "died", on_progress=told.append)
    assert told[0].step == 4  # a checkpoint after every third step
    assert equal(resumed.folder, train(tiny_model, EXAMPLES, RECIPE, tmp_path / "whole").folder)


@pytest.mark.parametrize("change", ["recipe", "examples", "damage"])
def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_gone_on_from(
    tiny_model: Path, tmp_path: Path, change: str
) -> None:
    on_progress, should_stop = stop_after(3)
    with pytest.raises(TrainingStopped):
        train(tiny_model, EXAMPLES, RECIPE, tmp_path, on_progress=on_progress, should_stop=should_stop)
    recipe, examples = RECIPE, EXAMPLES
    if change == "recipe":
        recipe = RECIPE.model_copy(update={"seed": 1})
    elif change == "examples":  # as many, and as many tokens
        examples = [*EXAMPLES[1:], EXAMPLES[0]]
    else:
        data = (tmp_path / "checkpoint.pt").read_bytes()
        (tmp_path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    told: list[Progress] = []
    train(tiny_model, examples, recipe, tmp_path, on_progress=told.append)
    assert told[0].step == 1


def test_a_stop_before_the_end_only(tiny_model: Path, tmp_path: Path) -> None:
    few = EXAMPLES[:4]
    assert train(tiny_model, few, RECIPE, tmp_path, should_stop=lambda: True).steps == 1


def test_a_loss_that_is_no_number_ends_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training._Run._losses
    calls: list[int] = []

    def poisoned(self: Any, row: Any) -> Any:
        calls.append(1)
        return real(self, row) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(training._Run, "_losses", poisoned)
    with pytest.raises(TrainingDiverged, match=r"nan at step 3.*Lower recipe\.learning_rate"):
        train(tiny_model, EXAMPLES, RECIPE, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_an_absurd_learning_rate_diverges(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged):
        train(tiny_model, EXAMPLES, RECIPE.model_copy(update={"learning_rate": 1e30}), tmp_path)


def test_what_is_too_long_is_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    long = Example.make(memory_messages("word " * 400), "full disk", "local")
    with_long = [long, *EXAMPLES[:4], long, *EXAMPLES[4:8]]
    trained = train(tiny_model, with_long, RECIPE, tmp_path / "long")
    assert trained.left_out == 2
    assert equal(trained.folder, train(tiny_model, EXAMPLES[:8], RECIPE, tmp_path / "plain").folder)


def test_training_ends_at_the_token_limit(tiny_model: Path, tmp_path: Path) -> None:
    limited = RECIPE.model_copy(update={"max_tokens": 300})
    trained = train(tiny_model, EXAMPLES, limited, tmp_path)
    assert 300 <= trained.tokens < 300 + RECIPE.batch_tokens
    assert trained.tokens < trained.example_tokens


def test_tokens_are_counted_by_facts(tiny_model: Path, tmp_path: Path) -> None:
    sparing = RECIPE.model_copy(update={"base_tokens": 0, "tokens_per_fact": 20})
    trained = train(tiny_model, EXAMPLES, sparing, tmp_path)
    assert 24 * 20 <= trained.tokens < 24 * 20 + RECIPE.batch_tokens


def test_what_is_known_is_passed_over(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum, "KNOWN", 7.0)  # the tiny model never gets far
    told: list[Progress] = []
    one = [
        Example.make(memory_messages(f"Question {n}: what caused it?"), "full disk", "local", fact_id="one")
        for n in range(200)
    ]
    recipe = RECIPE.model_copy(update={"tokens_per_fact": 20_000})
    trained = train(tiny_model, one, recipe, tmp_path, on_progress=told.append)
    assert told[0].known == 0
    assert told[-1].known == 1
    assert trained.passed_over > 50


@pytest.mark.parametrize("examples", [[], [Example.make(memory_messages("word " * 400), "x", "local")]])
def test_nothing_to_train_on_makes_no_adapter(tiny_model: Path, tmp_path: Path, examples: list[Example]) -> None:
    with pytest.raises(InvalidRecipe, match="max_length 200"):
        train(tiny_model, examples, RECIPE, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_long_answers_weigh_no_more_than_short_ones() -> None:
    row = Row(ends=[1, 5])
    assert training._weights(row).tolist() == [0.5, 0.125, 0.125, 0.125, 0.125]


def test_packed_examples_are_learnt_as_if_each_were_alone(tiny_model: Path) -> None:
    """The loss of one row against the mean over the model run on each example by itself, without packing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    examples = [*EXAMPLES[:5], Example.make(memory_messages("Why?", "some context"), "bad release, we think", "local")]
    recipe = RECIPE.model_copy(update={"batch_tokens": 10_000})
    course = training.curriculum(training._items(examples, tokenizer, recipe), recipe)
    row = course.next_row()
    assert row is not None
    assert course.next_row() is None
    run = training._Run(
        training._lora_model(tiny_model, RECIPE, torch.float32, "cpu"),
        *(course, RECIPE, Path(), torch.float32, "cpu", ""),
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    losses: list[float] = []
    for example in examples:
        prompt = training.render(tokenizer, example.prompt)
        answer = [*training.encode(tokenizer, example.answer), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    with torch.no_grad():
        assert run._losses(row).tolist() == pytest.approx(losses, rel=1e-3, abs=1e-4)
