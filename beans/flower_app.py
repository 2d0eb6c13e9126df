"""The Celery application for Flower: `python -m celery -A beans.flower_app flower ...`.

Its settings come from TRELLIS_CONFIG or variables, like those of any process; the broker user in
them is the operators' (`broker.definitions.OPS_USER`), which alone may use Celery's remote control.
"""

import os

from beans.app import leave_event_exchange, make_onlooker_app
from facade.contract.settings import load

leave_event_exchange()
app = make_onlooker_app(load(None, os.environ))
