"""Shortcut events: a completion that lets slip what the student was never shown.

A student that learns from a teacher who reads the worked solution may learn to speak as if it read
it too. Three rules look for that in a completion's text, beside the prompt as the student saw it; a
completion counts once, whichever fire:

    refers     it refers to a solution, reference, key or hint that the prompt does not contain
    asserts    it asserts an answer with no derivation before it
    cues       it treats the answer as known beforehand ("we already know the answer is 12", "which
               matches the expected answer"), where the prompt does not give it

The rules are regular expressions: they see wording, not meaning, and prefer to miss an event over
making one up. They can't see sentences of a solution that are repeated word for word, which read
like a derivation of one's own. `asserts` means something for problems that are to be worked out;
where the answer alone is asked for, or explained afterwards, it fires on every good completion.

Source: AR-OPD (arXiv:2606.10385) counts such events by these three rules (grade P). Its patterns
are unpublished: these are ours (reconstruction), written and tested on examples before any
training, and not fitted to what a training made.
"""

import re
from collections.abc import Sequence

RULES = ("refers", "asserts", "cues")


def events(prompt: str, completion: str, answer: str | None) -> dict[str, bool]:
    """Which of RULES fire, and under `shortcut` whether any does.

    Args:
      prompt: everything that the student saw, all messages of it.
      completion: what it wrote.
      answer: the right answer where known. With it an answer is recognised that is given without
        that word ("10 marbles are left."), and a prompt that gives it away.
    """
    prompt, completion = _plain(prompt), _plain(completion)
    given = _gives_answer(prompt, answer)
    found = {
        "refers": not _PRESENTS.search(prompt) and _REFERS.search(completion) is not None,
        "asserts": not given and _asserts(prompt, completion, answer),
        "cues": not given and _CUES.search(completion) is not None,
    }
    return {**found, "shortcut": any(found.values())}


def rates(
    prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str | None]
) -> dict[str, list[bool]]:
    """By name, one value a completion: `shortcut_rate`, and of each rule `shortcut_refers_rate` and
    so on.
    """
    found = [events(*each) for each in zip(prompts, completions, answers, strict=True)]
    names = {"shortcut": "shortcut_rate"} | {rule: f"shortcut_{rule}_rate" for rule in RULES}
    return {name: [event[rule] for event in found] for rule, name in names.items()}


def _plain(text: str) -> str:
    """Straight quotes, no emphasis marks, single spaces; line breaks stay."""
    text = re.sub(r"[‘’]", "'", re.sub(r"[“”]", '"', text)).replace("**", "").replace("__", "")
    return re.sub(r"[^\S\n]+", " ", text).strip()


def _any(*patterns: str) -> re.Pattern:
    return re.compile(
        "|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE
    )


# Rule 1: a solution or reference. "Solution" is also what an equation has and what stands in a
# beaker, so it needs a word that makes it somebody's text.

_SOMEONES = (
    r"(?:worked|reference|official|model|expert|oracle|gold|golden|hidden|privileged|provided|supplied|attached|accompanying|"
    r"editorial|teacher's|instructor's)"
)
_TEXT = (
    r"(?:solution|answer(?! "
    r"(?:choice|option|format|box|field|space))|trace|derivation|explanation|reasoning|proof)\b"
)
_SOURCE = (
    r"(?:solution|reference(?! "
    r"(?:frame|point|angle|level|value|system))|hint|ground[- ]truth)\b(?! (?:of|to)\b)"
)
_THE = r"(?:the|this|that|your)"
_QUOTED = (
    r"(?:shown|stated|given|explained|described|indicated|noted|seen|derived|written|said|outlined"
    r"|mentioned|done)"
)

