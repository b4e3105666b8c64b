# One round of calls for each line on the control connection; answers with the errno of each.
# argv: control port, another port.
import os, socket, sys

control = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
lines = control.makefile("r")
os.mkdir("data")
os.symlink("data", "alias")
file = os.open("data/file", os.O_CREAT | os.O_RDWR)
_, pipe = os.pipe()


def outcome(call):
    try:
        call()
        return 0
    except OSError as e:
        return e.errno


def touch(name):
    try:
        with open(name, "x"):
            pass
    except FileExistsError:
        pass


def connect(family, address):
    with socket.socket(family) as s:
        s.connect(address)


def clean(path, remove):
    try:
        remove(path)
    except FileNotFoundError:
        pass


for _ in lines:
    for path in ["data/new", "data/second"]:
        clean(path, os.unlink) if outcome(lambda: os.lstat(path)) == 0 else None
    clean("data/made", os.rmdir)
    touch("data/old")
    touch("data/gone")
    port = int(sys.argv[2])
    results = {
        "file": outcome(lambda: os.write(file, b"x")),
        "pipe": outcome(lambda: os.write(pipe, b"x")),
        "rename": outcome(lambda: os.rename("data/old", "alias/new")),
        "unlink": outcome(lambda: os.unlink("data/gone")),
        "stat": outcome(lambda: os.stat("alias/file")),
        "connect": outcome(lambda: connect(socket.AF_INET, ("127.0.0.1", port))),
        "connect2": outcome(lambda: connect(socket.AF_INET6, ("::ffff:127.0.0.1", port))),
        "link": outcome(lambda: os.link("data/file", "data/second")),
        "mkdir": outcome(lambda: os.mkdir("alias/made")),
    }
    control.sendall((" ".join(f"{k}={v}" for k, v in results.items()) + "\n").encode())
