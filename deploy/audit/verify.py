#!/usr/bin/env python3
"""Verifies a Hive audit journal without Hive: Python's standard library and one signature library.

    pip install cryptography        # or: pip install pynacl
    python3 verify.py --dir audit [--pubkey journal.pub] [--anchors FILE [--witness witness.pub]] [--json]
    python3 verify.py --proof proof.json --pubkey journal.pub

Exit code 0 intact, 1 altered, 2 missing, 3 unsigned tail, 4 unreadable, 64 usage. The same verdicts, and the same
first bad record, as `hivectl audit verify`; not a line of code is shared.
"""
import argparse
import base64
import glob
import hashlib
import json
import os
import re
import sys

LONGEST = 1 << 20  # bytes of a line
VERDICTS = {"intact": 0, "altered": 1, "missing": 2, "unsigned": 3, "unreadable": 4}
HEX64 = re.compile(r"[0-9a-f]{64}\Z")


class Found(Exception):
    """A verdict other than intact, and where."""

    def __init__(self, verdict, at, reason, through=None):
        super().__init__(reason)
        self.verdict, self.at, self.reason = verdict, at, reason
        self.through = at if through is None else through


def sha(data):
    return hashlib.sha256(data).digest()


def leaf(line):
    return sha(b"\0" + line)


def node(left, right):
    return sha(b"\1" + left + right)


def unhex(text):
    return bytes.fromhex(text) if isinstance(text, str) and HEX64.match(text) else None


def unbase64(text):
    """The bytes of their one spelling in base64, or None."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if base64.b64encode(data).decode() == text else None


class Frontier:
    """The roots of the full subtrees of the lines so far (RFC 6962), the largest first."""

    def __init__(self, size=0, peaks=()):
        self.size, self.peaks = size, list(peaks)

    def push(self, line):
        hash_, size = leaf(line), self.size
        while size & 1:
            hash_, size = node(self.peaks.pop(), hash_), size >> 1
        self.peaks.append(hash_)
        self.size += 1

    def root(self):
        if not self.peaks:
            return sha(b"")
        hash_ = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            hash_ = node(peak, hash_)
        return hash_


def ed25519(key):
    """A function (signature, message) -> whether the key signed it."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        public = Ed25519PublicKey.from_public_bytes(key)
        refusals, check = (InvalidSignature,), public.verify
    except ImportError:
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        public = VerifyKey(key)
        refusals, check = (BadSignatureError, ValueError), lambda signature, text: public.verify(text, signature)

    def good(signature, text):
        try:
            check(signature, text)
            return True
        except refusals:
            return False

    return good


class PublicKey:
    def __init__(self, path, kind=1):
        try:
            with open(path, encoding="utf-8") as file:
                self.name, given, key = file.read().strip().split("+", 2)
        except (OSError, ValueError) as error:
            raise Found("unreadable", None, f"{path}: {error}") from None
        key = unbase64(key) or b""
        self.id = sha(self.name.encode() + b"\n" + key)[:4]
        if len(key) != 33 or key[0] != kind or self.id.hex() != given or not self.name:
            raise Found("unreadable", None, f"{path}: it must look like NAME+ID+KEY")
        self.signed = ed25519(key[1:])

    def signature(self, signatures):
        """This key's signature among those of a note, or None."""
        for line in signatures.split("\n"):
            name, _, signature = line.removesuffix("\r").removeprefix("\u2014 ").partition(" ")
            signature = unbase64(signature) if line.startswith("\u2014 ") and name == self.name else None
            if signature is not None and signature[:4] == self.id:
                return signature[4:]
        return None

    def saw(self, note):
        """Whether this witness cosigned the note (C2SP tlog-cosignature)."""
        text, _, signatures = note.partition("\n\n")
        timed = self.signature(signatures)
        at = int.from_bytes((timed or b"")[:8], "big")
        return timed is not None and self.signed(timed[8:], f"cosignature/v1\ntime {at}\n{text}\n".encode())

    def open(self, note):
        """(size, root) of a signed checkpoint; None if it is not one that this key signed."""
        text, gap, signatures = note.partition("\n\n")
        lines = text.split("\n")
        if not gap or len(lines) != 3 or lines[0] != self.name or not re.match(r"(0|[1-9][0-9]*)\Z", lines[1]):
            return None
        root = unbase64(lines[2])
        signature = self.signature(signatures) if root is not None and len(root) == 32 else None
        good = signature is not None and self.signed(signature, (text + "\n").encode())
        return (int(lines[1]), root) if good else None


