"""The cached reference: the same values as the live one, computed once, and never those of something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build_groups, build_model
from dipole.data.batch import PackedBatch, pack
from dipole.errors import ConfigError
from dipole.policy.cached import Cached, LogpStore, fill, key_of, model_key
from dipole.policy.load import fingerprint
from dipole.policy.logprobs import Policy
from dipole.policy.reference import FrozenCopy

GROUPS = build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2]))
BATCH = pack(GROUPS)


def live() -> FrozenCopy:
    return FrozenCopy(Policy(build_model(64)))


def filled(folder: Path, *batches: PackedBatch) -> LogpStore:
    store = LogpStore(folder, BATCH.sequences)
    fill(store, batches, live().token_logps, lambda count: None)
    return store


def refused() -> Any:
    raise AssertionError("nothing is to be computed")


def test_cached_equals_live_in_any_order_and_grouping(tmp_path: Path) -> None:
    filled(tmp_path, BATCH)
    reference = Cached(LogpStore(tmp_path, BATCH.sequences), refused)
    assert torch.equal(reference.token_logps(BATCH), live().token_logps(BATCH))
    for groups in (GROUPS[::-1], GROUPS[1:2]):
        batch = pack(groups)
        torch.testing.assert_close(reference.token_logps(batch), live().token_logps(batch), rtol=1e-5, atol=1e-5)


def test_what_was_not_asked_for_is_computed_live(tmp_path: Path) -> None:
    store = filled(tmp_path, pack(GROUPS[:2]))
    made = []

    def make() -> FrozenCopy:
        made.append(1)
        return live()

    reference = Cached(store, make)
    assert torch.equal(reference.token_logps(BATCH), live().token_logps(BATCH))
    assert made == [1]


def test_files_are_written_now_and_then_and_advance_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipole.policy.cached.SHARD_TOKENS", 5)
    counts: list[int] = []
    store = LogpStore(tmp_path, BATCH.sequences)
    fill(store, [pack([group]) for group in GROUPS], live().token_logps, counts.append)
    assert counts == [3, 2, 2]
    assert len(list(tmp_path.iterdir())) == 3  # the last one holds what was left
    again = LogpStore(tmp_path, BATCH.sequences)
    assert all(sequence in again for sequence in BATCH.sequences)


def test_only_what_is_wanted_is_kept_in_memory(tmp_path: Path) -> None:
    filled(tmp_path, BATCH)
    wanted = BATCH.sequences[:2]
    store = LogpStore(tmp_path, wanted)
    assert [sequence in store for sequence in BATCH.sequences] == [True, True, *[False] * 5]
    assert store.get(wanted[0]).untyped_storage().nbytes() == 4 * len(wanted[0][1])


@pytest.mark.parametrize("how", ["flipped", "cut short", "empty"])
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, how: str) -> None:
    filled(tmp_path, BATCH)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flipped": content, "cut short": content[:-9], "empty": b""}[how])
    store = LogpStore(tmp_path, BATCH.sequences)
    assert store.damaged == [path]
    assert not any(sequence in store for sequence in BATCH.sequences)
    fill(store, [BATCH], live().token_logps, lambda count: None)
    assert torch.equal(Cached(store, refused).token_logps(BATCH), live().token_logps(BATCH))


def test_an_unfinished_file_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".0123.tmp").write_bytes(b"half")
    store = LogpStore(tmp_path, BATCH.sequences)
    assert store.damaged == []


def test_processes_may_fill_one_folder_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import torch; from dipole.policy.cached import LogpStore\n"
        "me = int(sys.argv[2]); store = LogpStore(Path(sys.argv[1]), [])\n"
        "for i in range(50): store.save([(((me, i), (1, 2)), torch.tensor([float(me), float(i)]))])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(me)]) for me in (1, 2)]
    assert [process.wait() for process in running] == [0, 0]
    wanted = [((me, i), (1, 2)) for me in (1, 2) for i in range(50)]
    store = LogpStore(tmp_path, wanted)
    assert [store.get(sequence).tolist() for sequence in wanted] == [[float(me), float(i)] for (me, i), _ in wanted]


def test_a_key_tells_prompt_and_completion_apart() -> None:
    sequences = [((1, 2), (3,)), ((1,), (2, 3)), ((1, 2, 3), ()), ((1, 2), (4,)), ((), (1, 2, 3))]
    assert len({key_of(sequence) for sequence in sequences}) == len(sequences)


def test_a_model_s_key_is_its_weights_configuration_and_precision() -> None:
    model = build_model(64)

    def key(**changes: Any) -> str:
        other = build_model(64)
        for name, value in changes.items():
            setattr(other.config, name, value)
        return model_key(other, fingerprint(other), "no")

    first = model_key(model, fingerprint(model), "no")
    assert key() == key(_name_or_path="elsewhere", transformers_version="1") == first
    assert len({first, key(rms_norm_eps=1e-3), model_key(model, "other", "no"), model_key(model, "", "bf16")}) == 4


def test_a_buffer_that_is_saved_is_part_of_the_weights_and_others_are_not() -> None:
    """As DeepSeek's router adds to its scores; angles of positions aren't saved, and follow from the configuration."""
    models = [build_model(64) for _ in range(4)]
    for model, value in zip(models[1:], (0.0, 1.0, 1.0), strict=True):
        model.model.register_buffer("bias", torch.tensor(value))
    models[3].model.register_buffer("angles", torch.tensor(2.0), persistent=False)
    plain, zero, one, same = map(fingerprint, models)
    assert len({plain, zero, one}) == 3
    assert same == one


def test_whole_distributions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distributions"):
        Cached(LogpStore(tmp_path, []), refused).head_input(BATCH)
