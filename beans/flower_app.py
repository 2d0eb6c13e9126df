"""The Celery application that Flower looks through: `celery -A beans.flower_app flower`.

Configured by the same TRELLIS_* variables (or TRELLIS_CONFIG) as everything else; it needs the
broker alone, with the user `trellis.ops`. Flower reads the workers' events and speaks with them; it
declares none of the federation's exchanges, which come from the definitions.
"""

import os

import celery.events.event

from beans.app import FederationApp, NarrowControl
from broker.address import broker_urls
from facade.contract.settings import load

_settings = load(None, os.environ).need("broker")

celery.events.event.event_exchange.no_declare = True

app = FederationApp("flower", control=NarrowControl)
app.conf.update(
    broker_url=";".join(broker_urls(_settings)),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_heartbeat=10,
    accept_content=["json"],
    task_serializer="json",
    event_serializer="json",
    enable_utc=True,
    timezone="UTC",
)
