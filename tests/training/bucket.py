"""A stand-in for Google Cloud Storage on this machine: objects that can't be appended to, renamed
or locked, and that can be made on the condition that nobody else has.
"""

import contextlib
import logging
import socket
from collections.abc import Iterator
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket-of-tests"


def generation(request, storage, name: str) -> str:
    """Of an object as it is now, "0" of none."""
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def uploaded(request, response, storage, *rest) -> None:
    """The emulator's upload knows no conditions."""
    if wanted := request.query.get("ifGenerationMatch"):
        named = request.query.get("name") or [request.data["meta"]["name"]]
        if generation(request, storage, named[0]) != wanted[0]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    objects.insert(request, response, storage, *rest)


def downloaded(request, response, storage, *rest) -> None:
    """What it sends doesn't say what to name in a condition."""
    response["x-goog-generation"] = generation(request, storage, request.params["object_id"])
    download(request, response, storage, *rest)


def refused(request, response, *rest) -> None:
    response.status = HTTPStatus.BAD_REQUEST


UPLOAD = rf"^{server.settings.UPLOAD_API_ENDPOINT}/b/(?P<bucket_name>[-.\w]+)/o$"
download, objects.download = objects.download, downloaded
server.HANDLERS = (
    (UPLOAD, {server.POST: uploaded, server.PUT: objects.upload_partial}),
    (r".*/moveTo/.*", {server.POST: refused}),
    *server.HANDLERS,
)


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """The environment in which gcsfs and TensorStore see the bucket."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    with server.create_server("localhost", port, in_memory=True, default_bucket=BUCKET):
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_CLOUD_PROJECT": "tests",
            # It asks another service, with credentials, what kind of bucket it is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
