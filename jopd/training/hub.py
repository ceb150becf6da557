"""The student on the Hugging Face hub: whether it may go there, asked before a run, and that it
goes there, once the run has ended.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from jopd.config import Hub
from jopd.models.files import one_line
from jopd.training.console import say, waiting
from jopd.training.home import Disk

# What a larger or smaller student of an earlier run may have left there; no file that is uploaded
# is removed.
WEIGHTS = "model*.safetensors*"


def check_login(hub: Hub) -> None:
    """Raises ValueError where it is known that nobody may write there; a hub that can't be reached
    may be back when the run ends.
    """
    if not hub.push_to:
        return
    setting = f"hub.push_to={hub.push_to}"
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"{setting} needs a token that may write to the hub: log in with `hf auth login`, or "
            "set HF_TOKEN"
        )
    try:
        who = huggingface_hub.HfApi().whoami()
    except errors.OfflineModeIsEnabled:
        raise ValueError(f"{setting}, but HF_HUB_OFFLINE is set: unset it") from None
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401:
            raise ValueError(
                f"{setting}: the hub doesn't know this token: log in anew with `hf auth login`, or "
                "set HF_TOKEN"
            ) from None
        say(f"warning: {setting}: the hub can't be asked who may write there: {one_line(error)}")
        return
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"{setting}: the token of {who['name']} may only read: make one that may write on "
            "https://huggingface.co/settings/tokens, and log in with it by `hf auth login`"
        )
    owner = hub.push_to.split("/")[0]
    places = [who["name"], *(org["name"] for org in who.get("orgs", ()))]
    # A fine-grained token may not name all organisations.
    if role == "write" and owner not in places:
        raise ValueError(
            f"{setting}: {who['name']} may write to {', '.join(places)}, not to {owner}: choose "
            "another name, or log in as another with `hf auth login`"
        )


def push(home: Disk, hub: Hub) -> None:
    """Uploads the student of a run that has ended; what goes wrong is said with what mends it."""
    if not hub.push_to:
        return
    with _forgiven(home, hub), waiting(f"uploading the student to {hub.push_to}"):
        upload(home.student(), hub)


def upload(folder: Path, hub: Hub) -> None:
    """Uploads a student, to a model that is made where there is none, and says where it is."""
    api = huggingface_hub.HfApi()
    place = api.create_repo(hub.push_to, private=hub.private, exist_ok=True)
    api.upload_folder(
        repo_id=hub.push_to,
        folder_path=folder,
        commit_message="A student of jopd",
        delete_patterns=WEIGHTS,
    )
    say(f"the student is at {place}")


@contextlib.contextmanager
def _forgiven(home: Disk, hub: Hub) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        private = " --private" if hub.private else ""
        by_hand = home.on_student(f"hf upload {hub.push_to} {{}}{private}")
        say(
            f"warning: the student was not uploaded to {hub.push_to} ({one_line(error)}): the same "
            f"command tries again, or  {by_hand}"
        )
