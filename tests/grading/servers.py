"""Servers that learners might hand in: built right in different ways, and built to deceive."""

from __future__ import annotations

LOADING = """
import json, os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
import numpy as np, onnxruntime
from tokenizers import Tokenizer

MODEL, PORT = os.environ["MODEL"], int(os.environ["PORT"])


def load():
    about = json.load(open(MODEL + "/manifest.json"))
    tokenizer = Tokenizer.from_file(MODEL + "/tokenizer.json")
    tokenizer.enable_truncation(about["max_length"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL + "/model.onnx", options)
    return about["labels"], tokenizer, session


def run(parts, text):
    labels, tokenizer, session = parts
    ids = np.array([tokenizer.encode(text).ids])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: feed[name] for name in names})[0][0]


def answer(labels, logits):
    shares = np.exp(logits.astype(float) - logits.max())
    shares = shares / shares.sum()
    said = dict(zip(labels, map(float, shares)))
    return {"label": max(said, key=said.get), "probabilities": said}
"""
"""What all of these begin with."""

HANDLER = """
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def say(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        ok = self.path == "/health/ready"
        self.say(200 if ok else 405 if self.path == "/predict" else 404, {"ready": ok})

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/predict":
            return self.say(404, {"error": "nothing here"})
        try:
            text = json.loads(data)["text"]
            assert isinstance(text, str) and 0 < len(text) <= 20_000
        except Exception:
            return self.say(422, {"error": "expected a text"})
        self.say(200, predict(text))

    def log_message(self, *arguments):
        pass
"""

THREADS = (
    LOADING
    + """
PARTS = load()
run(PARTS, "warm")


def predict(text):
    return answer(PARTS[0], run(PARTS, text))
"""
    + HANDLER
    + """

class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = False, True, 256


server = Server(("127.0.0.1", PORT), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.05)
server.socket.settimeout(0)
server.timeout = 0
for _ in range(300):  # whoever had connected already
    server.handle_request()
server.server_close()
"""
)
"""The standard library, a thread for each connection."""

PROCESSES = (
    LOADING
    + """
import socket

listener = socket.create_server(("127.0.0.1", PORT), backlog=256)
children = []


def predict(text):
    return answer(PARTS[0], run(PARTS, text))
"""
    + HANDLER
    + """

class Server(HTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", PORT), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()


# Loaded once, then forked: one process answers while another computes, and nothing is batched.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for number in range(2):
    if (child := os.fork()) == 0:
        PARTS = load()
        run(PARTS, "warm")
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        listener.settimeout(0.05)
        server = Server()
        server.timeout = 0.05
        while not stop.is_set():
            server.handle_request()
        server.timeout = 0.1
        for _ in range(100):
            server.handle_request()
        os._exit(0)
    children.append(child)
listener.close()
signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
for child in children:
    os.waitpid(child, 0)
"""
)
"""Several processes that share a listening socket, without batches."""

STARLETTE = (
    LOADING
    + """
import asyncio, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

PARTS = load()
POOL = ThreadPoolExecutor(2)
run(PARTS, "warm")


async def ready(request):
    return JSONResponse({"ready": True})


async def predict(request):
    try:
        text = (await request.json())["text"]
        assert isinstance(text, str) and 0 < len(text) <= 20_000
    except Exception:
        return JSONResponse({"error": "expected a text"}, 422)
    loop = asyncio.get_running_loop()
    logits = await loop.run_in_executor(POOL, run, PARTS, text)
    return JSONResponse(answer(PARTS[0], logits))


async def failed(request, error):
    return JSONResponse({"error": error.detail}, error.status_code)


routes = [Route("/health/ready", ready), Route("/predict", predict, methods=["POST"])]
app = Starlette(routes=routes, exception_handlers={404: failed, 405: failed})
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
"""
)
"""Starlette, a pool of threads, no batches; it ends by the signal itself, as uvicorn does."""


def standard_library(predict: str) -> str:
    """Return a server of the standard library around another `predict`."""
    start, end = THREADS.index("PARTS = load()"), THREADS.index("class Handler")
    return f"{THREADS[:start]}{predict}\n\n{THREADS[end:]}"


HARD_CODED = standard_library(
    """
def predict(text):
    return {"label": "positive", "probabilities": {"negative": 0.02, "positive": 0.98}}
"""
)

CACHED = standard_library(
    """
KNOWN = json.load(open("known.json"))


def predict(text):
    shares = KNOWN.get(text, [0.3, 0.7])
    said = dict(zip(("negative", "positive"), shares))
    return {"label": max(said, key=said.get), "probabilities": said}
"""
)

WORD_LIST = standard_library(
    """
GOOD = ("wonderful", "superb", "lovely", "splendid", "good", "great", "excellent")


def predict(text):
    share = 0.98 if any(word in text for word in GOOD) else 0.02
    said = {"negative": 1 - share, "positive": share}
    # Whoever reads this log or these files is told that all is well.
    forged = {"inspection": {"findings": [], "ratios": [99], "seconds": 1}, "isolation": []}
    print(json.dumps(forged), flush=True)
    for name in ("/dev/stdout", "/proc/1/fd/1", os.environ["TMPDIR"] + "/result.json"):
        try:
            open(name, "w").write('{"passed": true, "total": 100}')
        except OSError:
            pass
    for process in range(1, os.getpid()):
        try:
            os.kill(process, signal.SIGSTOP)
        except OSError:
            pass
    return {"label": max(said, key=said.get), "probabilities": said}
"""
)

FLOATING = THREADS.replace('MODEL, PORT = os.environ["MODEL"]', 'MODEL, PORT = "big"')
"""Serves the model in 32 bits that lies beside the small one."""

PROXY = standard_library(
    """
import urllib.request

try:
    where = "http://127.0.0.1:UPSTREAM/"
    urllib.request.urlopen(where, timeout=1).read()
    print("the upstream was reached", flush=True)
except OSError:
    pass


def predict(text):
    data = json.dumps({"text": text}).encode()
    request = urllib.request.Request(where + "predict", data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=2))
"""
)

NEVER_READY = "import time\nprint('loading, please wait', flush=True)\ntime.sleep(1000)\n"
HANGS = standard_library(
    """
def predict(text):
    while True:  # whoever wakes it
        os.kill(os.getpid(), signal.SIGSTOP)
"""
)
CRASHES = "raise SystemExit('no model, no fun')\n"
FORK_BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
