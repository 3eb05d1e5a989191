#!/usr/bin/env python3
"""Makes the golden cases: NAME.in, and NAME.json with what must be found in it.

Standard library, plus gcc and Java where found. Expected values come from the tool or the
specification that a file was made by, never from ramsift. Run it in this folder.
"""
import binascii, calendar, datetime, io, json, os, shutil, sqlite3, struct, subprocess, tempfile
import zipfile, zlib

HERE = os.path.dirname(os.path.abspath(__file__))
PAD = bytes((i * 37 + 11) % 31 | 0x80 for i in range(700))     # no text, no magic


def case(carver, name, data, rows, counts=None, options=None):
    d = os.path.join(HERE, carver)
    os.makedirs(d, exist_ok=True)
    with open(os.path.join(d, name + ".in"), "wb") as f:
        f.write(data)
    with open(os.path.join(d, name + ".json"), "w") as f:
        json.dump({"options": options or {}, "rows": rows, "counts": counts or {}}, f, indent=1)
        f.write("\n")


def micros(*a, us=0, east=0):
    return (calendar.timegm(datetime.datetime(*a).timetuple()) - east) * 1000000 + us


def artifact(kind, data, at=len(PAD), **kw):
    return dict(row="artifact", kind=kind, offset=at, len=len(data), crc32=binascii.crc32(data), **kw)


