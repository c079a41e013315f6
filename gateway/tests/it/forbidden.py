"""In a network of its own that holds the addresses a gateway must never call: tries every spelling of them, and says
how many connections came.

    unshare --user --map-root-user --net --mount python3 forbidden.py HIVE_GATEWAY FOLDER
"""

import ctypes, fcntl, ipaddress, json, os, socket, struct, subprocess, sys, threading, time, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

V4 = ["169.254.169.254", "169.254.0.1", "100.100.100.200"]
V6 = ["64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd00:ec2::254", "::a9fe:a9fe"]
URLS = [
    "http://169.254.169.254", "http://169.254.169.254:80/", "http://169.254.169.254.", "http://169.254.0.1:80",
    "http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376", "http://169.254.43518", "http://169.16689662",
    "http://0xa9.0xfe.0xa9.0xfe:80", "http://[::ffff:169.254.169.254]", "http://[::ffff:a9fe:a9fe]:80",
    "http://[::169.254.169.254]:80", "http://[64:ff9b::169.254.169.254]:80", "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:a9fe:a9fe::1]:80", "http://[fd00:ec2::254]:80", "http://100.100.100.200:80", "http://0.0.0.0:80",
    "http://[::]:80", "http://metadata.test", "http://metadata.test.:80", "http://six.test", "http://METADATA.test",
    "http://user@169.254.169.254/", "http://169.254.169.254#@127.0.0.1/", "http://127.0.0.1@169.254.169.254/",
    "http:\\\\169.254.169.254", "http://①⑥⑨.254.169.254", "http://169。254。169。254",
]
gateway, folder = sys.argv[1:]
connects = []


def interface(lo):
    """Brings the loopback interface up and gives it the addresses (netdevice(7))."""
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(four, 0x8914, struct.pack("16sh14x", lo, 0x49))  # SIOCSIFFLAGS, IFF_UP
    for number, address in enumerate(V4):
        name = lo + b":%d" % number
        packed = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(four, 0x8916, packed)  # SIOCSIFADDR
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    index = socket.if_nametoindex(lo.decode())
    for address in V6:
        fcntl.ioctl(six, 0x8916, struct.pack("16sIi", ipaddress.ip_address(address).packed, 128, index))


def hosts(shift):
    """Whom names stand for, in this namespace alone."""
    with open(f"{folder}/hosts", "w") as file:
        file.write(f"127.0.0.1 localhost\n169.254.169.254 metadata.test\nfd00:ec2::254 six.test\n{shift} shift.test\n")


def listen(family):
    listener = socket.socket(family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("", 80))
    listener.listen()

    def count():
        while True:
            connection, _ = listener.accept()
            called = connection.getsockname()[0]
            connection.close()
            # 0.0.0.0 stands for the address a worker registers from, which is this machine's.
            if not ipaddress.ip_address(called).is_loopback:
                connects.append(called)

    threading.Thread(target=count, daemon=True).start()


class Server(BaseHTTPRequestHandler):
    """Lists a model."""

    asked = 0

    def do_GET(self):
        Server.asked += 1
        self.answer(200, json.dumps({"object": "list", "data": [{"id": "x"}]}).encode())

    def answer(self, status, body, *headers):
        self.send_response(status)
        for name, value in (*headers, ("content-type", "application/json"), ("content-length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Lure(Server):
    def do_GET(self):
        self.answer(302, b"", ("location", "http://169.254.169.254/v1/models"))


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def ask(path, body, key):
    request = urllib.request.Request(run["control_url"] + "/control/v1" + path, json.dumps(body).encode())
    request.add_header("authorization", "Bearer " + key)
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(what, look):
    end = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


interface(b"lo")
hosts("127.0.0.1")
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(f"{folder}/hosts".encode(), b"/etc/hosts", None, 4096, None) == 0, os.strerror(ctypes.get_errno())  # MS_BIND
listen(socket.AF_INET), listen(socket.AF_INET6)
reached = [socket.create_connection((address, 80)).getpeername()[0] for address in V4 + V6[:3] + ["metadata.test"]]
until("the listeners count", lambda: len(connects) == len(reached))
connects.clear()
listing, luring = serve(Server), serve(Lure)

environment = {
    "HIVE_GATEWAY__REGISTRY__ALLOWED_CIDRS": '["0.0.0.0/0", "::/0"]',
    "HIVE_GATEWAY__REGISTRY__PROBE_INTERVAL": "50ms",
}
flags = ["--home", f"{folder}/home", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]
process = subprocess.Popen([gateway, *flags], env=environment, stderr=open(f"{folder}/log", "w"))
try:
    mark = f"{folder}/home/run/gateway.json"
    until("the gateway runs", lambda: os.path.exists(mark))
    run = json.load(open(mark))
    admin = open(f"{folder}/home/keys/admin").read().strip()
    registration = {
        "model": "m", "dispatch_token": "t" * 32, "device": "cpu", "slots": 1, "pid": 1, "host": "h", "version": "0",
        "state": "ready", "facts": {},
    }
    taken = []
    for url in URLS:
        status, _ = ask("/workers", {"url": url, "models": ["x"]}, admin)
        _, made = ask("/join-tokens", {}, admin)
        joined, _ = ask("/workers/register", {"id": "a", "url": url, **registration}, made["token"])
        taken += [url for answer in (status, joined) if answer < 400]
    lured, _ = ask("/workers", {"url": f"http://127.0.0.1:{luring}", "models": ["x"]}, admin)
    shifted, _ = ask("/workers", {"url": f"http://shift.test:{listing}", "id": "shift"}, admin)
    hosts("169.254.169.254")
    asked = Server.asked
    until("the attached server is probed on", lambda: Server.asked > asked + 5)
    print(json.dumps({
        "tried": len(URLS), "reachable": len(reached), "taken": taken, "lured": lured, "shifted": shifted, "connects": connects,
    }))
finally:
    process.terminate()
    process.wait()
