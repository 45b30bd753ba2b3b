"""Groups to judge, and models that answer by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dipole.feedback.language_model import Reading
from dipole.feedback.prompting import Question
from dipole.group import Completion, Group, plain


def group(id: str, *texts: str, prompt: str = "Write a review.") -> Group:
    return Group(id=id, prompt=prompt, completions=tuple(Completion(text=text) for text in texts))


GROUPS = [
    group(f"g{number}", f"A wonderful film, number {number}.", f"A terrible and boring film, number {number}.")
    for number in range(40)
]

Says = Callable[[str, str], Reading]


class Reader:
    """A language model that answers by a function of the two texts."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.asked: list[Question] = []

    def read(self, questions: Iterable[Question]) -> Iterator[Reading]:
        for question in questions:
            self.asked.append(question)
            yield self.says(plain(question.first), plain(question.second))


def likes(word: str) -> Says:
    """Prefers the text with a word in it."""

    def says(first: str, second: str) -> Reading:
        if (word in first) == (word in second):
            return Reading("tie", 0.5, "alike")
        return Reading("first", 1.0, "A has it") if word in first else Reading("second", 0.0, "B has it")

    return says
