import json
import threading
import urllib.error
import urllib.request

import pytest

from jopd.page.live import LOOPBACK, serve
from jopd.page.records import NotARun, read_run
from tests.page.runs import write_run


@pytest.fixture
def server(tmp_path):
    folder = write_run(tmp_path / "run")
    with serve(0, lambda: [read_run(folder, "run")]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, folder
        server.shutdown()


def ask(server, path: str = "/", host: str | None = None) -> tuple[int, str]:
    port = server.server_port
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}")
    request.add_header("Host", host or f"localhost:{port}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_the_page_and_its_data_are_those_of_now(server):
    server, folder = server
    status, page = ask(server)
    assert status == 200 and page.startswith("<!doctype html>")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.125}\n')
    status, data = ask(server, "/data.json")
    assert status == 200
    assert json.loads(data)["runs"][0]["curves"]["training"]["loss"]["value"][-1] == 0.125


@pytest.mark.parametrize(
    "path", ["/config.yaml", "/../run/config.yaml", "/data.json?x", "/index.html"]
)
def test_nothing_else_is_served(server, path):
    assert ask(server[0], path)[0] == 404


def test_whoever_asks_by_another_name_gets_nothing(server):
    assert ask(server[0], host="localhost:9000")[0] == 200  # through a tunnel
    assert ask(server[0], host="example.org")[0] == 403
    assert ask(server[0], host="localhost.example.org")[0] == 403
    assert ask(server[0], host=f"example.org:{server[0].server_port}")[0] == 403


def test_it_listens_on_this_machine_alone(server):
    assert server[0].server_address[0] == "127.0.0.1"


def test_a_run_that_is_being_cleared_is_asked_for_again_later():
    def read():
        raise NotARun("run holds no run")

    with serve(0, read) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server)[0] == 503
        server.shutdown()


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ValueError, match=f"live={port} can't be listened on"):
        serve(port, list)
