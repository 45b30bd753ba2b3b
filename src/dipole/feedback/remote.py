"""Completions from a model behind an OpenAI-compatible server, many requests at a time."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dipole.errors import ConfigError, DataError
from dipole.feedback.client import ChatClient, Refused, Reply, in_order
from dipole.group import Completion, Group
from dipole.policy.sampling import Sampling

Prompt = tuple[int, Group]
"""A prompt with its place among all that are asked for."""


class RemoteSampler:
    """A sampler (see ``dipole.generating``) over a server: one request a completion.

    A server's draws follow its own numbers: the seed of every request is recorded, and whether it is obeyed is the
    server's business.

    Args:
        client: of the server.
        sampling: ``top_k`` and ``repetition_penalty`` are sent where they aren't their default, since vLLM, SGLang and
            llama.cpp take them and others refuse them; ``batch_size`` is how many requests are on their way at a time.
    """

    def __init__(self, client: ChatClient, sampling: Sampling) -> None:
        self._client = client
        self._sampling = sampling

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The server's name for the model, its address, and the sampling."""
        sampling = {name: value for name, value in asdict(self._sampling).items() if name != "batch_size"}
        return {"model": self._client.model, "server": self._client.url, "sampling": sampling}

    def sample(
        self, prompts: Sequence[Prompt], count: int, done: Collection[str] = ()
    ) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
        """Completions of each prompt that isn't done, in order, as soon as all of its own are there.

        Raises:
            JudgeError: the server can't be reached, or refuses every request.
            DataError: it refuses this prompt.
            ConfigError: a prompt is plain text.
        """
        for _, group in prompts:
            if isinstance(group.prompt, str):
                raise ConfigError(
                    "a server takes chats, and this prompt is plain text",
                    where=f"group '{group.id}'",
                    remedy="Add --prompt_format chat to make it a user's message",
                )
        wanted = ((prompt, number) for prompt in prompts if prompt[1].id not in done for number in range(count))
        own: list[Completion] = []
        for prompt, completion in in_order(self._one, wanted, self._sampling.batch_size):
            own.append(completion)
            if len(own) == count:
                yield prompt, tuple(own)
                own = []

    def _one(self, item: tuple[Prompt, int]) -> tuple[Prompt, Completion]:
        (place, group), number = item
        assert not isinstance(group.prompt, str)
        seed = seed_of(self._sampling.seed, place, number)
        try:
            reply = self._client.complete(
                group.prompt, max_tokens=self._sampling.max_new_tokens, sample=number, **_settings(self._sampling, seed)
            )
        except Refused as fault:
            raise DataError(
                f"the server refuses it: {fault}", where=f"group '{group.id}'", remedy="Leave it out, or shorten it"
            ) from fault
        return (place, group), self._completion(reply, [place, number], seed)

    def _completion(self, reply: Reply, stream: list[int], seed: int) -> Completion:
        facts = {"stream": stream, "seed": seed, "finished": reply.finish_reason == "stop"}
        if reply.completion_tokens is not None:
            facts["tokens"] = reply.completion_tokens
        return Completion(text=reply.text.strip(), source=self._client.model, meta={**self.provenance, **facts})


def seed_of(seed: int, place: int, number: int) -> int:
    """The seed of a request, 31 bits: a function of the run's seed, the prompt's place and the sample's number."""
    return random.Random(f"{seed}:{place},{number}").getrandbits(31)


def _settings(sampling: Sampling, seed: int) -> dict[str, Any]:
    """What is sent beside the chat; nothing that is at its default anyway."""
    settings: dict[str, Any] = {"temperature": sampling.temperature, "seed": seed}
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    for name, default in (("top_p", 1.0), ("top_k", 0), ("repetition_penalty", 1.0)):
        if (value := getattr(sampling, name)) != default:
            settings[name] = value
    return settings
