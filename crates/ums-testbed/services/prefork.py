"""A server that forks its workers before it answers, as gunicorn does.

The workers accept on one socket that they have inherited, compare what they hold, and tell their parent
by pipes that they live; one that ends or is silent is damage. The parent has the processes of a
multiprocessing pool compute what it knows.
"""

import hashlib
import http.server
import multiprocessing
import multiprocessing.shared_memory
import os
import random
import select
import signal
import socket
import socketserver
import threading
import time

WORKERS = 4
POOL = 2
BLOCKS = 2000

# Seconds.
HEARTBEAT = 0.2
SILENCE_MAX = 30

checks = multiprocessing.Value("Q", 0)
bad = multiprocessing.Value("Q", 0)
answered = multiprocessing.Value("Q", 0)


def count(value):
    with value.get_lock():
        value.value += 1
        return value.value


def block(index):
    return hashlib.sha256(str(index).encode()).digest() * 32


def compute(index):
    return block(index)


def checksum(nonce, number):
    value = 0xCBF29CE484222325
    for byte in nonce.encode() + number.to_bytes(8, "little"):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        nonce, number = self.path[1:], count(answered)
        body = (
            f'{{"count":{number},"nonce":"{nonce}","checksum":"{checksum(nonce, number)}",'
            f'"checks":{checks.value},"bad":{bad.value}}}'
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self, listener):
        super().__init__(listener.getsockname(), Answer, bind_and_activate=False)
        self.socket = listener


def live(held, shared, heartbeat):
    """Compares some blocks, and tells the parent that this worker lives."""
    while True:
        time.sleep(HEARTBEAT)
        for index in random.sample(range(BLOCKS), 50):
            if held[index] != block(index):
                count(bad)
            if bytes(shared.buf[index * 4 : index * 4 + 4]) != index.to_bytes(4, "little"):
                count(bad)
        count(checks)
        os.write(heartbeat, b".")


def work(listener, held, shared, heartbeat):
    threading.Thread(target=live, args=(held, shared, heartbeat), daemon=True).start()
    Server(listener).serve_forever()


def spawn(listener, held, shared):
    """Forks a worker; its process id and the end of a pipe on which it tells that it lives."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            work(listener, held, shared, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    return pid, ours


def ask(pool):
    """Has the pool's processes compute blocks, over and over."""
    while True:
        indexes = random.sample(range(BLOCKS), 20)
        for index, found in zip(indexes, pool.map(compute, indexes)):
            if found != block(index):
                count(bad)
        count(checks)
        time.sleep(0.05)


def watch(workers):
    """The parent's loop: hears its workers, and looks for ended ones."""
    heard = {pid: time.monotonic() for pid, _ in workers}
    pids = {pipe: pid for pid, pipe in workers}
    while True:
        for pipe in select.select(list(pids), [], [], 1)[0]:
            if not os.read(pipe, 4096):
                count(bad)
                del heard[pids.pop(pipe)]
            else:
                heard[pids[pipe]] = time.monotonic()
        silent = [pid for pid, at in heard.items() if time.monotonic() - at > SILENCE_MAX]
        for pid in silent:
            count(bad)
            heard[pid] = time.monotonic()


def main():
    held = [block(index) for index in range(BLOCKS)]
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=BLOCKS * 4)
    for index in range(BLOCKS):
        shared.buf[index * 4 : index * 4 + 4] = index.to_bytes(4, "little")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 8080))
    listener.listen(128)
    workers = [spawn(listener, held, shared) for _ in range(WORKERS)]
    pool = multiprocessing.get_context("fork").Pool(POOL)
    threading.Thread(target=ask, args=(pool,), daemon=True).start()
    watch(workers)


if __name__ == "__main__":
    main()
