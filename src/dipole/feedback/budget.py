"""A limit on calls, tokens and money that is checked before a call is sent.

Before a call the most that it may use is set aside; afterwards what it did use is booked. So calls on their way at the
same time can't exceed a limit together. A token is at least one byte of text, which bounds a prompt's tokens whatever
the tokenizer is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dipole.errors import ConfigError, JudgeError
from dipole.feedback.cache import Cache, Spent
from dipole.group import Message, plain

TOKENS_A_MESSAGE = 16
TOKENS_A_TEMPLATE = 64
"""What a chat template may write around messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be spent, and what tokens cost.

    Args:
        max_calls: requests sent, failed ones included.
        max_total_tokens: tokens of prompts and replies together.
        max_cost: money, in the unit of the prices.
        prompt_price: of a million tokens of prompts.
        completion_price: of a million tokens of replies.

    Raises:
        ConfigError: a number is negative, or there is a limit on money and no price.
    """

    max_calls: int | None = None
    max_total_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float | None = None
    completion_price: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_total_tokens", "max_cost", "prompt_price", "completion_price"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"has to be at least 0, not {value}", where=f"--{name}")
        prices = (self.prompt_price, self.completion_price)
        if self.max_cost is not None and None in prices:
            raise ConfigError(
                "a limit on money can't be kept without prices",
                where="--max_cost",
                remedy="Give --prompt_price and --completion_price (of a million tokens), or --max_total_tokens",
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of a call; 0 where prices aren't known."""
        return (prompt_tokens * (self.prompt_price or 0) + completion_tokens * (self.completion_price or 0)) / 1e6


class Budget:
    """Limits together with what has been spent. The ledger counts across runs, so a restart renews nothing.

    Args:
        cache: whose ledger is kept.
        limits: none by default.
    """

    def __init__(self, cache: Cache, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._cache = cache
        self._settled = threading.Condition()
        self._on_their_way = 0

    @contextmanager
    def call(self, key: str, messages: Sequence[Message], max_tokens: int) -> Iterator[Booking]:
        """For as long as a call is on its way; sets aside what it may use at most, and writes it into the ledger.

        A call that gets no answer stays booked with all that was set aside: it may have been computed and billed.

        Raises:
            JudgeError: it would exceed a limit, and nothing on its way can make room. It may not be sent.
        """
        prompt_tokens = most_tokens(messages)
        most = Spent(1, prompt_tokens + max_tokens, self.limits.cost(prompt_tokens, max_tokens))
        with self._settled:
            while (fault := self._exceeded(most)) is not None:
                if not self._on_their_way:
                    raise fault
                self._settled.wait()
            number = self._cache.begin(key, most)
            self._on_their_way += 1
        try:
            yield Booking(self._cache, self.limits, number)
        finally:
            with self._settled:
                self._on_their_way -= 1
                self._settled.notify_all()

    def spent(self) -> Spent:
        """So far, what is set aside included."""
        return self._cache.spent()

    def _exceeded(self, most: Spent) -> JudgeError | None:
        limits = self.limits
        if limits.max_calls is limits.max_total_tokens is limits.max_cost is None:
            return None
        spent = self._cache.spent()
        for name, limit, used, wanted in (
            ("max_calls", limits.max_calls, spent.calls, most.calls),
            ("max_total_tokens", limits.max_total_tokens, spent.tokens, most.tokens),
            ("max_cost", limits.max_cost, spent.cost, most.cost),
        ):
            if limit is not None and used + wanted > limit:
                return JudgeError(
                    f"the budget is spent: {used:,.6g} of {limit:,.6g} are used, and the next call may need"
                    f" {wanted:,.6g}",
                    where=f"--{name}",
                    remedy="Raise the limit and run the same command again: nothing is asked twice",
                )
        return None


@dataclass(frozen=True, slots=True)
class Booking:
    """A call in the ledger."""

    cache: Cache
    limits: Limits
    number: int

    def answered(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Books what the call has used; all that was set aside, where the server doesn't say."""
        used = None
        if prompt_tokens is not None and completion_tokens is not None:
            used = Spent(1, prompt_tokens + completion_tokens, self.limits.cost(prompt_tokens, completion_tokens))
        self.cache.finish(self.number, "answered", used)

    def refused(self, reason: str) -> None:
        """Books a call that the server refused, which uses nothing."""
        self.cache.finish(self.number, reason[:200], Spent(1))


def most_tokens(messages: Sequence[Message]) -> int:
    """More tokens than messages can have."""
    sizes = (len(plain((message,)).encode(errors="surrogatepass")) for message in messages)
    return TOKENS_A_TEMPLATE + sum(TOKENS_A_MESSAGE + size for size in sizes)