_REFERS = _any(
    rf"\b(?:{_THE}|per|see|from) {_SOMEONES} {_TEXT}",
    # A heading taken over from a context; "here is a worked solution:" announces one's own.
    rf"(?:^|[.!?\"] ?){_SOMEONES} {_TEXT} ?:",
    rf"\b(?:according to|as per|going by|thanks to) {_THE} (?:\w+ )?{_SOURCE}",
    rf"\bas (?:(?:it )?(?:is|was) )?{_QUOTED} (?:in|by) {_THE} (?:\w+ )?{_SOURCE}",
    rf"\bas {_THE} (?:\w+ )?{_SOURCE} (?:\w+ "
    rf")?(?:shows|showed|says|said|states|explains|indicates|notes|does|did|puts it|has it)\b",
    rf"\b{_THE} {_SOURCE} (?:\w+ )?(?:says|said|states|stated|tells us|told "
    rf"us|mentions|claims|reads|points out)\b",
    rf"\b(?:looking|peeking|glancing|referring|going) (?:back )?(?:at|to) {_THE} (?:\w+ "
    rf")?{_SOURCE}",
    rf"\b(?:follow|copy|use|quote|consult|repeat)(?:ing|s)? {_THE} {_SOURCE} "
    rf"(?:above|below|given|provided|shown)\b",
    rf"\b{_THE} (?:solution|answer|explanation|derivation) (?:that )?(?:(?:i|we|you) "
    rf"(?:was|were|am|are) |(?:was|is|has been) )?"
    r"(?:provided|supplied|given|shown) (?:to (?:me|us)|in the (?:prompt|context|system))\b",
    r"\b(?:the|us(?:e|ing)|with|by) (?:the )?hint\b|\b(?:solution|answer) key\b|\bsolutions? "
    r"manual\b|\bmarking scheme\b",
    r"\bground[- ]truth (?:answer|solution)\b|\bprivileged (?:context|information)\b",
)

# A prompt that holds one. "Solution:" with nothing behind it only asks for one.
_PRESENTS = _any(
    rf"\b{_SOMEONES} {_TEXT}",
    r"\b(?:solution|reference|explanation|derivation)s?(?: \([^)\n]*\))? ?: ?\n?\S",
    rf"\b(?:following|above|below|attached|student's|my|his|her|their|this) (?:\w+ )?{_SOURCE}",
    rf"\b{_SOURCE} (?:above|below|given|provided|says|states|shows)\b",
    r"\b(?:hint|answer key|solution key|marking scheme|solutions? manual|ground[- ]truth)\b",
)


# Rule 2: an answer out of nowhere.

_MARKS = _any(
    r"\banswer\s*(?:(?:is|was|equals|must be|should be|would be|will be)\b\s*:?|[:=])\s*"
    r"(?!to be|not\b|that\b|as follows|found\b|obtained\b|an? (?:\w+ "
    r")?(?:integer|number|multiple|fraction|set|list)\b)(?=\S)",
    r"\\boxed\b",
    r"<answer>",
    r"####",
)
_NUMBER_WORDS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen "
    "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
)
_NUMBERS = _any(r"\d+(?:[.,]\d+)*", rf"\b(?:{_NUMBER_WORDS.replace(' ', '|')})\b")
# Where a number is only a label.
_LABELS = _any(
    r"\b(?:step|part|case|problem|question|exercise|option|line)s? (?:\d+|[a-h]\b)[.:)]?",
    r"^ ?\(?\d+[.:)] ",
)
_OPERATIONS = _any(
    r"\b(?:plus|minus|times|add(?:s|ed|ing)?|subtract(?:s|ed|ing)?|multipl(?:y|ies|ied|ying)|divid(?:e|es|ed|ing))\b",
    r"\b(?:halv(?:e|es|ed|ing)|half|doubl(?:e|es|ed|ing)|tripl(?:e|es|ed|ing)|twice|squar(?:e|es|ed|ing))\b",
    r"\d ?[-+*/×÷·^=] ?[\w(\\]|[\w)] ?[-+*/×÷·^] ?\d",
)
_SYMBOLS = _any(
    r"\\(?:frac|sqrt|times|cdot|int|sum|implies|Rightarrow|equiv|pm|begin)\b",
    r"\b[a-z] ?[+*/^] ?[a-z(\d]",
    r"\b\w\(\w\) ?=",
)
# Words that announce work instead of doing it.
_ANNOUNCING = frozenset(
    """
a able about above all also am an and answer any are as ask asked asking at be because before
below but by calculate can carefully certainly compute conclude consider could course detail
determine do does down each easily easy exercise explain explanation final finally find first
following for from get give given gives go going have help hence here how i if in indeed info
information is it its just know known later leads let likely long look me must my need next no not
now of ok okay on once one only our out over please problem proceed provide question quick quickly
quite ready reason reasoning requested result right sentence shall short should show simple simply
since so solution solve solving some step steps straightforward sum summary sure take task thank
thanks that the their them then there therefore these they thing think thinking this those through
thus to together understand us use used using value very want was way we well what when where
which who why will with work working would write yes you your
""".split()
)
_ENOUGH_WORDS = 5
_ARGUES = _any(r"(?:\b[a-z]{2,}\b.*){3}", r"\d ?[-+*/×÷] ?\d[^=\n]*=")