def split_notes(text):
    """The notes in a text, and what follows the last whole one."""
    notes, rest = [], text
    while True:
        match = re.match("(?s).*?\n\n(?:\u2014 [^\n]*\n)+", rest)
        gap = rest.find("\n\n")
        if not match or not rest[gap + 2:].startswith("\u2014 "):
            return notes, rest
        notes.append(match[0])
        rest = rest[match.end():].lstrip("\n")


class Journal:
    """The lines of the segments, one after the other, and the one that comes next."""

    def __init__(self, folder, numbers):
        self.rows, self.ahead = self.read(folder, numbers), []

    @staticmethod
    def read(folder, numbers):
        for number in numbers:
            with open(os.path.join(folder, f"{number:06}.jsonl"), "rb") as file:
                for line in iter(lambda: file.readline(LONGEST), b""):
                    yield number, line.removesuffix(b"\n"), line.endswith(b"\n")

    def next(self):
        return self.ahead.pop() if self.ahead else next(self.rows, None)

    def peek(self):
        if not self.ahead:
            row = next(self.rows, None)
            if row is None:
                return None
            self.ahead.append(row)
        return self.ahead[-1]


class Pairs(list):
    """The names and values of an object, in their order."""


def refuse(text):
    raise ValueError(text)


def parse(line):
    """The fields that hold the journal together, or None."""
    try:
        pairs = json.loads(line.decode("utf-8"), object_pairs_hook=Pairs, parse_constant=refuse)
        fields = [pair for pair in pairs if pair[0] in ("seq", "prev", "kind", "first")]
        record = dict(fields)
        whole = lambda n: type(n) is int and 0 <= n < 1 << 64
        texts = (record["prev"].encode(), record["kind"].encode())
        good = type(pairs) is Pairs and len(fields) == len(record) and all(type(text) is bytes for text in texts)
        first = record.get("first")
        return record if good and whole(record["seq"]) and (first is None or whole(first)) else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def is_canonical(line):
    """Whether a line is spelled as RFC 8785 says, without fractions, and not nested too deep for other readers."""

    def ordered(pairs):
        names = [name.encode("utf-16-be") for name, _ in pairs]
        return dict(pairs) if all(a < b for a, b in zip(names, names[1:])) else refuse(pairs)

    def exact(text):
        return int(text) if len(text) < 18 and abs(int(text)) < 1 << 53 else refuse(text)

    def depth(value):
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inside is None else 1 + max(map(depth, inside), default=0)

    try:
        value = json.loads(
            line.decode("utf-8"), object_pairs_hook=ordered, parse_int=exact, parse_float=refuse, parse_constant=refuse
        )
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() == line and depth(value) < 128
    except (ValueError, RecursionError):
        return False


