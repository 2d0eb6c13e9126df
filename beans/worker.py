"""One bean's Celery worker: made and run in a process of its own, after the fork."""

import logging
import threading
from typing import Any

from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.concurrency import thread as _thread_pool  # noqa: F401  (loaded before the fork)

from beans.app import POOL_THREADS, make_worker_app
from beans.base import Bean
from beans.dispatch import Dispatcher
from beans.logs import log_to_stderr
from beans.proxy import Federation
from beans.registry import bean_class
from broker import topology
from broker.lookup import Registrar, make_handle
from broker.outbox import Outbox
from facade.contract.settings import Settings

log = logging.getLogger(__name__)

JOBS_THREADS = 8
"""Jobs of one bean that are followed at a time; more of them wait in the queue."""


class BeanWorker(celery_worker.Worker):
    """Celery's worker with the signal handlers of a child of `trellis-beans`."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """End cleanly on SIGTERM; the other handlers restart or debug the parent's program."""
        celery_worker.install_worker_term_handler(worker)


def run_worker(settings: Settings, bean_name: str, *, jobs: bool = False) -> int:
    """Run the worker of a bean's calls, or of its jobs, until SIGTERM; gives its exit status."""
    host = settings.host.name
    name = (topology.jobs_worker_name if jobs else topology.worker_name)(host, bean_name)
    log_to_stderr(name)
    app = make_worker_app(settings, bean_name, jobs=jobs)
    app.set_current()
    federation = Federation(settings)
    bean = bean_class(bean_name)(settings, federation, Outbox(settings.host.events_path))
    threads = JOBS_THREADS if jobs else POOL_THREADS
    dispatcher = Dispatcher(bean, threads)
    if jobs:
        dispatcher.register_jobs(app)
        _on_ready(bean.start_jobs)
    else:
        dispatcher.register(app)
        bean.start()
        _announce(settings, bean, app.consuming)
    _stop_with(bean)
    return _run(app, name, threads)


def _run(app: Celery, name: str, threads: int) -> int:
    signals.setup_logging.connect(_keep_logging, weak=False)
    worker = BeanWorker(
        app=app,
        hostname=name,
        pool_cls="threads",
        concurrency=threads,
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _announce(settings: Settings, bean: Bean, consuming: threading.Event) -> None:
    handle = make_handle(bean.host, bean.name, bean.version)
    registrar = Registrar(settings, [handle], consuming)
    _on_ready(registrar.start)
    signals.worker_shutting_down.connect(lambda **_: registrar.stopping.set(), weak=False)
    signals.worker_shutdown.connect(lambda **_: registrar.stop(), weak=False)


def _on_ready(function: Any) -> None:
    # Celery sends the signal again after each reconnect; this is for the first.
    done: list[bool] = []

    def once(**_: Any) -> None:
        if not done:
            done.append(True)
            function()

    signals.worker_ready.connect(once, weak=False)


def _stop_with(bean: Bean) -> None:
    def shutting_down(**_: Any) -> None:
        bean.stopping.set()

    def stopped(**_: Any) -> None:
        bean.stop()

    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)


def _keep_logging(**_: Any) -> None:
    """Tell Celery that logging is set up already."""
