"""Models that could do harm, that aren't there, or whose tokenizer lacks something."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import build_model, build_tokenizer
from dipole.errors import ConfigError
from dipole.policy import locate
from dipole.policy.load import fingerprint, load_model, load_tokenizer, max_positions
from dipole.policy.locate import Allowed, check_weights
from dipole.train.trainers import DPOTrainer

sys.path.append(str(Path(__file__).parent.parent / "train"))
from tiny_runs import prepared, tiny_config, write_groups

CODE, PICKLE = Allowed(remote_code=True), Allowed(pickle_weights=True)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that may be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(name: str | Path, allowed: Allowed = locate.NOTHING) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(str(name), allowed=allowed)
    assert caught.value.exit_status == 2
    return str(caught.value)


# Pickles


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickled_weights_are_refused_before_the_data_are_read(folder: Path, tmp_path: Path) -> None:
    as_pickle(folder)
    said = refused(folder)
    assert "its weights are a pickle (pytorch_model.bin)" in said
    assert "--allow_pickle_weights" in said
    with pytest.raises(ConfigError, match="its weights are a pickle"):
        prepared(tiny_config(folder, tmp_path / "no such data", tmp_path / "run"))


def test_pickled_weights_that_are_allowed_are_the_same_weights(folder: Path, tiny_folder: Path) -> None:
    as_pickle(folder)
    assert fingerprint(load_model(str(folder), allowed=PICKLE)) == fingerprint(load_model(str(tiny_folder)))


def test_a_pickle_with_code_is_not_run_even_where_pickles_are_allowed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    evil = tmp_path / "evil"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (evil,)

    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin", pickle_protocol=2)
    assert "--model" in refused(folder, PICKLE)
    assert not evil.exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert load_model(str(folder)).num_parameters() > 0


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"")
    assert "names a file outside of the model's folder: ../elsewhere.safetensors" in refused(folder)


def test_weights_in_several_files_load(folder: Path, tiny_folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(weights.items()):
        shard = f"model-{number % 2}.safetensors"
        weight_map[name] = shard
        rest = load_file(folder / shard) if (folder / shard).exists() else {}
        save_file({**rest, name: tensor}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert fingerprint(load_model(str(folder))) == fingerprint(load_model(str(tiny_folder)))


# Code

MODELING = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()

class MineConfig(LlamaConfig):
    model_type = "dipole_test_mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def with_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model with Python code of its own, and a file that is there once the code has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    marker = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(MODELING.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "dipole_test_mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, marker


def test_code_of_a_model_is_refused_and_not_run(with_code: tuple[Path, Path]) -> None:
    folder, marker = with_code
    for load in (load_model, max_positions):
        with pytest.raises(ConfigError, match="Python code of its own, which would run on this machine") as caught:
            load(str(folder))
        assert "--allow_remote_code" in (caught.value.remedy or "")
    load_tokenizer(str(folder))  # needs none of it
    assert not marker.exists()


def test_code_of_a_model_runs_when_it_is_allowed(with_code: tuple[Path, Path]) -> None:
    folder, marker = with_code
    model = load_model(str(folder), allowed=CODE)
    assert type(model).__name__ == "MineForCausalLM"
    assert marker.exists()


def test_code_of_another_repository_is_refused_even_where_code_is_allowed(with_code: tuple[Path, Path]) -> None:
    folder, marker = with_code
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "someone/else--modeling_mine.MineConfig"
    (folder / "config.json").write_text(json.dumps(config))
    assert "its code would be fetched from someone/else" in refused(folder, CODE)
    assert not marker.exists()


@pytest.mark.parametrize(("allowed", "flag"), [(CODE, "--allow_remote_code"), (PICKLE, "--allow_pickle_weights")])
def test_what_can_do_harm_is_taken_from_local_folders_alone(allowed: Allowed, flag: str) -> None:
    said = refused("someone/model", allowed)
    assert said.startswith(f"{flag}: someone/model isn't a local folder")
    assert "hf download someone/model --revision COMMIT --local-dir FOLDER" in said


# Models that aren't there


def test_a_misspelt_folder_gets_a_hint(folder: Path, tmp_path: Path) -> None:
    said = refused(tmp_path / "modle")
    assert "there is no such folder" in said
    assert f"Did you mean '{folder}'?" in said


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "this is a file, but a model is a folder" in refused(tmp_path / "model.gguf")


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[list[str]]:
    """A hub on this machine; the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    locate._files_on_hub.cache_clear()


def no_pause(seconds: float) -> None:
    """Pauses come before repeated requests, which with growing pauses would take half a minute."""
    raise AssertionError(f"a pause of {seconds} s")


