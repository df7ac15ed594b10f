from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from rag_tuned_memory.embedding import HashingEmbedder, SentenceEmbedder, open_embedder
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.errors import InvalidInput, ModelError, ModelNotPulled
from rag_tuned_memory.settings import Settings

pytestmark = pytest.mark.anyio

TEXTS = ["The disk is full.", "No space left on device", "", "Käse 🧀", "word " * 400, "The disk is full."]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised BERT with a tokenizer of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


@pytest.fixture(params=["hashing", "sentence"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    if request.param == "hashing":
        return HashingEmbedder()
    return SentenceEmbedder(request.getfixturevalue("tiny_bert"), batch_size=2)


async def test_vectors_are_unit_length_in_the_order_of_the_texts(embedder: Embedder) -> None:
    vectors = await embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.identity.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = await embedder.embed([text], kind="query")
        np.testing.assert_allclose(alone[0], vector, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-5)
    assert vectors[0] @ vectors[3] < 0.999


async def test_nothing_gives_nothing(embedder: Embedder) -> None:
    assert (await embedder.embed([])).shape == (0, embedder.identity.dimension)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "\ud800"], "text 1 is not valid UTF-8 at character 0"),
        (["a", None], "text 1 is of type NoneType"),
        ("abc", "expected a list of texts"),
    ],
)
async def test_what_is_no_text_is_refused(embedder: Embedder, texts: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await embedder.embed(texts)


async def test_progress_ends_with_all(embedder: HashingEmbedder | SentenceEmbedder) -> None:
    seen: list[tuple[int, int]] = []
    await embedder.embed(TEXTS, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    assert seen == sorted(seen)


async def test_many_tasks_at_once_get_their_own_vectors(embedder: Embedder) -> None:
    texts = [f"text number {index} " * (1 + index % 7) for index in range(24)]
    expected = await embedder.embed(texts)
    found: dict[int, np.ndarray] = {}

    async def one(index: int) -> None:
        found[index] = (await embedder.embed([texts[index]]))[0]

    async with anyio.create_task_group() as group:
        for index in range(len(texts)):
            group.start_soon(one, index)
    np.testing.assert_allclose(np.stack([found[index] for index in range(len(texts))]), expected, atol=1e-5)


async def test_the_event_loop_runs_while_texts_are_embedded(tiny_bert: Path) -> None:
    embedder = SentenceEmbedder(tiny_bert, batch_size=4)
    await embedder.embed(["load"])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.lowlevel.checkpoint()
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await embedder.embed(["word " * 200] * 40)
        group.cancel_scope.cancel()
    assert ticks > 40


async def test_a_cancelled_import_stops_between_batches(tiny_bert: Path) -> None:
    embedder = SentenceEmbedder(tiny_bert, batch_size=1)
    seen: list[int] = []
    with anyio.CancelScope() as scope:

        def progress(done: int, total: int) -> None:
            seen.append(done)
            if done == 3:
                scope.cancel()

        await embedder.embed(["a"] * 100, on_progress=progress)
    assert scope.cancelled_caught
    assert seen[-1] <= 4


async def test_the_mean_leaves_out_padding_and_the_identity_needs_no_model(tiny_bert: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    embedder = SentenceEmbedder(tiny_bert)
    assert (embedder.identity.model, embedder.identity.dimension) == ("tiny-bert", 16)
    assert len(embedder.identity.revision) == 64
    assert embedder._loaded is None
    short, _ = await embedder.embed(["abc", "abc def ghi jkl"])
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        states = model(**tokenizer(["abc"], return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(0)
    np.testing.assert_allclose(short, (mean / mean.norm()).numpy(), atol=1e-5)


async def test_hashing_is_the_same_everywhere_and_finds_shared_words() -> None:
    script = (
        "import anyio, json; from rag_tuned_memory.embedding import HashingEmbedder\n"
        "print(json.dumps(anyio.run(HashingEmbedder(8).embed, ['invoice 4711 timed out']).tolist()[0]))"
    )
    other = await anyio.run_process([sys.executable, "-c", script], env={"PYTHONHASHSEED": "7"})
    here = await HashingEmbedder(8).embed(["invoice 4711 timed out"])
    np.testing.assert_array_equal(here[0], np.array(json.loads(other.stdout), dtype=np.float32))

    query, right, near, wrong = await HashingEmbedder().embed(
        ["invoice timeout", "the invoice 4711 had a timeout", "invoices timed out", "a girl carries a baby"]
    )
    assert query @ right > query @ near > query @ wrong


async def test_open_embedder(tmp_path: Path, tiny_bert: Path) -> None:
    hashing = open_embedder(Settings(embedder="hashing"))
    assert hashing.identity.model == "hashing"
    assert open_embedder(Settings(embedder=str(tiny_bert))).identity.model == "tiny-bert"
    with pytest.raises(ModelNotPulled, match="Run: rtm pull all-MiniLM-L6-v2"):
        open_embedder(Settings(cache=tmp_path))
    with pytest.raises(ModelError, match="no model is named 'nope'"):
        open_embedder(Settings(embedder="nope", cache=tmp_path))


async def test_bad_arguments_and_bad_folders(tmp_path: Path, tiny_bert: Path) -> None:
    for make in (
        lambda: HashingEmbedder(0),
        lambda: SentenceEmbedder(tiny_bert, batch_size=0),
        lambda: SentenceEmbedder(tiny_bert, batch_characters=0),
    ):
        with pytest.raises(InvalidInput, match="must be 1 or more"):
            make()
    with pytest.raises(ModelNotPulled):
        await SentenceEmbedder(tmp_path).embed(["a"])
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be loaded"):
        await SentenceEmbedder(tmp_path).embed(["a"])


def test_opening_imports_neither_torch_nor_transformers(tiny_bert: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from rag_tuned_memory.embedding import open_embedder; from rag_tuned_memory.settings import Settings\n"
        "open_embedder(Settings(embedder=sys.argv[1])).identity\n"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tiny_bert)], check=False).returncode == 0


@pytest.mark.slow
async def test_minilm_knows_what_is_alike(models_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder = open_embedder(Settings(cache=models_cache))
        eats, bread, baby = await embedder.embed(
            ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
        )
        # The figure that sentence-transformers' documentation gives for this model and these sentences.
        assert float(eats @ bread) == pytest.approx(0.7553, abs=1e-3)
        assert float(eats @ baby) < 0.1
        full, same, other = await embedder.embed(
            ["The server ran out of disk space", "no room left on the volume", "the customer wants a refund"]
        )
    assert full @ same > 0.4 > 0.2 > full @ other
    assert embedder.identity.dimension == 384
    assert capfd.readouterr() == ("", "")
