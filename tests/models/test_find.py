"""What the hub's errors mean to a user, with huggingface_hub's functions replaced."""

import sys

import huggingface_hub
import pytest
from huggingface_hub import errors

from jopd.models.find import find

# The library's own HTTP client, whose name differs between its versions.
httpx = sys.modules[errors.Response.__module__.partition(".")[0]]


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


def caused(error, cause):
    error.__cause__ = cause
    return error


GATED = errors.GatedRepoError(
    "403 Client Error.\n\nCannot access gated repo", response=response(403)
)
ABSENT = errors.RepositoryNotFoundError("401 Client Error.\n\nNot Found", response=response(401))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GATED, "is gated: accept its licence on its page and log in with `hf auth login`"),
        (ABSENT, "no such model: check the spelling of OWNER/NAME"),
        (
            errors.HFValidationError("Repo id must use alphanumeric chars: 'a b'."),
            r"no name of a model \(Repo id .*\): write OWNER/NAME",
        ),
        (
            caused(
                errors.LocalEntryNotFoundError("Cannot find an appropriate snapshot"),
                errors.OfflineModeIsEnabled("offline mode is enabled"),
            ),
            "not in the cache and HF_HUB_OFFLINE is set: unset it",
        ),
        (
            caused(
                errors.LocalEntryNotFoundError("Got: ConnectError: name resolution\nmore"),
                httpx.ConnectError("name resolution"),
            ),
            r"hub was not reached \(Got: ConnectError: name resolution\): check the network",
        ),
        (httpx.ConnectError("refused"), r"hub was not reached \(refused\): check the network"),
        (httpx.ReadTimeout("slow"), r"hub was not reached \(slow\): check the network"),
        (
            errors.HfHubHTTPError("429 Too many", response=response(429)),
            "429 Too many: check the name",
        ),
        (OSError("No space left on device"), "No space left on device: check the name"),
    ],
)
def test_why_the_hub_gave_no_model_is_said_in_one_line(error, message, monkeypatch):
    def refuse(name, **settings):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=f"'meta/llama' .* from the hub: .*{message}") as refusal:
        find("meta/llama")
    assert "\n" not in str(refusal.value)
