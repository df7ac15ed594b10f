from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rag_tuned_memory.distil.checked import CheckedModel
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.distil.recipe import Gate, LoraRecipe, Mixture, Recipe
from rag_tuned_memory.errors import InvalidRecipe


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Recipe, {"learning_rate": 0}, r"recipe: learning_rate: .*greater than 0"),
        (Recipe, {"learning_rate": float("nan")}, "learning_rate: .*finite"),
        (Recipe, {"learning_rate": float("inf")}, "learning_rate: .*finite"),
        (Recipe, {"learnig_rate": 1}, "learnig_rate: Extra inputs"),
        (Recipe, {"context_tokens": 400, "max_length": 300}, "recipe: context_tokens 400 leaves no room in max_length"),
        (Recipe, {"seed": "x", "max_tokens": 0}, "seed: .*; max_tokens: "),
        (Recipe, {"mixture": {"exposures": 0}}, r"recipe: mixture\.exposures: "),
        (Recipe, {"gate": {"local_recall": 85}}, r"gate\.local_recall: "),
        (Recipe, {"gate": "strict"}, "gate: "),
        (Recipe, {"lora": {"rank": 0}}, r"lora\.rank: "),
        (Mixture, {"unknown": 1.5}, "unknown: "),
        (Gate, {"perplexity_ratio": 0.5}, "perplexity_ratio: "),
        (LoraRecipe, {"dropout": 1}, "dropout: "),
        (DistilPolicy, {"every_n": 0}, "distillation policy: every_n: "),
    ],
)
def test_what_cannot_be_is_named(kind: type[CheckedModel], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        kind(**values)


def test_inside_other_models_it_is_a_validation_error_that_names_the_field() -> None:
    class Holder(BaseModel):
        recipe: Recipe

    for make in (
        lambda: Holder.model_validate({"recipe": {"mixture": {"exposures": 0}}}),
        lambda: Recipe.model_validate_json('{"mixture": {"exposures": 0}}'),
    ):
        with pytest.raises(ValidationError, match="exposures"):
            make()


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(seed=3, mixture={"exposures": 2.5}, gate=Gate(abstention=0.5), lora=LoraRecipe(rank=4))
    assert recipe.mixture == Mixture(exposures=2.5)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError):
        recipe.seed = 4  # type: ignore[misc]
