import os, sys, time

last = None
while True:
    try:
        with open(sys.argv[1], "w") as f:
            f.write("x")
            f.flush()
        now = "ok"
    except OSError as e:
        now = f"{type(e).__name__} {e.errno}"
    if now != last:
        print(now, flush=True)
    last = now
    time.sleep(0.001)
