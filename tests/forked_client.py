"""What ``forked.interpreter()`` runs: it has a process forked, and waits for its end."""

import array
import json
import os
import signal
import socket
import sys

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
task = {"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
connection.sendmsg([b" "], streams)
connection.sendall(json.dumps(task).encode() + b"\n")
for number, sent in (
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGHUP, signal.SIGHUP),
    (signal.SIGUSR1, signal.SIGUSR1),
    (signal.SIGUSR2, signal.SIGKILL),
):
    signal.signal(number, lambda _number, _frame, sent=sent: connection.send(bytes([sent])))
answer = b""
while not answer.endswith(b"\n"):
    received = connection.recv(64)
    if not received:
        sys.exit("the server of tests/forked.py has ended")
    answer += received
code = int(answer)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