def logs():
    utc = "zone: assumed UTC"
    year = "year: latest before the test; zone: assumed UTC"
    ref = {"reference_time": micros(2024, 6, 1), "reference_basis": "the test"}
    # (line, row): RFC 3164 5.4 ex. 1, RFC 5424 6.5 ex. 1-3, Apache HTTP Server 2.4 "Log Files".
    L = [
        ("<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
         dict(kind="syslog", raw_time="Oct 11 22:14:15", host="mymachine", program="su", time=None,
              message="'su root' failed for lonvick on /dev/pts/8", inferred_time=micros(2023, 10, 11, 22, 14, 15),
              inferred_from=year, fields=dict(facility=4, severity=2))),
        ("<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed for lonvick on /dev/pts/8",
         dict(kind="syslog5424", time=micros(2003, 10, 11, 22, 14, 15, us=3000), host="mymachine.example.com",
              program="su", pid=None, message="'su root' failed for lonvick on /dev/pts/8",
              fields=dict(facility=4, severity=2, msgid="ID47"))),
        ("<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
         dict(kind="syslog5424", time=micros(2003, 8, 24, 5, 14, 15, us=3, east=-7 * 3600), host="192.0.2.1",
              program="myproc", pid=8710, message="%% It's time to make the do-nuts.")),
        ('<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] An application event log entry...',
         dict(kind="syslog5424", program="evntslog", message="An application event log entry...",
              fields=dict(structured_data='[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"]'))),
        ('127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326 "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)"',
         dict(kind="access", time=micros(2000, 10, 10, 13, 55, 36, east=-7 * 3600), raw_time="10/Oct/2000:13:55:36 -0700",
              fields=dict(client="127.0.0.1", user="frank", method="GET", path="/apache_pb.gif", status=200, bytes=2326,
                          referrer="http://www.example.com/start.html", agent="Mozilla/4.08 [en] (Win98; I ;Nav)"))),
        ("[Fri Sep 09 10:42:29.902022 2011] [core:error] [pid 35708:tid 4328636416] [client 72.15.99.187] File does not exist: /usr/local/apache2/htdocs/favicon.ico",
         dict(kind="apache_error", time=None, inferred_time=micros(2011, 9, 9, 10, 42, 29, us=902022), inferred_from=utc,
              pid=35708, message="File does not exist: /usr/local/apache2/htdocs/favicon.ico",
              fields=dict(module="core", level="error", client="72.15.99.187"))),
        ('2023/05/06 07:08:09 [error] 31#32: *5 open() "/srv/x" failed (2: No such file or directory), client: 198.51.100.7, server: example.com, request: "GET /x HTTP/1.1", host: "example.com"',
         dict(kind="nginx_error", inferred_time=micros(2023, 5, 6, 7, 8, 9), pid=31,
              fields=dict(level="error", client="198.51.100.7", server="example.com", request="GET /x HTTP/1.1"))),
        ("Feb 29 01:02:03 gate sshd[812]: Accepted publickey for alice from 203.0.113.9 port 51812 ssh2: ED25519 SHA256:abc",
         dict(kind="sshd", pid=812, host="gate", inferred_time=micros(2024, 2, 29, 1, 2, 3),
              fields=dict(action="accepted", method="publickey", user="alice", src_ip="203.0.113.9", src_port=51812))),
        ("Mar  1 01:02:04 gate sshd[813]: Failed password for invalid user oracle from 203.0.113.10 port 40022 ssh2",
         dict(kind="sshd", fields=dict(action="failed", method="password", user="oracle", src_ip="203.0.113.10", src_port=40022))),
        ("Mar  1 01:02:05 gate sudo:    alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/cat /etc/shadow",
         dict(kind="sudo", fields=dict(user="alice", tty="pts/0", pwd="/home/alice", target_user="root",
                                       command="/usr/bin/cat /etc/shadow"))),
        ("2024-03-04T05:06:07.123456+02:00 gate cron[77]: (root) CMD (true)",
         dict(kind="syslog", time=micros(2024, 3, 4, 5, 6, 7, us=123456, east=7200), host="gate", program="cron", pid=77,
              message="(root) CMD (true)")),
        ("2024-01-02 03:04:05,678 ERROR [main] it broke",
         dict(kind="iso", time=None, inferred_time=micros(2024, 1, 2, 3, 4, 5, us=678000), inferred_from=utc,
              message="ERROR [main] it broke", fields=dict(level="ERROR"))),
        ("[2024-01-02T03:04:05Z INFO  web] up", dict(kind="iso", time=micros(2024, 1, 2, 3, 4, 5))),
        ('{"log":"caf\\u00e9\\n","stream":"stderr","time":"2024-01-02T03:04:05.123456789Z"}',
         dict(kind="json", time=micros(2024, 1, 2, 3, 4, 5, us=123456), message="café", fields=dict(stream="stderr"))),
        ('{"ts":1704164645.5,"level":"warn","msg":"slow","pid":9,"nested":{"time":"1999-01-01T00:00:00Z"}}',
         dict(kind="json", time=1704164645500000, message="slow", pid=9, fields=dict(level="warn"))),
        ('{"eventTime":"2024-01-02T03:04:05Z","eventSource":"s3.amazonaws.com","eventName":"GetObject","sourceIPAddress":"192.0.2.3"}',
         dict(kind="json", program="s3.amazonaws.com", message="GetObject", fields=dict(src_ip="192.0.2.3"))),
    ]
    bad = ["Feb 30 01:02:03 gate cron[1]: no such day", "Jan 12 25:02:03 gate cron[1]: no such hour",
           "2023-02-29 01:02:03 no such day", "x2024-01-02 03:04:05 not at the start", '{"a":1}', '{"time":"2024-01-02T03:04:05Z"',
           '1.2.3.4 - - [31/Feb/2024:01:02:03 +0000] "GET / HTTP/1.1" 200 1']
    for enc, label in (("utf-8", "utf8"), ("utf-16-le", "utf16le")):
        data, rows = PAD[:600], []
        for line, row in L:
            b = line.encode(enc)
            if label == "utf16le" and "\ufeff" in line:
                continue                        # U+FEFF is no text in the UTF-16 form, see docs
            rows.append(dict(row="event", offset=len(data), len=len(b), encoding=label, **row))
            data += b + "\n".encode(enc)
        for line in bad:
            data += line.encode(enc) + "\n".encode(enc)
        case("log", "formats_" + label, data + PAD[:600], rows, {"event": len(rows)}, ref)
    line = b'{"time":"2024-07-02T03:04:05Z","msg":"after a byte that is no text"}'
    case("log", "json_after_binary", b"\xe8" + line, [dict(row="event", kind="json", offset=1, len=len(line), time=micros(2024, 7, 2, 3, 4, 5))], {"event": 1})
    line = b"2024-07-02 03:04:05 summer time"
    case("log", "zone", PAD[:10] + line, [dict(row="event", offset=10, time=micros(2024, 7, 2, 3, 4, 5, east=7200), inferred_time=None)],
         {"event": 1}, {"timezone": "+02"})


