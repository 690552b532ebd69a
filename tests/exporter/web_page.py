"""The exporter's pages over two GPUs that were read."""

from __future__ import annotations

from exporter.page import Page
from exporter.web.app import ExporterApp
from exporter.web.release import PATH
from serving.password import Password
from tests.exporter.fakes import Bench

PASSWORD = Password("gpu-exporter", frozenset({PATH}))


def application() -> ExporterApp:
    bench = Bench(gpus=2)
    bench.sample("GPU-0")
    bench.sample("GPU-1")
    return ExporterApp(bench.store, Page(bench.store))
