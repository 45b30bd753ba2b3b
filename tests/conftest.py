"""Fixtures: a tiny language model and tokenizer, built in code and saved to a folder. No downloads."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from dipole.cli import main
from dipole.data.reduce import PairRelation
from dipole.data.tokenize import TokenizedGroup

torch.set_num_threads(1)  # for tiny tensors, threads cost more than they bring

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def build_tokenizer(*, chat: bool = True, merges: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes (256) and four special tokens, with a template of the ChatML kind.

    Args:
        chat: with a chat template.
        merges: pairs of tokens that become one, such as ``"a b"``.
    """
    pairs = [(left, right) for left, right in map(str.split, merges)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|spare|>"]})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(vocabulary: int = 260, *, seed: int = 0) -> LlamaForCausalLM:
    """Llama of two layers and 32 hidden units with grouped-query attention; about 30,000 parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    ).eval()


def build_exact_model(vocabulary: int = 64, *, seed: int = 0) -> PhiForCausalLM:
    """Phi in float64: grouped-query attention, a head with a bias, and norms that stay float64 (Llama's go to float32).

    What two computations of its log-probabilities differ by is rounding, about 1e-14.
    """
    torch.manual_seed(seed)
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
    )
    torch.nn.init.normal_(model.lm_head.bias)
    return model.double().eval()


def build_groups(*shapes: tuple[int, list[int]], seed: int = 0, vocabulary: int = 64) -> list[TokenizedGroup]:
    """Groups of random tokens, given by the length of the prompt and those of the completions.

    Every two completions of a group are compared. Probabilities and weights are sums of powers of two, so that float32
    holds them exactly.
    """
    draw = random.Random(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocabulary) for _ in range(length))

    return [
        TokenizedGroup(
            id=f"g{number}",
            prompt_ids=tokens(prompt),
            completion_ids=tuple(map(tokens, lengths)),
            relations=tuple(
                PairRelation(i, j, p=draw.choice((0.5, 0.75, 1.0)), weight=draw.choice((0.5, 1.0, 2.0)))
                for j in range(len(lengths))
                for i in range(j)
            ),
        )
        for number, (prompt, lengths) in enumerate(shapes)
    ]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    return build_model()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``from_pretrained`` takes: the tiny model with its tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (exit status, standard output, standard error)."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(item) for item in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