def refused_without_pauses(model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", no_pause)
        return refused(model)


@pytest.mark.parametrize("how", ["nobody listens", "nobody answers", "offline"])
def test_without_a_network_a_hub_name_fails_soon(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if how != "nobody listens":
            deaf.listen()
        use_hub(monkeypatch, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "offline")
        monkeypatch.setattr(locate, "PATIENCE", 1.0)
        said = refused_without_pauses("someone/mispelt", monkeypatch)
    assert said.startswith("--model someone/mispelt: there is no such folder, and as a hub id it can't be looked up")
    assert "needs a network" in said
    assert ("HF_HUB_OFFLINE" in said) == (how == "offline")


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(request: BaseHTTPRequestHandler) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", "RepoNotFound")
        request.send_header("Content-Length", "0")
        request.end_headers()

    with hub(monkeypatch, unknown) as asked:
        said = refused("someone/mispelt")
    assert said.startswith("--model someone/mispelt: there is neither a folder nor a public hub model of this name")
    assert asked == ["/api/models/someone/mispelt"]


def test_a_hub_model_of_pickles_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(request: BaseHTTPRequestHandler) -> None:
        names = ["config.json", "pytorch_model.bin"]
        body = json.dumps({"id": "someone/old", "siblings": [{"rfilename": name} for name in names]}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with hub(monkeypatch, files) as asked:
        said = refused("someone/old")
    assert "its weights are a pickle (pytorch_model.bin)" in said
    assert asked == ["/api/models/someone/old"]


def test_a_model_in_the_hub_s_cache_needs_no_network(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a fetched model the cache has a folder of its files by commit, and the commit of the branch."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--cached"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    use_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", no_pause)
    assert check_weights("someone/cached").source == str(repository / "snapshots" / commit)
    model = load_model("someone/cached")
    assert fingerprint(model) == fingerprint(load_model(str(tiny_folder)))
    assert model.name_or_path == model.config.name_or_path == "someone/cached"
    assert max_positions("someone/cached") == 512
    assert len(load_tokenizer("someone/cached")) == 260


# Tokenizers


def test_a_tokenizer_without_a_pad_token_trains_and_is_saved_as_it_was(folder: Path, tmp_path: Path) -> None:
    from dipole.train.run import train

    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    shutil.rmtree(folder)
    build_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = write_groups(tmp_path / "data.jsonl")
    output = train(tiny_config(folder, data, tmp_path / "run", max_steps=1))
    assert load_tokenizer(str(output / "final")).pad_token is None
    assert len((output / "samples.jsonl").read_text().splitlines()) == 4


def test_where_the_pad_token_is_the_end_the_end_is_learned_all_the_same(folder: Path, tmp_path: Path) -> None:
    """The loss and every token of it are those of a tokenizer with a pad token of its own."""
    from dipole.train.loop import steps

    data = write_groups(tmp_path / "data.jsonl")
    own = prepared(tiny_config(folder, data, tmp_path / "run"))
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    same = prepared(tiny_config(folder, data, tmp_path / "run"))
    assert same.tokenizer.pad_token_id == same.tokenizer.eos_token_id
    assert same.data.train == own.data.train
    ends = {ids[-1] for group in same.data.train for ids in group.completion_ids}
    assert ends == {same.tokenizer.eos_token_id}
    ours, theirs = next(steps(same)).metrics, next(steps(own)).metrics
    assert ours["loss"] == theirs["loss"]
    assert ours["grad_norm"] == theirs["grad_norm"]


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="no end-of-sequence token, so a completion could never end"):
        load_tokenizer(str(folder))


def test_what_a_tokenizer_says_of_its_length_is_no_limit(folder: Path, tmp_path: Path) -> None:
    """Of many models it is 10^30; what counts is what the model takes."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 10**30}))
    data = write_groups(tmp_path / "data.jsonl")
    assert prepared(tiny_config(folder, data, tmp_path / "run", max_length=None)).config.max_length == 512


def test_a_model_without_some_of_its_weights_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 of its weights are missing: model.layers.1.mlp.up_proj.weight" in refused(folder)


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="it embeds 61 tokens and the model 64") as caught:
        DPOTrainer(build_model(64), ref_model=build_model(61))
    assert caught.value.where == "ref_model"
    assert "the model's tokenizer" in (caught.value.remedy or "")
    assert DPOTrainer(build_model(64), ref_model=build_model(64)).reference is not None


@pytest.mark.parametrize("spoilt", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_of_a_model_is_a_fault_and_no_traceback(folder: Path, tmp_path: Path, spoilt: str) -> None:
    (folder / spoilt).write_bytes((folder / spoilt).read_bytes()[:100])
    data = write_groups(tmp_path / "data.jsonl")
    with pytest.raises(ConfigError) as caught:
        prepared(tiny_config(folder, data, tmp_path / "run"))
    assert "--model" in str(caught.value)
