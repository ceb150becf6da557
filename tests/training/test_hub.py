"""What goes to the hub, with a stand-in for it."""

import re
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from jopd import train
from jopd.config import Hub
from jopd.models.load import load
from jopd.training import hub, optimizer
from jopd.training.home import Bucket, Disk
from tests.training.problem import lenient
from tests.training.tiny import arguments

# The library's own HTTP client, whose name differs between its versions.
httpx = sys.modules[errors.Response.__module__.partition(".")[0]]
MINE = Hub("org/student")


def answered(status: int, message: str) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co/x")
    return errors.HfHubHTTPError(message, response=httpx.Response(status, request=request))


class Api:
    """The hub as far as it is used; `made` and `uploaded` are what it was asked for."""

    def __init__(self):
        self.role, self.error, self.made, self.uploaded = "write", None, [], []

    def whoami(self):
        if self.error:
            raise self.error
        token = {"accessToken": {"role": self.role}} if self.role else {}
        return {"name": "me", "orgs": [{"name": "org"}, {"name": "other"}], "auth": token}

    def create_repo(self, name, **settings):
        if self.error:
            raise self.error
        self.made.append((name, settings))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **settings):
        names = sorted(path.name for path in settings["folder_path"].iterdir())
        self.uploaded.append(SimpleNamespace(**settings, names=names))


@pytest.fixture
def api(monkeypatch):
    api = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return api


@pytest.mark.parametrize("owner", ["me", "org", "other"])
def test_who_may_write_may_begin(owner, api, capsys):
    hub.check_login(Hub(f"{owner}/student"))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "role, error, message",
    [
        ("read", None, "the token of me may only read: .* `hf auth login`"),
        ("write", None, "me may write to me, org, other, not to else: choose another name"),
        ("write", answered(401, "Invalid token."), "the hub doesn't know this token: log in anew"),
        ("write", errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set: unset it"),
    ],
)
def test_who_may_not_is_told_before_the_run(role, error, message, api):
    api.role, api.error = role, error
    with pytest.raises(ValueError, match=f"^hub.push_to=else/student.*{message}") as refused:
        hub.check_login(Hub("else/student"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("role", ["fineGrained", None])
def test_a_token_that_does_not_say_where_it_may_write_may_begin(role, api):
    api.role = role
    hub.check_login(Hub("else/student"))


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), answered(429, "Too many")])
def test_a_hub_that_is_away_is_no_refusal(error, api, capsys):
    api.error = error
    hub.check_login(MINE)
    assert capsys.readouterr().out == (
        f"warning: hub.push_to=org/student: the hub can't be asked who may write there: {error}\n"
    )


def test_nobody_is_asked_where_nothing_goes_there(api):
    api.error = AssertionError
    hub.check_login(Hub())
    hub.push(Disk("nowhere"), Hub())


def test_without_a_token_a_run_is_refused(tiny, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    error = refused([*command, "--hub.push-to", "org/student"])
    assert "hub.push_to=org/student needs a token" in error and "`hf auth login`" in error


@pytest.mark.parametrize(
    "flags, by_hand",
    [
        ({}, "hf upload org/student {}/student --private"),
        ({"private": False}, "hf upload org/student {}/student"),
    ],
)
def test_an_upload_that_fails_is_told_with_the_command_that_does_it(
    flags, by_hand, api, tmp_path, capsys
):
    api.error = answered(403, "403 Forbidden: no rights.\nmore")
    hub.push(Disk(tmp_path), Hub("org/student", **flags))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "warning: the student was not uploaded to org/student (403 Forbidden: no rights.): the "
        f"same command tries again, or  {by_hand.format(tmp_path)}"
    )


def test_of_a_bucket_the_command_fetches_the_student_first():
    assert Bucket("gs://bucket/run").on_student("hf upload org/student {}") == (
        "gcloud storage cp -r gs://bucket/run/student . && hf upload org/student student"
    )


def test_a_run_ends_with_its_student_on_the_hub_and_again_on_demand(
    tiny, tmp_path, api, capsys, monkeypatch, quick_compilation
):
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run", steps=1, watch=0)
    asked, upload = [*command, "--hub.push-to", "org/student"], Api.upload_folder

    def away(self, **settings):
        assert (tmp_path / "run" / "report.json").exists()
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(Api, "upload_folder", away)
    train.main(asked)
    said = capsys.readouterr().out
    words = re.sub(r"[\s│]+", " ", said)  # lines are broken where the screen ends
    assert "the student goes to org/student, private unless it is there already" in words
    assert said.index("everything is in") < said.index("warning: the student was not uploaded")

    monkeypatch.setattr(Api, "upload_folder", upload)
    train.main(command)
    assert not api.uploaded
    capsys.readouterr()
    train.main([*asked, "--hub.no-private"])
    said = capsys.readouterr().out
    assert "is finished; its result" in said
    assert "the student is at https://huggingface.co/org/student" in said
    assert api.made[-1] == ("org/student", {"private": False, "exist_ok": True})
    (sent,) = api.uploaded
    assert sent.repo_id == "org/student"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {*sent.names}
    load(sent.folder_path)