def features():
    good = [("url", "https://zq.bad-example.net/gate.php?x=1"), ("url", "http://user:pw@192.0.2.9:8080/a(b)"),
            ("email", "user.name+tag@corp-example.com"), ("ipv4", "198.51.100.23"), ("ipv6", "2001:db8::ff00:42:8329"),
            ("domain", "cdn.c2-example.org"), ("url", "ftp://files.example.com/x.bin"), ("ipv4", "8.8.8.8"),
            ("url", "hxxp://evil.example.com/drop"), ("domain", "xn--bcher-kva.example.com")]
    noise = ["libc.so.6", "main.py", "lib.rs", "System.Net", "1.2.3.4.5", "2.5.4.3", "999.1.1.1", "Chrome/120.0.0.0", "std::dec",
             "03:04:05", "00:11:22:33:44:55", "a@b", "foo@2x.png", "://", "http://", "0.0.0.0", "127.0.0.1", "255.255.255.0", "::1",
             "version 10.2.3.4", "v10.2.3.4", "com.example.app", "/usr/lib/foo.com", "user.name", "01.02.03.04"]
    for enc, label in (("ascii", "utf8"), ("utf-16-le", "utf16le")):
        data, rows = PAD[:64], []
        gap = b"\0" if label == "utf8" else b"\0\0"
        for kind, v in good:
            data += gap + b""
            b = v.encode(enc)
            rows.append(dict(row="finding", kind=kind, offset=len(data), len=len(b), value=v, encoding=label,
                             context_around=[16, 16]))
            data += b + gap
        for v in noise:
            data += gap + v.encode(enc) + gap
        # The host of the URL with an address, the domains in URLs and addresses: said once.
        rows.append(dict(row="finding", kind="ipv4", value="192.0.2.9"))
        case("features", "indicators_" + label, data + PAD[:64], rows, {"finding": len(rows)})


def images():
    raw = b"".join(b"\0" + bytes((x * y) % 256 for x in range(30)) for y in range(20))
    def chunk(t, d):
        return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    case("png", "grey", PAD + png + PAD, [artifact("png", png, complete=True, fields=dict(width=30, height=20))], {"artifact": 1})
    cut = png[:-30] + b"????" + png[-26:]
    case("png", "bad_crc", PAD + cut + PAD, [dict(row="artifact", kind="png", offset=len(PAD), complete=False, gap="a chunk's CRC is wrong")], {"artifact": 1})
    if shutil.which("java"):
        src = """import java.awt.image.BufferedImage; import javax.imageio.*; import java.io.File; import javax.imageio.stream.*;
public class J { public static void main(String[] a) throws Exception {
 BufferedImage i = new BufferedImage(40, 24, BufferedImage.TYPE_INT_RGB);
 for (int y = 0; y < 24; y++) for (int x = 0; x < 40; x++) i.setRGB(x, y, (x * 6151 + y * 40503) & 0xffffff);
 ImageWriter w = ImageIO.getImageWritersByFormatName("jpeg").next(); ImageWriteParam p = w.getDefaultWriteParam();
 if (a[1].equals("progressive")) p.setProgressiveMode(ImageWriteParam.MODE_DEFAULT);
 FileImageOutputStream o = new FileImageOutputStream(new File(a[0])); w.setOutput(o);
 w.write(null, new IIOImage(i, null, null), p); o.close(); } }"""
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "J.java"), "w") as f:
                f.write(src)
            for name in ("baseline", "progressive"):
                p = os.path.join(d, "x.jpg")
                if os.path.exists(p):
                    os.remove(p)
                subprocess.run(["java", "-Djava.awt.headless=true", os.path.join(d, "J.java"), p, name], check=True)
                b = open(p, "rb").read()
                case("jpeg", name, PAD + b + PAD, [artifact("jpeg", b, complete=True, fields=dict(width=40, height=24))], {"artifact": 1})


