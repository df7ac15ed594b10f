import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rag_tuned_memory.adapters.manifest import Draft, Learned, Manifest, parse_name
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State
from rag_tuned_memory.errors import (
    AdapterDamaged,
    AdapterError,
    AdapterNotFound,
    AdapterNotServable,
    IllegalTransition,
    InvalidInput,
    InvalidNamespace,
    StoreFull,
)

MakeDraft = Callable[..., Draft]
Accepted = Callable[..., str]


def learned(*ids: str) -> tuple[Learned, ...]:
    return tuple(Learned(trajectory_id=one, content_hash=f"hash of {one}") for one in ids)


# Registration


def test_register_copies_everything_and_names_it(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    assert registry.next_name("alice") == "alice-v1"
    manifest = registry.register("alice", run, draft())
    assert (manifest.name, manifest.namespace, manifest.version) == ("alice-v1", "alice", 1)
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json", "extra/dataset.jsonl"}
    assert manifest.decision.accepted
    folder = registry.path("alice-v1")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"
    assert json.loads((folder / "manifest.json").read_text())["learned"][1]["trajectory_id"] == "t2"
    (line,) = (folder / "state.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"old": "training", "new": "candidate", "actor": "tester"}.items()
    assert registry.get("alice-v1") == manifest
    assert registry.state("alice-v1") is State.CANDIDATE
    assert registry.next_name("alice") == "alice-v2"
    assert run.is_dir()
    assert sorted(path.name for path in registry.folder.iterdir()) == [".lock", ".staging", "alice-v1"]
    assert list((registry.folder / ".staging").iterdir()) == []


def test_versions_count_past_nine(accepted: Accepted, registry: AdapterRegistry) -> None:
    names = [accepted() for _ in range(11)]
    assert [manifest.name for manifest in registry.list("alice")] == names == [f"alice-v{n}" for n in range(1, 12)]
    newest = registry.newest("alice")
    assert newest is not None
    assert newest.name == "alice-v11"


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_unfinished_run_is_refused(registry: AdapterRegistry, run: Path, draft: MakeDraft, missing: str) -> None:
    (run / missing).unlink()
    with pytest.raises(InvalidInput, match=rf"{missing} is missing.*save_pretrained"):
        registry.register("alice", run, draft())
    assert registry.list() == []


def test_a_registered_folder_is_not_registered_again(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    registry.register("alice", run, draft())
    with pytest.raises(InvalidInput, match=r"manifest\.json is written by the registry"):
        registry.register("alice", registry.path("alice-v1"), draft())


def test_a_parent_must_be_of_the_same_namespace(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    registry.register("alice", run, draft())
    assert registry.register("alice", run, draft(parent="alice-v1")).parent == "alice-v1"
    with pytest.raises(AdapterNotFound, match="alice-v1 in namespace 'bob'"):
        registry.register("bob", run, draft(parent="alice-v1"))


def test_bad_namespaces_and_names(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    with pytest.raises(InvalidNamespace):
        registry.register("", run, draft())
    for name in ["../run", "alice", "alice-v0", "alice-v01", "Alice-v1", "alice-v1/..", "alice-v1\n", ""]:
        with pytest.raises(AdapterNotFound, match="no adapter's name"):
            registry.get(name)
    with pytest.raises(AdapterNotFound, match="rtm adapters list"):
        registry.get("alice-v1")
    assert registry.serving("alice") is None
    assert registry.list() == []
    assert not registry.folder.exists()


def test_metrics_without_a_number_are_kept_as_none_and_rejected(
    registry: AdapterRegistry, run: Path, draft: MakeDraft
) -> None:
    manifest = registry.register("alice", run, draft(metrics={"local_recall": float("nan")}))
    assert registry.get(manifest.name).metrics == {"local_recall": None}
    assert registry.conclude(manifest.name) is State.REJECTED


def test_a_manifest_survives_json(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    manifest = registry.register("Zoë/Prod", run, draft())
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert parse_name(manifest.name)[1] == 1
    assert registry.get(manifest.name).namespace == "Zoë/Prod"


# States


def test_the_way_to_serving_and_its_log(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    registry.promote(name, "first one")
    serving = registry.serving("alice")
    assert serving is not None
    assert serving.name == name
    log = registry.history(name)
    assert [(line.old.value, line.new.value) for line in log] == [
        ("training", "candidate"),
        ("candidate", "accepted"),
        ("accepted", "serving"),
    ]
    assert [line.sequence for line in log] == [1, 2, 3]
    assert log[1].reason == "The gate accepted it: all 8 thresholds are met."
    assert (log[2].reason, log[2].actor) == ("first one", "tester")
    assert all(line.time.tzinfo is not None for line in log)


def test_promotion_retires_what_served(registry: AdapterRegistry, accepted: Accepted) -> None:
    first, second = accepted(), accepted()
    other = accepted("bob")
    for name in (first, other, second):
        registry.promote(name, "test")
    registry.promote(second, "again: nothing happens")
    assert [registry.state(name).value for name in (first, second, other)] == ["retired", "serving", "serving"]
    assert len(registry.history(second)) == 3


def test_a_rejected_adapter_never_serves(registry: AdapterRegistry, run: Path, draft: MakeDraft) -> None:
    bad = draft(metrics=draft().metrics | {"local_recall": 0.1})
    name = registry.register("alice", run, bad).name
    with pytest.raises(IllegalTransition, match=r"cannot become serving.*accepted, rejected"):
        registry.promote(name, "please")
    with pytest.raises(IllegalTransition, match=r"cannot become accepted\. The gate rejected it\. .* is 0\.10"):
        registry.transition(name, State.ACCEPTED, "please")
    assert registry.conclude(name) is State.REJECTED
    for attempt in (
        lambda: registry.promote(name, "please"),
        lambda: registry.transition(name, State.SERVING, "please"),
        lambda: registry.path(name),
    ):
        with pytest.raises(AdapterNotServable, match=f"{name} is rejected and never serves"):
            attempt()
    assert registry.serving("alice") is None
    assert (registry.files_of(name) / "manifest.json").is_file()


def test_a_tainted_adapter_stops_at_once_and_never_serves_again(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    registry.promote(name, "test")
    registry.taint(name, "t1 was forgotten")
    assert registry.serving("alice") is None
    for attempt in (lambda: registry.promote(name, "please"), lambda: registry.path(name)):
        with pytest.raises(AdapterNotServable, match="tainted"):
            attempt()
    with pytest.raises(AdapterNotFound):
        registry.rollback("alice", "please")
    registry.taint(name, "t2 was forgotten too")
    assert [line.reason for line in registry.history(name)][-2:] == ["t1 was forgotten", "t2 was forgotten too"]


def test_a_change_needs_a_reason(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    with pytest.raises(InvalidInput, match="reason"):
        registry.promote(name, " ")
    assert registry.state(name) is State.ACCEPTED


# Rollback


def rolled(registry: AdapterRegistry) -> str:
    return registry.rollback("alice", "test").name


def test_rollback_goes_back_one_by_one(registry: AdapterRegistry, accepted: Accepted) -> None:
    one, two, three = names = [accepted() for _ in range(3)]
    for name in names:
        registry.promote(name, "test")
    assert rolled(registry) == two
    assert rolled(registry) == one
    with pytest.raises(AdapterNotFound, match="no earlier adapter"):
        rolled(registry)
    assert [registry.state(name).value for name in (one, two, three)] == ["serving", "retired", "retired"]
    assert registry.serving("alice") == registry.get(one)


def test_rollback_goes_by_what_served_not_by_version(registry: AdapterRegistry, accepted: Accepted) -> None:
    one, two, three = (accepted() for _ in range(3))
    for name in (one, three, two):
        registry.promote(name, "test")
    assert rolled(registry) == three
    assert rolled(registry) == one


def test_rollback_passes_over_tainted_ones(registry: AdapterRegistry, accepted: Accepted) -> None:
    one, two, three = names = [accepted() for _ in range(3)]
    for name in names:
        registry.promote(name, "test")
    registry.taint(two, "forgotten")
    registry.taint(three, "forgotten")
    assert registry.serving("alice") is None
    assert rolled(registry) == one


def test_what_was_rolled_back_from_is_not_gone_back_to(registry: AdapterRegistry, accepted: Accepted) -> None:
    one, two, three = names = [accepted() for _ in range(3)]
    for name in names:
        registry.promote(name, "test")
    assert rolled(registry) == two
    registry.taint(two, "forgotten")
    assert rolled(registry) == one
    registry.promote(three, "after all")
    assert rolled(registry) == one


def test_rollback_after_retiring_by_hand_serves_the_last_one_again(
    registry: AdapterRegistry, accepted: Accepted
) -> None:
    one, two = accepted(), accepted()
    registry.promote(one, "test")
    registry.promote(two, "test")
    registry.transition(two, State.RETIRED, "maintenance")
    assert registry.serving("alice") is None
    assert rolled(registry) == two


def test_rollback_of_a_namespace_without_adapters(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound, match="Promote an accepted version"):
        rolled(registry)


# Namespaces and lineage


def test_reads_are_scoped_by_namespace(registry: AdapterRegistry, accepted: Accepted) -> None:
    names = [accepted(namespace) for namespace in ("alice", "ALICE", "alice-v1", "al%")]
    assert len(set(names)) == 4
    assert [manifest.name for manifest in registry.list("alice")] == ["alice-v1"]
    assert len(registry.list()) == 4
    registry.promote(names[1], "test")
    assert registry.serving("alice") is None
    for call in (
        lambda: registry.get(names[0], namespace="ALICE"),
        lambda: registry.path(names[0], namespace="bob"),
        lambda: registry.state(names[0], namespace="bob"),
        lambda: registry.promote(names[0], "steal", namespace="bob"),
        lambda: registry.taint(names[0], "harm", namespace="bob"),
        lambda: registry.conclude(names[0], namespace="bob"),
    ):
        with pytest.raises(AdapterNotFound):
            call()
    assert registry.state(names[0]) is State.ACCEPTED


def test_learned_from_resolves_within_the_namespace_only(registry: AdapterRegistry, accepted: Accepted) -> None:
    one = accepted(learned=learned("t1"))
    two = accepted(learned=learned("t1", "t2"))
    accepted(learned=learned("t3"))
    accepted("bob", learned=learned("t1"))
    registry.taint(one, "test")
    assert [manifest.name for manifest in registry.learned_from("t1", "alice")] == [one, two]
    assert [manifest.name for manifest in registry.learned_from("t2", "alice")] == [two]
    assert registry.learned_from("t2", "bob") == []
    assert registry.learned_from("t", "alice") == []


# Damage


def test_changed_weights_never_load(registry: AdapterRegistry, accepted: Accepted) -> None:
    one, two = accepted(), accepted()
    registry.promote(one, "test")
    weights = registry.folder / two / "adapter_model.safetensors"
    weights.write_bytes(b"Weights")
    with pytest.raises(AdapterDamaged, match=r"adapter_model\.safetensors: .* differs from its checksum"):
        registry.promote(two, "test")
    serving = registry.serving("alice")
    assert serving is not None
    assert serving.name == one
    weights.unlink()
    with pytest.raises(AdapterDamaged, match="is missing"):
        registry.path(two)


def test_weights_beside_the_right_ones_are_damage(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    (registry.folder / name / "notes.txt").write_text("harmless")
    registry.path(name)
    (registry.folder / name / "more.safetensors").write_bytes(b"")
    with pytest.raises(AdapterDamaged, match=r"more\.safetensors"):
        registry.path(name)


def test_a_changed_manifest_is_damage_and_can_still_be_tainted(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    path = registry.folder / name / "manifest.json"
    path.write_text(path.read_text().replace('"t1"', '"t9"'))
    for call in (lambda: registry.get(name), lambda: registry.learned_from("t1", "alice")):
        with pytest.raises(AdapterDamaged, match="changed after registration"):
            call()
    registry.taint(name, "damaged")
    assert registry.state(name) is State.TAINTED


@pytest.mark.parametrize("text", ["", "{\n", '{"sequence": 1}\n'])
def test_a_log_that_cannot_be_read_names_its_line(registry: AdapterRegistry, accepted: Accepted, text: str) -> None:
    name = accepted()
    (registry.folder / name / "state.jsonl").write_text(text)
    with pytest.raises(AdapterDamaged, match=r"state\.jsonl"):
        registry.serving("alice")


def test_a_line_cut_off_by_a_crash_never_took_effect(registry: AdapterRegistry, accepted: Accepted) -> None:
    name = accepted()
    path = registry.folder / name / "state.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence":3,"time":"2025-01-')
    assert registry.state(name) is State.ACCEPTED
    registry.promote(name, "test")
    assert path.read_bytes().startswith(whole + b'{"sequence":3')
    assert registry.state(name) is State.SERVING


# The machine


def test_no_space_left_changes_nothing(
    registry: AdapterRegistry, accepted: Accepted, run: Path, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = accepted(), accepted()
    registry.promote(one, "test")
    real, calls = os.fsync, [0]

    def failing_at(number: int) -> None:
        calls[0] = 0

        def fsync(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    def snapshot() -> list[tuple[str, bytes]]:
        folders = sorted(registry.folder.glob("alice-v*"))
        return [(str(path), path.read_bytes()) for folder in folders for path in sorted(folder.glob("*.*"))]

    before = snapshot()
    for number in (1, 2, 3, 4):
        for attempt in (lambda: registry.promote(two, "test"), lambda: registry.register("alice", run, draft())):
            failing_at(number)
            with pytest.raises(StoreFull, match=r"no space is left.*as it was"):
                attempt()
            monkeypatch.setattr(os, "fsync", real)
            assert snapshot() == before
            assert registry.state(one) is State.SERVING
    registry.promote(two, "test")
    assert registry.state(two) is State.SERVING


def test_a_folder_that_cannot_be(tmp_path: Path, run: Path, draft: MakeDraft) -> None:
    (tmp_path / "file").write_text("")
    registry = AdapterRegistry(tmp_path / "file" / "adapters")
    with pytest.raises(AdapterError, match="cannot be used: Not a directory"):
        registry.register("alice", run, draft())


def test_a_lock_that_is_held_for_too_long(registry: AdapterRegistry, accepted: Accepted) -> None:
    accepted()
    impatient = AdapterRegistry(registry.folder, lock_timeout=0.05)
    with registry._locked(), pytest.raises(AdapterError, match=r"held the adapter registry for over 0\.05 s"):
        impatient.serving("alice")


def test_the_actor_is_this_process_by_default(tmp_path: Path, run: Path, draft: MakeDraft) -> None:
    registry = AdapterRegistry(tmp_path / "adapters")
    registry.register("alice", run, draft())
    assert registry.history("alice-v1")[0].actor.endswith(f":{os.getpid()}")
