#!/usr/bin/env python3
"""Makes the golden cases of files in unusual form: longer than their headers' first look, in another
order, damaged or laid out otherwise. As make.py: standard library, and gcc where found; expected
values come from the specification that a file was made by. Run it in this folder, after make.py.
"""
import binascii, io, json, os, shutil, struct, subprocess, tempfile, zipfile, zlib

HERE = os.path.dirname(os.path.abspath(__file__))
PAD = bytes((i * 37 + 11) % 31 | 0x80 for i in range(700))


def case(carver, name, data, rows, counts=None):
    with open(os.path.join(HERE, carver, name + ".in"), "wb") as f:
        f.write(data)
    with open(os.path.join(HERE, carver, name + ".json"), "w") as f:
        json.dump({"options": {}, "rows": rows, "counts": counts or {}}, f, indent=1)
        f.write("\n")


def artifact(kind, data, at=len(PAD), **kw):
    return dict(row="artifact", kind=kind, offset=at, len=len(data), crc32=binascii.crc32(data), **kw)


def one(carver, name, data, complete=True, rest=b"", **kw):
    """A file between two stretches of nothing; `rest` lies behind what belongs to it."""
    row = artifact(kw.pop("kind", carver), data, complete=complete, **kw)
    case(carver, name, PAD + data + rest + PAD, [row])


def made(path):
    """The file in a case that make.py made."""
    with open(os.path.join(HERE, path), "rb") as f:
        b = f.read()
    assert b.startswith(PAD) and b.endswith(PAD)
    return b[len(PAD):-len(PAD)]