def _asserts(prompt: str, completion: str, answer: str | None) -> bool:
    marks = list(_MARKS.finditer(completion))
    for mark in marks:
        claim = _SENTENCE_ENDS.split(completion[mark.end() :], maxsplit=1)[0]
        # "Answer: 14 and 6 make 20, ..." is a heading with its derivation; "answer: (14, 6)" is
        # not.
        if not (_ARGUES.search(claim) and _derives(prompt, claim)):
            return not _derives(prompt, completion[: mark.start()])
    # Without the word, the answer itself; if the prompt has it too, it may be something that is
    # only told again.
    if marks or not answer or _places(answer, prompt):
        return False
    places = _places(answer, completion)
    return bool(places) and not _derives(prompt, completion[: places[-1]])


_SENTENCE_ENDS = re.compile(r"(?<=[.!?;])\s+|\n+")


def _derives(prompt: str, text: str) -> bool:
    """Whether a text takes a step: an operation, a relation between numbers, or a few words of its
    own.
    """
    told = " ".join(prompt.lower().split())
    words: set[str] = set()
    for sentence in _SENTENCE_ENDS.split(text):
        # The problem told again is no step.
        if not sentence or " ".join(sentence.lower().split()) in told:
            continue
        steps = _LABELS.sub(" ", sentence)
        numbers = len(_NUMBERS.findall(steps))
        if numbers >= 2 or (numbers and _OPERATIONS.search(steps)) or _SYMBOLS.search(steps):
            return True
        if not _REFERS.search(sentence) and not _CUES.search(sentence):
            words |= set(re.findall(r"[a-z]{2,}", sentence.lower())) - _ANNOUNCING
    return len(words - set(re.findall(r"[a-z]+", told))) >= _ENOUGH_WORDS


# Rule 3: an answer known beforehand. What comes out of a derivation may be called "the answer", so
# it must be said to be known, expected or given.

_ANSWER = r"(?:(?:final|correct|right|true|actual) )?answer"
_PROPERTY = (
    r"(?! (?:must|has|should|cannot|can't|will|is "
    r"(?:an?|at|between|even|odd|positive|negative|less|greater|in))\b)"
)
_CUES = _any(
    rf"(?<!now )\b(?:we|i|you) (?:already )?(?:know|knew) (?:that )?(?:the|what the) "
    rf"{_ANSWER}{_PROPERTY}\b",
    rf"\b(?:knowing|having been told|having seen|remembering|recalling) (?:that )?(?:the|what the) "
    rf"{_ANSWER}{_PROPERTY}\b",
    rf"\b(?:i|we) (?:was|were|am|are|have been|had been) (?:told|given|shown) (?:that )?the "
    rf"{_ANSWER}\b",
    rf"\bthe {_ANSWER} (?:is|was|has been) (?:already (?:known|given|provided)|known (?:to "
    rf"be|beforehand|in advance)|"
    r"(?:given|provided|supplied|stated|revealed) (?:to (?:us|me)|beforehand|in advance))\b",
    rf"\b(?:since|because) the {_ANSWER} (?:is|was) (?:known|provided|revealed)\b",
    rf"\bwork(?:ing|ed)? back(?:wards?)? from (?:the|this|that) {_ANSWER}\b",
    r"\b(?:the|an) (?:expected|known|target|memori[sz]ed) (?:final )?answer\b",
    r"\b(?:match(?:es|ing)?|agree(?:s|ing)? with|consistent with|in line with|confirm(?:s|ing)?|to "
    r"(?:reach|arrive at|justify|get|"
    r"obtain)) the (?:given|provided|correct|supplied|stated) (?:final )?answer\b(?! "
    r"(?:choice|option))",
    rf"\bthe {_ANSWER} (?:that )?(?:i|we) (?:(?:was|were|am|are) (?:given|told|shown)|already "
    rf"have)\b",
)


def _gives_answer(prompt: str, answer: str | None) -> bool:
    """Whether the prompt says what the answer is."""
    if answer:
        said = re.compile(
            r"\b(?:answer|result)(?: (?:is|was|equals|of|should be|must be))?[ :=\"'(]*$", re.I
        )
        return any(said.search(prompt[:place]) for place in _places(answer, prompt))
    return re.search(r"\banswer (?:is|was) (?!to be\b|an? |not\b)\S", prompt, re.I) is not None


def _places(answer: str, text: str) -> list[int]:
    """Where the answer stands in a text, by itself and not inside another word or number."""
    letters = re.I if len(answer) > 1 else re.NOFLAG  # the option A is no article
    found = re.finditer(rf"(?<![\w.,]){re.escape(answer.strip())}(?!\w|[.,]\d)", text, letters)
    return [match.start() for match in found]