class Verifier:
    def __init__(self):
        self.frontier, self.prev, self.before_prev = Frontier(), bytes(32), None
        self.first = self.segment_first = self.signed = self.pruned = self.agreed = self.before = 0
        self.own, self.anchors, self.origin, self.place = [], [], "", None
        self.is_last, self.orphan = False, None

    def verify(self, args):
        folder = args.dir
        try:
            os.listdir(folder)
            numbers = self.numbers(folder, "jsonl")
            self.key = PublicKey(args.pubkey or os.path.join(folder, "journal.pub"))
            self.origin = self.key.name
            if args.anchors:
                self.read_anchors(args.anchors, args.witness)
            numbers = self.starting_at(folder, numbers, args.start)
            if not numbers and not self.anchors:
                raise Found("unreadable", None, f"{folder}: there is no journal")
            self.orphan = numbers and self.orphaned(folder, numbers[-1])
            self.segments(folder, numbers, args)
        except (OSError, UnicodeDecodeError) as error:
            raise Found("unreadable", None, str(error)) from None

    @staticmethod
    def numbers(folder, ending):
        """The segments that have such a file, by names as the gateway spells them."""
        files = glob.glob(os.path.join(glob.escape(folder), f"*.{ending}"))
        names = [os.path.basename(file).removesuffix(f".{ending}") for file in files]
        ours = [name for name in names if re.match(r"[0-9]{6,20}\Z", name) and f"{int(name):06}" == name]
        return sorted(number for number in map(int, ours) if number < 1 << 64)

    @staticmethod
    def notes(folder, number):
        path = os.path.join(folder, f"{number:06}.notes")
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            return split_notes(file.read())[0]

    def orphaned(self, folder, last):
        """A segment whose checkpoints are there and whose lines are gone."""
        behind = [number for number in self.numbers(folder, "notes") if number > last]
        return next((number for number in behind if self.notes(folder, number)), None)

    def read_anchors(self, path, witness):
        witness = witness and PublicKey(witness, kind=4)
        with open(path, encoding="utf-8", newline="\n") as file:
            notes, rest = split_notes(file.read())
        if not notes or rest.strip():
            raise Found("unreadable", None, f"{path}: it must hold signed checkpoints and nothing else")
        self.anchors = [self.key.open(note) for note in notes]
        if witness and not all(witness.saw(note) for note in notes):
            raise Found("altered", None, f"an anchor in {path} is not signed by the witness")
        if None in self.anchors:
            raise Found("altered", None, f"an anchor in {path} is not signed by this journal's key")
        self.anchors.sort(key=lambda anchor: anchor[0], reverse=True)

    @staticmethod
    def head(folder, number):
        with open(os.path.join(folder, f"{number:06}.head"), encoding="utf-8", newline="\n") as file:
            text = file.read()
        head = json.loads(text)
        head = {name: head[name] for name in ("first", "peaks", "prev", "checkpoint")}
        if json.dumps(head, separators=(",", ":"), ensure_ascii=False) != text:
            raise ValueError("it is not spelled as it was written")
        peaks = [unhex(peak) for peak in head["peaks"]]
        prev, size = unhex(head["prev"]), head["first"]
        whole = type(size) is int and 0 <= size < 1 << 64 and type(head["checkpoint"]) is str
        if None in peaks or prev is None or not whole or len(peaks) != bin(size).count("1"):
            raise ValueError("it is malformed")
        return head, Frontier(size, peaks), prev

    def starting_at(self, folder, numbers, start):
        if start is None:
            return numbers
        for place in reversed(range(len(numbers))):
            try:
                if self.head(folder, numbers[place])[1].size <= start:
                    return numbers[place:]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return numbers

    def segments(self, folder, numbers, args):
        for place, number in enumerate(numbers):
            if place and numbers[place - 1] + 1 != number:
                raise Found("missing", self.frontier.size, f"segment {numbers[place - 1] + 1:06} is not there")
            self.begin(folder, number, place == 0)
            self.is_last = place + 1 == len(numbers)
            rows = Journal(folder, numbers[place:])
            while (row := rows.next()) is not None and row[0] == number:
                _, line, ended = row
                if not ended and self.is_last and rows.peek() is None:
                    return self.end(len(line), args.start)
                try:
                    self.row(line, ended, rows)
                except Found as found:
                    if found.at is not None and found.at >= self.segment_first:
                        self.place = f"{number:06}.jsonl:{found.at - self.segment_first + 1}"
                    raise
                if args.to is not None and self.signed > args.to:
                    return None
        return self.end(0, args.start)

    def begin(self, folder, number, first):
        at, name = self.frontier.size, f"{number:06}.head"
        try:
            head, frontier, prev = self.head(folder, number)
        except FileNotFoundError:
            raise Found("missing", at, f"{name} is not there") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Found("altered", at, f"{name}: {error}") from None
        if first:
            self.first = self.signed = frontier.size
            self.frontier, self.prev = frontier, prev
        elif frontier.size > at:
            raise Found("altered", at, f"the records up to {frontier.size - 1} are not there")
        at = self.segment_first = self.frontier.size
        if at:
            checkpoint = self.key.open(head["checkpoint"])
            if checkpoint is None or checkpoint[0] != at:
                raise Found("altered", at, f"the checkpoint in {name} is not of this place and key")
            self.covered(checkpoint, None)
        elif head["checkpoint"] != "":
            raise Found("altered", at, f"{name} does not fit what came before")
        if (frontier.size, frontier.peaks, prev) != (at, self.frontier.peaks, self.prev):
            raise Found("altered", at, f"{name} does not fit what came before")
        for note in self.notes(folder, number):
            checkpoint = self.key.open(note)
            if checkpoint is None or checkpoint[0] < at:
                raise Found("altered", at, f"{number:06}.notes holds a checkpoint that is not of this place and key")
            self.own.append(checkpoint)
        self.own.sort(key=lambda checkpoint: checkpoint[0], reverse=True)
        if first:
            self.before = sum(anchor[0] < at for anchor in self.anchors)
            self.anchors = [anchor for anchor in self.anchors if anchor[0] >= at]
        self.checkpoints(None)

    def row(self, line, ended, rows):
        at, record = self.frontier.size, parse(line) if ended else None
        # Of what follows the last checkpoint, nothing signed says that it was written so.
        vouched = not self.is_last or self.own or self.anchors
        if record is None or not (vouched or is_canonical(line)):
            raise Found("altered", at, "it is no record")
        if record["seq"] != at or unhex(record["prev"]) != self.prev:
            self.broken(record, line, rows)
        if record["kind"] == "audit.prune":
            self.pruned = max(self.pruned, record.get("first") or 0)
        self.before_prev, self.prev = self.prev, sha(line)
        self.frontier.push(line)
        self.checkpoints(rows)

    def broken(self, record, line, rows):
        """Which of two neighbours that do not fit is the bad one."""
        at, prev, hash_ = self.frontier.size, unhex(record["prev"]), sha(line)
        may_be_before = at > self.signed
        if record["seq"] != at:
            inserted = hash_ != self.prev and record["seq"] + 1 == at and prev is not None and prev == self.before_prev
            if may_be_before and inserted:
                raise Found("altered", at - 1, "it was inserted")
            raise Found("altered", at, f"record {record['seq']} stands in its place")
        following = rows.peek()
        following = following and parse(following[1])
        if following:
            good = unhex(following["prev"]) == hash_
        else:
            wrong = f'"prev":"{record["prev"]}"'.encode()
            good = not self.is_signed(line.replace(wrong, f'"prev":"{self.prev.hex()}"'.encode(), 1))
        if may_be_before and good:
            raise Found("altered", at - 1, "the next record holds another hash of it")
        raise Found("altered", at, "it does not hold the hash of the record before")

    def is_signed(self, line):
        frontier = Frontier(self.frontier.size, self.frontier.peaks)
        frontier.push(line)
        return (frontier.size, frontier.root()) in self.own + self.anchors

    def checkpoints(self, rows):
        at = self.frontier.size
        while self.own and self.own[-1][0] <= at:
            self.covered(self.own.pop(), rows)
        while self.anchors and self.anchors[-1][0] <= at:
            self.covered(self.anchors.pop(), rows)
            self.agreed += 1

    def covered(self, checkpoint, rows):
        at = self.frontier.size
        if checkpoint[1] == self.frontier.root():
            self.signed = at
            return
        last = max(at - 1, 0)
        following = rows and rows.peek()
        following = following and parse(following[1])
        if following and unhex(following["prev"]) == self.prev:
            reason = "it was changed and the chain made to fit again: the root is not the signed one"
            raise Found("altered", min(self.signed, last), reason, last)
        raise Found("altered", last, "the root over it and all before is not the signed one")

    def end(self, torn, start):
        at = self.frontier.size
        if self.own:
            raise Found("missing", at, f"{self.own[0][0]} records were signed, {at} are there")
        if self.anchors:
            raise Found("missing", at, f"an anchor counts {self.anchors[0][0]} records, {at} are there")
        if self.orphan:
            raise Found("missing", at, f"{self.orphan:06}.notes is there, and {self.orphan:06}.jsonl is not")
        if start is not None and start > at:
            raise Found("missing", at, f"record {start} was to be the first, {at} are there")
        if start is None and self.first > self.pruned:
            raise Found("missing", self.pruned, f"the records before {self.first} are gone, and no record says why")
        if at > self.signed:
            raise Found("unsigned", self.signed, f"{at - self.signed} records follow the last checkpoint")
        if torn:
            raise Found("unsigned", at, f"{torn} bytes of a torn line follow the last record")


