"""TRL's environment, and a model of no size for trying the benchmark out."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from dipole.policy.embedded import cache_folder

REQUIREMENTS = Path(__file__).parents[1] / "trl_requirements.txt"


def trl_python() -> Path:
    """The Python of an environment with ``trl_requirements.txt``; built in the user's cache folder the first time."""
    pins = REQUIREMENTS.read_text(encoding="utf-8")
    folder = cache_folder() / "benchmarks" / f"trl-{hashlib.sha256(pins.encode()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"Building TRL's environment in {folder}; once, some minutes", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # PyTorch goes first and by itself: where pip is set up to find a build for CPUs alone, that one is taken.
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    for wanted in ([torch], ["--requirement", str(REQUIREMENTS)]):
        done = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"can't install {' '.join(wanted)}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    (folder / "ready").touch()
    return python


def build_tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=257,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