def documents():
    objs = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]
    out, at = b"%PDF-1.4\n", []
    for i, o in enumerate(objs, 1):
        at.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, o)
    x = len(out)
    out += b"xref\n0 3\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % a for a in at)
    out += b"trailer << /Size 3 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % x
    case("pdf", "plain", PAD + out + PAD, [artifact("pdf", out, complete=True)], {"artifact": 1})
    y = len(out)
    upd = out + b"2 0 obj\n<< /Type /Pages /Kids [] /Count 0 >>\nendobj\n"
    z = len(upd)
    upd += b"xref\n2 1\n%010d 00000 n \ntrailer << /Size 3 /Root 1 0 R /Prev %d >>\nstartxref\n%d\n%%%%EOF\r\n" % (y, x, z)
    case("pdf", "updated", PAD + upd + b"\0" + PAD, [artifact("pdf", upd, complete=True)])
    case("pdf", "no_end", PAD + out[:80] + PAD, [], {"artifact": 0})
    for name, kind, names in (("plain", "zip", ["a/readme.txt", "b.bin"]), ("word", "docx", ["[Content_Types].xml", "word/document.xml"]),
                              ("sheet", "xlsx", ["[Content_Types].xml", "xl/workbook.xml"]), ("java", "jar", ["META-INF/MANIFEST.MF", "A.class"])):
        f = io.BytesIO()
        with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as w:
            for n in names:
                w.writestr(zipfile.ZipInfo(n), (n * 50).encode(), zipfile.ZIP_DEFLATED)
            if kind == "zip":
                w.comment = b"a comment"
        b = f.getvalue()
        case("zip", name, PAD + b + PAD, [artifact(kind, b, complete=True, fields=dict(entries=2))], {"artifact": 1})

    class Pipe(io.RawIOBase):                   # not seekable: zipfile writes data descriptors
        def __init__(self):
            self.b = b""
        def writable(self):
            return True
        def write(self, x):
            self.b += bytes(x)
            return len(x)
    p = Pipe()
    with zipfile.ZipFile(p, "w", zipfile.ZIP_DEFLATED) as w:
        w.writestr(zipfile.ZipInfo("streamed.txt"), b"streamed " * 40)
    case("zip", "streamed", PAD + p.b + PAD, [artifact("zip", p.b, complete=True)])
    with tempfile.TemporaryDirectory() as d:
        q = os.path.join(d, "x.db")
        c = sqlite3.connect(q)
        c.execute("pragma page_size=1024")
        c.execute("create table t(id integer primary key, v text)")
        c.executemany("insert into t(v) values(?)", [("value %d" % i * 9,) for i in range(60)])
        c.commit()
        pages = c.execute("pragma page_count").fetchone()[0]
        c.close()
        b = open(q, "rb").read()
        case("sqlite", "table", PAD + b + PAD, [artifact("sqlite", b, complete=True, fields=dict(page_size=1024, pages=pages))])


def programs():
    if shutil.which("gcc"):
        with tempfile.TemporaryDirectory() as d:
            p = os.path.join(d, "x")
            subprocess.run(["gcc", "-shared", "-nostdlib", "-s", "-Wl,--build-id=none,-z,noseparate-code", "-x", "c", "-", "-o", p],
                           input=b"int f(int x){return x*3;}", check=True)
            b = open(p, "rb").read()
            case("elf", "library", PAD + b + PAD, [artifact("elf", b, complete=True, fields=dict(type=3))], {"artifact": 1})
    # Microsoft's "PE Format": one section and a certificate.
    body, cert = b"\xc3" * 512, struct.pack("<IHH", 24, 0x200, 2) + b"0" * 16
    opt = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 14, 0, 512, 0, 0, 0x1000, 0x1000, 0x140000000, 0x1000, 512, 6, 0, 0, 0, 6, 0, 0,
                      0x2000, 512, 0, 3, 0, 1 << 20, 4096, 1 << 20, 4096, 0, 16)
    opt += b"".join(struct.pack("<II", *((1024, 24) if i == 4 else (0, 0))) for i in range(16))
    pe = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0x5F000000, 0, 0, len(opt), 0x2022) + opt
    pe += b".text\0\0\0" + struct.pack("<IIIIIIHHI", 512, 0x1000, 512, 512, 0, 0, 0, 0, 0x60000020)
    pe = pe.ljust(512, b"\0") + body + cert
    case("pe", "signed", PAD + pe + PAD, [artifact("pe", pe, complete=True, fields=dict(machine=0x8664, timestamp=0x5F000000, dll=1))])