def pe(symbols=b"", overlay=b"", cert=b"", checksum=False, sections=2, machine=0x8664, debug=b""):
    """Microsoft's "PE Format": sections of 512 bytes at 512, then symbols, debug data, overlay, certificates."""
    raw = 512
    end = 512 + raw * sections
    tail, at_symbols, at_debug = b"", 0, 0
    if symbols:
        at_symbols, tail = end, symbols
    if debug:
        at_debug = end + len(tail)
        tail += debug
    tail += overlay
    tail += bytes(-(end + len(tail)) % 8) if cert else b""
    at_cert = end + len(tail)
    tail += cert
    dirs = [(0, 0)] * 16
    if cert:
        dirs[4] = (at_cert, len(cert))
    first = bytearray(b"\xc3" * raw)
    if debug:
        dirs[6] = (0x1000, 28)
        first[:28] = struct.pack("<IIHHIIII", 0, 0, 0, 0, 2, len(debug), 0, at_debug)
    opt = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 14, 0, raw, 0, 0, 0x1000, 0x1000, 0x140000000, 0x1000, 512, 6, 0, 0, 0, 6, 0, 0,
                      0x1000 * (sections + 1), 512, 0, 3, 0, 1 << 20, 4096, 1 << 20, 4096, 0, 16)
    opt += b"".join(struct.pack("<II", *d) for d in dirs)
    b = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0"
    b += struct.pack("<HHIIIHH", machine, sections, 0x5F000000, at_symbols, len(symbols) // 18 if symbols else 0, len(opt), 0x22) + opt
    for i in range(sections):
        b += struct.pack("<8sIIIIIIHHI", b".s%d" % i, raw, 0x1000 * (i + 1), raw, 512 + raw * i, 0, 0, 0, 0, 0x60000020)
    b = bytearray(b.ljust(512, b"\0") + bytes(first) + b"\x90" * raw * (sections - 1) + tail)
    if checksum:
        # Ones' complement sum of 16-bit words, and the length (ImageHlp's CheckSumMappedFile).
        s = sum(struct.unpack("<%dH" % (len(b) // 2), b[:len(b) // 2 * 2])) + (b[-1] if len(b) % 2 else 0)
        while s > 0xFFFF:
            s = (s & 0xFFFF) + (s >> 16)
        struct.pack_into("<I", b, 64 + 24 + 64, s + len(b))
    return bytes(b)


def programs():
    symbols = b"\x11" * 18 * 30 + struct.pack("<I", 17) + b"a_long_name\0\0"
    cert = struct.pack("<IHH", 600, 0x200, 2) + b"0" * 592
    one("pe", "symbols", pe(symbols=symbols))
    one("pe", "symbols_and_certificate", pe(symbols=symbols, cert=cert))
    one("pe", "certificate_behind_overlay", pe(overlay=b"o" * 9001, cert=cert))
    one("pe", "debug_behind_sections", pe(debug=b"RSDS" + b"d" * 300))
    one("pe", "checksum", pe(symbols=symbols, checksum=True))
    one("pe", "loongarch", pe(machine=0x6264), fields=dict(machine=0x6264))
    one("pe", "no_sections", pe(sections=0)[:512])
    changed = bytearray(pe(checksum=True))
    changed[700] ^= 1
    one("pe", "wrong_checksum", bytes(changed), complete=None, gap="its checksum is not that of these bytes")
    one("pe", "certificate_lost", pe(overlay=b"o" * 9001, cert=bytes(600))[:1536], complete=False, rest=b"\x81" * 9700,
        gap="its certificates are not where they should be")
    b = pe()
    mapped = b[:512] + bytes(4096 - 512) + b[512:1024] + bytes(4096 - 512) + b[1024:] + bytes(4096 - 512)
    one("pe", "mapped", mapped[:1536], complete=None, rest=mapped[1536:], fields=dict(mapped=True))
    # A page that begins with a file ends in zeros, unless there is more of the file.
    page = bytes(4096)
    case("pe", "overlay", page + b + b"overlay" + bytes(4096 - len(b) - 7), [artifact("pe", b, at=4096, complete=None)])


def elf(kind, segments=(), sections=None, wide=True, xnum=False, xindex=False, tail=b""):
    """gABI 4.1: `segments` are (type, content), `sections` (type, content), the last of them the names."""
    word = "Q" if wide else "I"
    ehsize, phsize, shsize = (64, 56, 64) if wide else (52, 32, 40)
    body, ph = b"", b""
    start = ehsize + phsize * len(segments)
    for t, c in segments:
        o = start + len(body)
        ph += struct.pack("<IIQQQQQQ", t, 4, o, 0, 0, len(c), len(c), 4) if wide else struct.pack("<IIIIIIII", t, o, 0, 0, len(c), len(c), 4, 4)
        body += c
    heads = []
    for t, c in sections or []:
        heads.append((t, start + len(body), len(c)))
        body += c
    shoff = start + len(body) if sections is not None or xnum else 0
    count = len(heads) + 1
    sh = struct.pack("<II" + word * 4 + "II" + word * 2, 0, 0, 0, 0, 0, count if xindex else 0, count - 1 if xindex else 0,
                     len(segments) if xnum else 0, 0, 0)
    sh += b"".join(struct.pack("<II" + word * 4 + "II" + word * 2, 1, t, 0, 0, o, n, 0, 0, 1, 0) for t, o, n in heads)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    names = 0xFFFF if xindex else (count - 1 if sections else 0)
    h = ident + struct.pack("<HHI" + word * 3 + "IHHHHHH", kind, 62, 1, 0, ehsize if segments else 0, shoff, 0, ehsize, phsize if segments else 0,
                            0xFFFF if xnum else len(segments), shsize if shoff else 0, 0 if xindex else (count if shoff else 0), names)
    return h + ph + body + (sh if shoff else b"") + tail


def elves():
    names = (3, b"\0.text\0")
    obj = [(1, b"\xc3" * 99), names]
    one("elf", "object32", elf(1, sections=obj, wide=False), fields=dict(type=1))
    # linux/scripts/sign-file.c: signature, lengths, magic.
    info = lambda sig, name=0, key=0: struct.pack(">BBBBBxxxI", 0, 4, 2, name, key, sig) + b"~Module signature appended~\n"
    one("elf", "signed_module", elf(1, sections=obj, tail=b"\x30" * 333 + info(333)), fields=dict(type=1, signed=True))
    one("elf", "signed_twice", elf(1, sections=obj, tail=b"name" + b"key" + b"\x30" * 256 + info(256, 4, 3) + b"\x30" * 50 + info(50)), fields=dict(signed=True))
    note = (4, struct.pack("<III", 5, 8, 1) + b"CORE\0\0\0\0" + b"notenote")
    one("elf", "core", elf(4, segments=[note] + [(1, b"%07d" % i * 9) for i in range(40)]), fields=dict(type=4))
    # Counts that are in the first section header, as of files with 65,535 segments or 65,280 sections.
    one("elf", "core_extended_count", elf(4, segments=[note] + [(1, b"%07d" % i * 9) for i in range(40)], xnum=True))
    one("elf", "object_extended_count", elf(1, sections=[(1, b"%02d" % i) for i in range(50)] + [names], xindex=True))
    b = elf(3, segments=[(1, b"\xc3" * 3000)], sections=obj)
    cut = len(b) - 3 * 64
    one("elf", "stub", b[:64 + 56 + 3000], complete=False, rest=b[3120:cut] + b"\x81" * 192, fields=dict(stub=True, claimed_size=len(b)))
    one("elf", "no_proof", elf(2, segments=[(1, b"\xc3" * 300)]), complete=None)
    one("elf", "odd_section", elf(1, sections=[(2, b"s" * 48), (1, b"\xc3" * 99), names]), complete=None, gap="a section does not hold what it should")
    b = elf(1, sections=obj)
    case("elf", "data_behind", bytes(4096) + b + b"more" + bytes(4092 - len(b)), [artifact("elf", b, at=4096, complete=None)])


def parts(b):
    e = b.rfind(b"PK\5\6")
    size, off = struct.unpack("<II", b[e + 12:e + 20])
    return b[:off], b[off:off + size], b[e:]


def split(cd):
    out = []
    while cd:
        k = 46 + sum(struct.unpack("<HHH", cd[28:34]))
        out.append(cd[:k])
        cd = cd[k:]
    return out


def shifted(b, k):
    """The same archive when `k` bytes stand in front that its offsets count from."""
    l, cd, e = parts(b)
    cd = b"".join(c[:42] + struct.pack("<I", struct.unpack("<I", c[42:46])[0] + k) + c[46:] for c in split(cd))
    return l + cd + e[:16] + struct.pack("<I", len(l) + k) + e[20:]


def archives():
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as w:
        for i, n in enumerate(("a.txt", "b/c.bin", "d.xml")):
            w.writestr(zipfile.ZipInfo(n), (n * (60 + i)).encode(), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
    b = f.getvalue()
    l, cd, e = parts(b)
    rec = struct.pack("<IQHHIIQQQQ", 0x06064b50, 44, 45, 45, 0, 0, 3, 3, len(cd), len(l))
    more = struct.pack("<IQHHIIQQQQ", 0x06064b50, 44 + 10, 45, 45, 0, 0, 3, 3, len(cd), len(l)) + b"\7\0\4\0\0\0abcd"
    loc = struct.pack("<IIQI", 0x07064b50, 0, len(l) + len(cd), 1)
    ones = b"PK\5\6" + b"\xff" * 16 + b"\0\0"
    one("zip", "zip64_all_ones", l + cd + rec + loc + ones, fields=dict(entries=3))
    one("zip", "zip64_extended", l + cd + more + loc + ones, fields=dict(entries=3))
    one("zip", "zip64_same", l + cd + rec + loc + e)
    block = struct.pack("<QQI", 1036, 1004, 0x7109871A) + bytes(1000) + struct.pack("<Q", 1036) + b"APK Sig Block 42"
    one("zip", "signing_block", l + block + cd + e[:16] + struct.pack("<I", len(l) + len(block)) + e[20:])
    es = split(cd)
    one("zip", "reordered", l + b"".join(es[::-1]) + e)
    one("zip", "deleted_first", l + b"".join(es[1:]) + e[:8] + struct.pack("<HHI", 2, 2, len(cd) - len(es[0])) + e[16:], fields=dict(entries=2))
    for name, marker in (("one_segment", b"PK00"), ("spanned", b"PK\7\10")):
        one("zip", name, marker + shifted(b, 4))
    one("zip", "behind_a_program", shifted(b, 1000), complete=None, fields=dict(prefix=1000))
    wrong = bytearray(b)
    wrong[40] ^= 1
    one("zip", "wrong_checksum", bytes(wrong), complete=False, gap="an entry does not have the checksum that its directory says")
    gone = bytearray(b)
    gone[struct.unpack("<I", es[2][42:46])[0]] ^= 1
    one("zip", "entry_lost", bytes(gone), complete=False)
    last = l + cd + e[:4] + struct.pack("<HH", 2, 2) + e[8:]
    last = last.replace(es[0], es[0][:34] + b"\2\0" + es[0][36:]).replace(es[1], es[1][:34] + b"\2\0" + es[1][36:]).replace(es[2], es[2][:34] + b"\2\0" + es[2][36:])
    one("zip", "last_part", last, complete=False, gap="it is one part of a split archive")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as w:
        w.writestr(zipfile.ZipInfo("in.zip"), b)
        w.writestr(zipfile.ZipInfo("x"), b"x")
    n = inner.getvalue()
    case("zip", "nested", PAD + n + PAD, [artifact("zip", n, complete=True), artifact("zip", b, at=len(PAD) + 36, complete=True)])
    if shutil.which("zip"):
        with tempfile.TemporaryDirectory() as d:
            for i in range(2):
                with open(os.path.join(d, "f%d" % i), "w") as f:
                    f.write("line %d\n" % i * 90)
            subprocess.run("zip -q -X -fz fz.zip f0 f1; zip -q -X -fz - f0 < /dev/null | cat > pipe.zip", shell=True, cwd=d, check=True)
            for n in ("fz", "pipe"):
                with open(os.path.join(d, n + ".zip"), "rb") as f:
                    one("zip", "forced_" + n, f.read())


def images():
    base = made("jpeg/baseline.in")
    n = struct.unpack(">H", base[4:6])[0]
    bare = base[4 + n:] if base[2:4] == b"\xff\xe0" else base[2:]
    seg = lambda m, d: b"\xff" + bytes([m]) + struct.pack(">H", len(d) + 2) + d
    size = dict(width=40, height=24)
    for name, head in (("comment_first", seg(0xFE, b"hello")), ("app11_first", seg(0xEB, b"JP" + bytes(20))), ("restart_interval_first", seg(0xDD, b"\0\0")),
                       ("tables_first", b""), ("fill_bytes", b"\xff\xff\xff"), ("many_segments", seg(0xE2, b"ICC_PROFILE\0xx") * 600)):
        one("jpeg", name, b"\xff\xd8" + head + bare, fields=size)
    i = bare.find(b"\xff\xc0")
    k = 2 + struct.unpack(">H", bare[i + 2:i + 4])[0]
    one("jpeg", "frame_first", b"\xff\xd8" + bare[i:i + k] + bare[:i] + bare[i + k:], fields=size)
    two = base + base
    case("jpeg", "two_pictures", PAD + two + PAD, [artifact("jpeg", base, complete=True), artifact("jpeg", base, at=len(PAD) + len(base), complete=True)])
    # A start that is no image right before one: the markers share a byte.
    case("jpeg", "shared_byte", PAD + b"\xff\xd8\xff" + base + PAD, [artifact("jpeg", base, at=len(PAD) + 3, complete=True)])
    case("jpeg", "cut", PAD + base[:-2] + PAD, [dict(row="artifact", kind="jpeg", offset=len(PAD), complete=False)])
    chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    data = zlib.compress(b"\0\1\2\3\4" * 4)
    one("png", "animated", png + chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 9, 0, 0)) + chunk(b"IDAT", data)
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 4, 4, 0, 0, 1, 9, 0, 0)) + chunk(b"fdAT", struct.pack(">I", 2) + data) + chunk(b"IEND", b""))
    one("png", "large_text", png + chunk(b"tEXt", b"k\0" + b"v" * 90000) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def pdf(header=b"%PDF-1.4\n", front=0, stream=b""):
    objs = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]
    if stream:
        objs.append(b"<< /Type /EmbeddedFile /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    out, at = header, []
    for i, o in enumerate(objs, 1):
        at.append(front + len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, o)
    x = front + len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objs) + 1) + b"".join(b"%010d 00000 n \n" % a for a in at)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objs) + 1, x)


