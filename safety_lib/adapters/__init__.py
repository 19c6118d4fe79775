"""Adapters: thin layers that turn somebody's own agent into a target.

:mod:`safety_lib.adapters.callables`
    a Python callable, sync or async;
:mod:`safety_lib.adapters.over_http`
    an agent behind an HTTP endpoint of its own shape;
:mod:`safety_lib.adapters.recorder`
    an agent that runs its tools out of sight, heard through a proxy before its model;
:mod:`safety_lib.adapters.dojo`
    the suites of AgentDojo as worlds, with their own checks (``agentdojo``, an extra).
"""
