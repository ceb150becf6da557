"""The built-in tokenizer: one token a word, one token an integer up to 999.

`python -m jopd.data.tokenizer` writes it to `jopd/assets/tokenizer` as an ordinary Hugging Face
folder, which `AutoTokenizer` loads offline. The ids follow from the word lists, so models trained
on it must be trained again when a list or a wording of the task changes.

- Numbers: 0..999 are single tokens, so the baby models learn arithmetic on whole numbers. Anything
  else made of digits (1000, 007) is spelled one digit a token.
- Words: those of the built-in task, and some ordinary English so that a user's own prompt is not
  all `<|unk|>`. Any other word is `<|unk|>`.
- Capitals and accents are dropped on the way in; on the way out only the task's names get theirs
  back.
- A line break is a token. Other white space is not: decoding writes one space between tokens and
  none before punctuation, and encoding that text gives the same ids again.
- Nothing is added around a text: no start token; `<|end|>` ends each turn of the chat template and
  stops a completion.
"""

import functools
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jopd.data import pretraining, task

FOLDER = Path(__file__).parent.parent / "assets" / "tokenizer"

PAD, UNK, END, SYSTEM, USER, ASSISTANT = SPECIAL = (
    "<|pad|>",
    "<|unk|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
PUNCTUATION = "\n . , : ; ? ! ' \" ( ) - + * / = < > % $ & # _ [ ] { }".split(" ")

ORDINARY_WORDS = """
a able about above again ago all also always am among amount an and animal another any anything are
as ask assistant away back be because been began begin being best better between big bird both box
boy but buy by call called came can cannot car cat change child children city clear close cold color
come complete correct could country day did different divided do does dog done down draw each easy
eight eighteen eighty eleven end english enough equal equals ever every everything example eye
family feel few fifteen find first fish five follow food four fourteen friend full gave get girl
give go goes going good got great group had half hand happy hard has have he hello help her here him
his home hot hour house hundred i idea if important in into is it its just keep kind knew know known
language large last late later learn leave left less let letter life like line list live long look
lost love made make man many may me mean men middle might mind minus minute model money month more
morning most much must my name near need never new next night nine nineteen ninety no not nothing
now number numbers of off often old on once one only open or order other our out over own part
people person place play please plus point problem put question read ready real red remember right
room round run said same say school second see sell sentence set seven seventeen seventy share she
should show six sixteen sixty size small so some something space spell start still stop story
student sum sure table take talk teacher tell ten than thank thanks that the their them then there
these they thing things think third thirteen thirty this thousand three through time times to today
together told too took top total toward town tree true try twelve twenty two under until up us use
very walk want was water way we week well went were what when where which while white who why will
wish with without woman word words work world would write wrong year yes yet you your zero don isn
doesn didn aren wasn s t re ve ll d m
"""

# In this order: a line break, a number that is one token, a lone digit, a word, any other sign. No
# white space.
PIECES = r"\n|(?<!\d)(?:0|[1-9]\d{0,2})(?!\d)|\d|[^\W\d_]+|[^\w\s]|_"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the roles of this chat template are system, user and assistant, not '"
    " + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Token to id: special tokens, the integers in order (the id of n is n + 6), punctuation, words
    by the alphabet.
    """
    said = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(pretraining.texts())).lower())
    words = sorted({*said, *ORDINARY_WORDS.split()})
    integers = map(str, range(1000))
    return {token: i for i, token in enumerate([*SPECIAL, *integers, *PUNCTUATION, *words])}


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, made from the lists above."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    names = sorted(name for group in task.NAMES.values() for name in group)
    tokenizer.decoder = decoders.Sequence(
        [
            # A space before each token but the first: no token begins with that prefix.
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" ?\n ?"), "\n"),
            decoders.Replace(Regex(r" (?=[.,:;?!)%\]}])"), ""),
            decoders.Replace(Regex(r"(?<=[(\[{$#]) "), ""),
            decoders.Replace(Regex(r" ' (?=(?:s|t|re|ve|ll|d|m)\b)"), "'"),
            *[decoders.Replace(Regex(rf"\b{name.lower()}\b"), name) for name in names],
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        # A Llama or Qwen model refuses token types.
        model_input_names=["input_ids", "attention_mask"],
    )


@functools.cache
def load() -> PreTrainedTokenizerFast:
    """The tokenizer as shipped."""
    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


if __name__ == "__main__":
    build().save_pretrained(FOLDER)
    print(f"{len(vocabulary())} tokens -> {FOLDER}")
