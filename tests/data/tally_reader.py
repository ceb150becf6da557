"""Reads the built-in task from its text alone; shares nothing with what generates it."""

import re

SAYS = {
    "add": r"plus|add|adding|grow",
    "subtract": r"minus|take|taking|shrink",
    "double": r"times 2|double|doubling|twice",
    "halve": r"half|halve|halving",
}


def integers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def sentences(text):
    return [sentence.strip() for sentence in re.findall(r"[^.?]+(?:[.?]|$)", text)]


def read_problem(prompt):
    """(first count, ((operation, operand), ...)) of a prompt; double and halve have operand 2."""
    opening, *events, question = sentences(prompt)
    assert question.endswith("?")
    read = []
    for number, event in enumerate(events, 1):
        place, *operand = integers(event)
        assert place == number
        if "half" in event:
            read.append(("halve", 2))
        elif re.search("double|again", event):
            read.append(("double", 2))
        elif re.search("finds|buys|given|brings", event):
            read.append(("add", *operand))
        else:
            assert re.search("gives away|loses|sells|takes", event), event
            read.append(("subtract", *operand))
    (start,) = integers(opening)
    return start, tuple(read)


def apply(operation, count, operand):
    if operation == "halve":
        assert count % 2 == 0
    return {
        "add": count + operand,
        "subtract": count - operand,
        "double": count * 2,
        "halve": count // 2,
    }[operation]


def check_solution(prompt, solution, largest=99):
    """Every step's operation and numbers, in order, and the answer line."""
    count, events = read_problem(prompt)
    worked, answer = solution.split("\n")
    steps = sentences(worked)
    assert len(steps) == len(events)
    for place, (said, (operation, operand)) in enumerate(zip(steps, events, strict=True), 1):
        after = apply(operation, count, operand)
        assert 0 <= after <= largest
        assert re.search(rf"\b(?:{SAYS[operation]})\b", said), said
        expected = [count, after] if operation in ("double", "halve") else [count, operand, after]
        first, *rest = integers(said.replace("times 2", ""))
        assert first == place and sorted(rest) == sorted(expected) and rest[-1] == after, said
        count = after
    assert answer == f"answer: {count}"
    return str(count)
