"""Health for probes and for Prometheus: a small HTTP server, and a heartbeat file.

`serve_health` runs in the event loop of the dispatcher, `serve_health_in_thread` beside a blocking program.
"""

from dispytch._runtime.health import ConsumerHealth, Health
from dispytch.health.heartbeat import Heartbeat, keep_heartbeat
from dispytch.health.reports import Report, Source, liveness, readiness
from dispytch.health.server import HealthServer, serve_health
from dispytch.health.threads import HealthThread, serve_health_in_thread

__all__ = [
    "ConsumerHealth",
    "Health",
    "HealthServer",
    "HealthThread",
    "Heartbeat",
    "Report",
    "Source",
    "keep_heartbeat",
    "liveness",
    "readiness",
    "serve_health",
    "serve_health_in_thread",
]