def evtx():
    """One chunk with one record, put together by MS-EVEN6 2.2.12 and libevtx's description: BinXML
    without a template (so without dependency ids), element names where they are first used."""
    chunk = bytearray(65536)
    at = 512 + 24

    def u16s(s):
        return s.encode("utf-16-le")

    def name(out, s):
        h = 0
        for c in s:
            h = (h * 65599 + ord(c)) & 0xFFFFFFFF
        return struct.pack("<I", at + len(out) + 4) + struct.pack("<IHH", 0, h & 0xFFFF, len(s)) + u16s(s) + b"\0\0"

    def text(s):
        return b"\x05\x01" + struct.pack("<H", len(s)) + u16s(s)

    def element(out, tag, attrs, children):
        start = len(out)
        out += (b"\x41" if attrs else b"\x01") + bytes(4)
        out += name(out, tag)
        if attrs:
            mark = len(out)
            out += bytes(4)
            for i, (k, v) in enumerate(attrs):
                out += b"\x46" if i + 1 < len(attrs) else b"\x06"
                out += name(out, k)
                out += text(v)
            struct.pack_into("<I", out, mark, len(out) - mark - 4)
        out += b"\x02"
        for c in children:
            if isinstance(c, str):
                out += text(c)
            else:
                element(out, *c)
        out += b"\x04"
        struct.pack_into("<I", out, start + 1, len(out) - start - 5)

    out = bytearray(b"\x0f\x01\x01\x00")
    element(out, "Event", [], [
        ("System", [], [("Provider", [("Name", "Test-Provider")], []), ("EventID", [], ["4624"]), ("Level", [], ["4"]),
                        ("Channel", [], ["Security"]), ("Computer", [], ["WIN-TEST"])]),
        ("EventData", [], [("Data", [("Name", "TargetUserName")], ["alice"])])])
    out += b"\0"
    when = micros(2024, 1, 2, 3, 4, 5, us=678900)
    filetime = (when + 11644473600 * 1000000) * 10
    size = 24 + len(out) + 4
    size += -size % 8
    record = (b"**\0\0" + struct.pack("<IQQ", size, 7, filetime) + out).ljust(size - 4, b"\0") + struct.pack("<I", size)
    chunk[512:512 + size] = record
    chunk[0:8] = b"ElfChnk\0"
    struct.pack_into("<QQQQIII", chunk, 8, 1, 1, 7, 7, 128, 512, 512 + size)
    struct.pack_into("<I", chunk, 52, zlib.crc32(bytes(chunk[512:512 + size])))
    struct.pack_into("<I", chunk, 124, zlib.crc32(bytes(chunk[:120]) + bytes(chunk[128:512])))
    head = bytearray(4096)
    head[0:8] = b"ElfFile\0"
    struct.pack_into("<QQQIHHHH", head, 8, 0, 0, 8, 128, 1, 3, 4096, 1)
    struct.pack_into("<I", head, 124, zlib.crc32(bytes(head[:120])))
    data = bytes(head) + bytes(chunk)
    event = dict(row="event", kind="evtx", offset=len(PAD) + 4096 + 512, len=size, time=when, host="WIN-TEST", program="Test-Provider",
                 fields=dict(event_id=4624, record_id=7, level=4, channel="Security"))
    case("evtx", "one_record", PAD + data + PAD, [artifact("evtx", data, complete=True),
         artifact("evtx_chunk", bytes(chunk), at=len(PAD) + 4096, complete=True), event], {"event": 1})


def text():
    t = "Grüße, 世界. ".encode() * 30
    case("text", "utf8", PAD + t + PAD, [artifact("text", t)], {"artifact": 1})
    w = ("C:\\Users\\Public\\payload.dll\r\n" * 20).encode("utf-16-le")
    case("text", "utf16", PAD + w + PAD, [artifact("text_utf16le", w)], {"artifact": 1})
    line = b"2024-01-02 03:04:05 a line with an owner"
    a, b = b"unclaimed words. " * 30 + b"\n", b"\n" + b"more of them. " * 30
    case("text", "around_a_line", PAD + a + line + b + PAD, [artifact("text", a), artifact("text", b, at=len(PAD) + len(a) + len(line))],
         {"artifact": 2, "event": 1})


logs()
features()
images()
documents()
programs()
evtx()
text()
