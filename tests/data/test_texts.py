from jopd.data.texts import pieces_of, text_after


class Bytes:
    """A tokenizer of bytes: most of its tokens are not whole characters."""

    def decode(
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None
    ) -> str:
        return bytes(token_ids).decode(errors="replace")


class Spaced:
    """A tokenizer that leaves the space before the first word out, as SentencePiece does."""

    def decode(
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None
    ) -> str:
        return " ".join("abc"[id] for id in token_ids)


def test_characters_of_several_tokens_are_shown_whole_and_control_characters_spelled_out():
    text = "né 🦜\x1b[31m"
    pieces = pieces_of(Bytes(), list(text.encode()))
    assert "".join(pieces) == "né 🦜\\x1b[31m"
    assert len(pieces) == len(text.encode())
    assert pieces_of(Bytes(), [0xF0, 0x9F]) == ["", "\ufffd"]  # cut off by the length limit


def test_a_tokens_text_is_what_it_adds_to_the_one_before():
    assert text_after(Spaced(), None, 1) == "b"
    assert text_after(Spaced(), 0, 1) == " b"
    assert text_after(Bytes(), 0x61, 0x07) == "\\x07"
