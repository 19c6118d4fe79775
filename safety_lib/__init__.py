"""The closed loop of agent safety: stress test, regression tests, release gate, incident replay."""

__version__ = "0.1.0"