def proved(path, key):
    """The record of a proof that `hivectl audit prove` wrote, if it lies under a root that the key signed."""
    try:
        with open(path, encoding="utf-8") as file:
            proof = json.load(file)
        record, at, note, beside = (proof[name] for name in ("record", "seq", "checkpoint", "path"))
        whole = isinstance(at, int) and not isinstance(at, bool) and 0 <= at < 1 << 64
        if not whole or not all(isinstance(text, str) for text in [record, note, *beside]):
            raise ValueError("it is malformed")
        hash_, beside = leaf(record.encode()), [unhex(text) for text in beside]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Found("unreadable", None, f"{path}: {error}") from None
    checkpoint = key.open(note)
    if checkpoint is None or None in beside:
        raise Found("altered", at, "its checkpoint is not signed by this journal's key")
    # RFC 9162, section 2.1.3.2.
    last = checkpoint[0] - 1
    good = at <= last
    for other in beside:
        good = good and last > 0
        if at & 1 or at == last:
            hash_ = node(other, hash_)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            hash_ = node(hash_, other)
        at, last = at >> 1, last >> 1
    if not good or last or hash_ != checkpoint[1]:
        raise Found("altered", proof["seq"], "it does not lead to the signed root")
    return record


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def main():
    parser = Parser(description="Verify a Hive audit journal.")
    parser.add_argument("--dir", help="the journal's folder")
    parser.add_argument("--pubkey", help="the public key's file [default: journal.pub in the folder]")
    parser.add_argument("--anchors", help="checkpoints that were kept elsewhere")
    parser.add_argument("--witness", help="the public key of the machine that kept them, which signed each")
    parser.add_argument("--from", dest="start", type=int, help="the first record to look at")
    parser.add_argument("--to", type=int, help="the last record to look at")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--proof", help="check one record's proof instead")
    args = parser.parse_args()
    if not args.dir and not (args.proof and args.pubkey):
        parser.error("--dir is missing, or --proof and --pubkey")
    if args.witness and not args.anchors:
        parser.error("--witness needs --anchors")
    if None not in (args.start, args.to) and args.start > args.to:
        parser.error("--from must not be beyond --to")
    if args.proof:
        try:
            print(proved(args.proof, PublicKey(args.pubkey or os.path.join(args.dir, "journal.pub"))))
        except Found as found:
            print(f"{found.verdict}: {found.reason}")
            sys.exit(VERDICTS[found.verdict])
        return
    verifier, found = Verifier(), None
    try:
        verifier.verify(args)
    except Found as error:
        found = error
    verdict = found.verdict if found else "intact"
    report = {
        "result": verdict,
        "exit_code": VERDICTS[verdict],
        "origin": verifier.origin,
        "first": verifier.first,
        "records": verifier.frontier.size - verifier.first,
        "signed": verifier.signed,
        "root": verifier.frontier.root().hex(),
        "anchors": verifier.agreed,
        "anchors_before": verifier.before,
        "first_bad": found.at if found else None,
        "through": found.through if found else None,
        "place": verifier.place,
        "reason": found.reason if found else None,
    }
    if args.json:
        print(json.dumps(report))
    elif found:
        where = "" if found.at is None else f" at record {found.at}"
        print(f"{verdict}{where}{f' ({verifier.place})' if verifier.place else ''}: {found.reason}")
    else:
        print(f"intact: {report['records']} records, root {report['root']}")
    sys.exit(VERDICTS[verdict])


if __name__ == "__main__":
    main()
