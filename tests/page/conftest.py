"""A server, the page on it and a browser, each started once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright
from triton_process import TritonProcess, wait_until

from deeplabv3 import UNTRAINED
from deeplabv3.repository.config import config_text, read_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "assets" / "cat.png"

# A browser that contacts no other host by itself; Chromium has no sandbox for root.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """A real server that can be stopped and started again at the same address."""

    def __init__(self, repository: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"grpc://127.0.0.1:{self.port}"
        self._repository, self._log = repository, folder / "serve.log"
        self._process: TritonProcess | None = None

    def start(self) -> None:
        options = ["--grpc-port", str(self.port)]
        self._process = TritonProcess(self._repository, log=self._log, options=options).__enter__()

    def stop(self) -> None:
        if self._process is not None:
            self._process.__exit__(None, None, None)
            self._process = None


@pytest.fixture(scope="session")
def repository(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, and beside it the same models as untrained ones."""
    folder = tmp_path_factory.mktemp("page-models") / "models"
    shutil.copytree(toy_repository, folder, symlinks=True)
    for kind in ("core", "segment"):
        copy = shutil.copytree(folder / f"{kind}_resnet50", folder / f"{kind}_untrained", symlinks=True)
        config = read_config(copy / "config.pbtxt")
        config.name = copy.name
        config.parameters["weights"].string_value = UNTRAINED
        for step in config.ensemble_scheduling.step:
            step.model_name = step.model_name.replace("core_resnet50", "core_untrained")
        (copy / "config.pbtxt").write_text(config_text(config))
    return folder


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(repository, tmp_path_factory.mktemp("page-server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def page_url(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running `deeplab page`; Ctrl-C ends it and leaves no files."""
    folder = tmp_path_factory.mktemp("page")
    options = ["--url", server.url, "--port", "0", "--example", str(EXAMPLE), "--open"]
    browser = folder / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {folder}/opened\n')
    browser.chmod(0o755)
    command = [sys.executable, "-u", "-m", "deeplab_client", "page", *options]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=os.environ | {"BROWSER": f"{browser} %s"},
        ) as process,
    ):
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found, (folder / "log").read_text()
        opened = folder / "opened"
        wait_until(lambda: opened.exists() and opened.read_text(), what="the browser that --open opens")
        assert opened.read_text().strip() == found[0]
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    assert (folder / "log").read_text() == ""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    assert executable, f"one of {', '.join(names)} must be on PATH: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, page_url: str) -> Iterator[Page]:
    """The page in a new browser, which must not contact any other host."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_url)
    wait_until(lambda: page.get_by_label("Model").input_value(), what="models to choose from")
    yield page
    context.close()
    assert asked
    assert [url for url in asked if not url.startswith((page_url, "data:", "blob:"))] == []
