"""`python -m jopd.show RUN [RUN ...]`: runs as one page to be looked at.

The page is one HTML file that opens from the disk: the answers with every token in the colour of
what the method saw there, all curves with their intervals, profiles over time, the checklist, and
what differs between the runs. Every finished run has its own in its folder, as `report.html`; with
`--live PORT` the page follows runs that go on, at http://127.0.0.1:PORT.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Show:
    """What to look at.

    Attributes:
      runs: folders of runs, or gs://BUCKET/RUN.
      output: the file; empty, it is report.html in the run's folder, and for several runs or a
        bucket `comparison.html` here.
      live: a port of this machine at which to serve the page instead, anew whenever the runs have
        got further.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    output: Path | None = None
    live: int | None = None


def main(arguments: list[str] | None = None) -> None:
    from jopd.config import or_exit

    settings = tyro.cli(Show, args=arguments, prog="python -m jopd.show", description=__doc__)
    or_exit(run, settings)


def run(settings: Show) -> None:
    """Writes the page, or serves it until Ctrl-C.

    Raises:
      ValueError: no run, one that can't be read, or a file or port that can't be used.
    """
    if not settings.runs:
        raise ValueError("name the folder of a run, such as runs/default-opd-seed0")
    if settings.live is not None and settings.output is not None:
        raise ValueError(
            f"output={settings.output}: --live {settings.live} serves the page and writes no file: "
            "leave one of the two out"
        )
    from jopd.page import records
    from jopd.page.document import document, write
    from jopd.training import home
    from jopd.training.console import say

    homes = [home.at(str(Path(run)) if "://" not in run else run) for run in settings.runs]

    known: dict[str, tuple[object, records.Data]] = {}

    def read() -> list[records.Data]:
        for it in homes:
            it.fetch()
            stamp = records.stamp(it.folder)
            if str(it) not in known or known[str(it)][0] != stamp:
                known[str(it)] = stamp, records.read_run(it.folder, str(it))
        return [known[str(it)][1] for it in homes]

    if settings.live is not None:
        return follow(settings.live, read)
    runs = read()
    usual = Path("comparison.html")
    if len(homes) == 1 and "://" not in settings.runs[0]:
        usual = homes[0].folder / "report.html"
    file = settings.output or usual
    try:
        write(file.expanduser(), document(runs))
    except OSError as error:
        raise ValueError(f"output={file} can't be written ({error}): choose another") from None
    say(f"written: {file}")


def follow(port: int, read: Callable[[], list]) -> None:
    """The page at a port, until Ctrl-C."""
    from jopd.page.live import LOOPBACK, serve
    from jopd.training.console import say

    read()  # says at once what is wrong
    with serve(port, read) as server:
        say(f"http://{LOOPBACK}:{server.server_address[1]}  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
