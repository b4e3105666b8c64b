"""A peer that keeps a connection to each other peer, as members of a cluster do.

usage: peer.py PORT CONFIG [HOST]

Whoever connects to PORT may send lines: "ping" is answered with "pong"; "ask NAME SECONDS" asks the peer NAME over the connection that
is kept to it (made at first use, and again after an error) and answers with what came, or with the error's name; "peer NAME" answers
with what getpeername(2) shows of that connection; "udp NAME TEXT SECONDS" sends a datagram there and answers with what comes back and
from where; "tell NAME TEXT" sends the peer the line "told TEXT", which nobody answers, and "heard TEXT" answers whether that line has
come here; "aim NAME" connects a datagram socket to that peer and closes it, which sends nothing; "churn N" makes that many connections that nobody takes, each from another port, and answers with how many were refused. Where the peers are stands in CONFIG, a line each: NAME HOST PORT (where NAME ends with "only", by a socket that speaks IPv6 alone), and in variables of the environment: PEER_name=HOST:PORT.
Datagrams are sent back as they come.
"""
import errno
import os
import socket
import sys
import threading

port, config = int(sys.argv[1]), sys.argv[2]
peers = {}
for line in open(config):
    name, host, number = line.split()
    peers[name] = (host, int(number))
for variable, value in os.environ.items():
    if variable.startswith("PEER_"):
        host, number = value.rsplit(":", 1)
        peers[variable.removeprefix("PEER_")] = (host, int(number))
kept = {}
told = set()


def name_of(error):
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    return errno.errorcode.get(error.errno, str(error)) if error.errno else str(error)


def dial(name, seconds):
    if not name.endswith("only"):
        return socket.create_connection(peers[name], timeout=seconds)
    client = socket.socket(socket.AF_INET6)
    client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    client.settimeout(seconds)
    client.connect(peers[name])
    return client


def connection(name, seconds):
    if name not in kept:
        kept[name] = dial(name, seconds)
    kept[name].settimeout(seconds)
    return kept[name]


def ask(name, seconds):
    try:
        peer = connection(name, seconds)
        peer.sendall(b"ping\n")
        answer = peer.recv(100)
        if not answer:
            raise OSError("closed")
        # More than one, if an earlier one came late.
        return answer.decode().split()[0]
    except TimeoutError:
        # The connection is kept: whether it comes back is the question.
        return "ETIMEDOUT"
    except OSError as error:
        if name in kept:
            kept.pop(name).close()
        return name_of(error)


def tell(name, text):
    try:
        connection(name, 5).sendall(f"told {text}\n".encode())
        return "sent"
    except OSError as error:
        return name_of(error)


def datagram(name, text, seconds):
    host, number = peers[name]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(seconds)
        try:
            sender.sendto(text.encode(), (host, number))
            answer, source = sender.recvfrom(100)
            return f"{answer.decode()} from {source[1]}"
        except OSError as error:
            return name_of(error)


def refused(port):
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            client.bind(("127.0.0.1", port))
        except OSError:
            # Somebody has it.
            return False
        return client.connect_ex(("127.0.0.1", 1)) == errno.ECONNREFUSED


def answer(words):
    if words == ["ping"]:
        return "pong"
    if words[0] == "ask":
        return ask(words[1], float(words[2]))
    if words[0] == "peer":
        try:
            return "%s %s" % connection(words[1], 5).getpeername()[:2]
        except OSError as error:
            return name_of(error)
    if words[0] == "tell":
        return tell(words[1], words[2])
    if words[0] == "heard":
        return "yes" if words[1] in told else "no"
    if words[0] == "aim":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(peers[words[1]])
        return "done"
    if words[0] == "churn":
        return str(sum(refused(port) for port in range(30000, 30000 + int(words[1]))))
    if words[0] == "udp":
        return datagram(words[1], words[2], float(words[3]))
    return "what?"


def serve(client):
    # Not opened for both: what has been read ahead would be lost with each answer.
    with client, client.makefile("r") as lines:
        for line in lines:
            words = line.split()
            if words[0] == "told":
                told.add(words[1])
                continue
            client.sendall((answer(words) + "\n").encode())


def echo(listener):
    while True:
        data, source = listener.recvfrom(100)
        listener.sendto(data, source)


# Before anybody can connect: whoever can is ready for datagrams, too.
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", port))
threading.Thread(target=echo, args=(datagrams,), daemon=True).start()
host = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
if host == "::":
    listener = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
else:
    listener = socket.create_server((host, port))
while True:
    client, _ = listener.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
