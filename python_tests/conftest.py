"""No test fails on time: neither an example of hypothesis nor the making of its input has a limit."""

from hypothesis import HealthCheck, settings

settings.register_profile("no limits of time", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no limits of time")