def documents():
    one("pdf", "version_2", pdf(b"%PDF-2.0\n"))
    # ISO 32000-1, annex H, 3.4.1: a header of this form is taken, and one within the first 1,024 bytes.
    one("pdf", "postscript_header", pdf(b"%!PS-Adobe-3.0 PDF-1.4\n"))
    junk = b"X-Header: value\r\n\r\n"
    one("pdf", "behind_junk", junk + pdf(front=len(junk)))
    plain = pdf()
    case("pdf", "junk_not_counted", PAD + junk + plain + PAD, [artifact("pdf", plain, at=len(PAD) + len(junk), complete=True)])
    outer = pdf(stream=plain)
    case("pdf", "file_inside", PAD + outer + PAD, [artifact("pdf", outer, complete=True), artifact("pdf", plain, at=len(PAD) + outer.find(b"%PDF", 9), complete=True)])
    case("pdf", "two_alike", PAD + plain + plain + PAD, [artifact("pdf", plain, complete=True), artifact("pdf", plain, at=len(PAD) + len(plain), complete=True)])
    moved = plain.replace(b"2 0 obj", b"7 0 obj")
    one("pdf", "object_lost", moved, complete=None, gap="an object is not where its cross-references say")


def logs():
    """The record that make.py made, in chunks that are not whole."""
    log = made("evtx/one_record.in")
    chunk = bytearray(log[4096:])
    free = struct.unpack("<I", chunk[48:52])[0]
    record = bytes(chunk[512:free])
    event = lambda at, **f: dict(row="event", kind="evtx", offset=len(PAD) + at, len=len(record), host="WIN-TEST", program="Test-Provider",
                                 fields=dict(dict(record_id=7, event_id=4624, channel="Security"), **f))
    case("evtx", "no_header", PAD + b"\xb8" * 512 + bytes(chunk[512:]) + PAD, [event(512)], {"event": 1})
    case("evtx", "record_alone", PAD + record + PAD, [event(0)], {"event": 1})
    # The log was cleared: the header tells of no record.
    stale = bytearray(chunk)
    struct.pack_into("<III", stale, 44, 0, 512, zlib.crc32(b""))
    struct.pack_into("<I", stale, 124, zlib.crc32(bytes(stale[:120]) + bytes(stale[128:512])))
    case("evtx", "stale", PAD + bytes(stale) + PAD, [event(512, stale=True),
         artifact("evtx_chunk", bytes(stale), complete=True, fields=dict(stale_records=1))], {"event": 1})
    # Of three chunks the first page of the second is lost; and a log that is being written to.
    three = bytearray(log[:4096] + bytes(chunk) * 3)
    struct.pack_into("<H", three, 42, 3)
    struct.pack_into("<I", three, 124, zlib.crc32(bytes(three[:120])))
    hole = bytearray(three)
    hole[4096 + 65536:4096 + 65536 + 4096] = b"\x81" * 4096
    case("evtx", "chunk_lost", PAD + bytes(hole) + PAD, [artifact("evtx", bytes(hole), complete=False, fields=dict(chunks=2))], {"event": 2})
    dirty = bytearray(three)
    struct.pack_into("<I", dirty, 120, 1)
    case("evtx", "dirty", PAD + bytes(dirty) + PAD, [artifact("evtx", bytes(dirty), complete=None, fields=dict(chunks=3))], {"event": 3})
    # The copy of the size behind a record is what shows that it is whole.
    torn = bytearray(chunk)
    torn[free - 4:free] = b"\xff" * 4
    case("evtx", "torn", PAD + bytes(torn) + PAD, [artifact("evtx_chunk", bytes(torn), complete=False)], {"event": 0})
    far = bytearray(chunk)
    struct.pack_into("<I", far, 48, 65530)
    case("evtx", "header_too_far", PAD + bytes(far) + PAD, [event(512), artifact("evtx_chunk", bytes(far), complete=False)], {"event": 1})
    unread = bytearray(record)
    # The first element's name is told to be elsewhere, and its hash here is wrong.
    struct.pack_into("<I", unread, 24 + 4 + 5, 0x8000)
    struct.pack_into("<H", unread, 24 + 4 + 5 + 4 + 4, 0)
    case("evtx", "unread", PAD + bytes(unread) + PAD, [dict(row="event", kind="evtx", offset=len(PAD), time_kind="written", fields=dict(record_id=7))], {"event": 1})


programs()
elves()
archives()
images()
documents()
logs()
