"""The arguments of the load tests, parsed without Locust."""

from __future__ import annotations

import argparse
from typing import Any

from load_tests.options import Options, add_arguments, options_from


class Parser(argparse.ArgumentParser):
    """Accepts the two additional settings of Locust's parser."""

    def add_argument(self, *flags: str, **settings: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
        self.variables = [*getattr(self, "variables", []), settings.pop("env_var", "")]
        settings.pop("include_in_web_ui", None)
        return super().add_argument(*flags, **settings)


def parse(*arguments: str) -> Options:
    parser = Parser()
    add_arguments(parser)
    return options_from(vars(parser.parse_args(arguments)))
